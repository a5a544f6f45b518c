"""The server, to which every client is one of another host: blocks are computed, and answered, while they arrive."""

from __future__ import annotations

from gradwire.server.__main__ import main
from gradwire.server.training.arrival_speed import ArrivalSpeed

ArrivalSpeed.near = property(lambda speed: False)  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    main()
