"""The door as the server's settings want it."""

from __future__ import annotations

from gradwire.server.web.door import Door
from gradwire.server.web.hosts import OwnNames
from gradwire.server.web.pages import Pages
from gradwire.server.web.watched import Watched


def door_of(watched: Watched) -> Door:
    """Not open yet."""
    config = watched.registry.config
    contexts, names = None, None
    if watched.certificates is None:
        names = OwnNames([config.http.rpartition(":")[0], *config.http_name])
    else:
        from gradwire.server.web.encrypted import Contexts

        contexts = Contexts(watched.certificates)
    return Door(config.http, Pages(watched, names, per_run=config.metrics_per_run), contexts)
