"""A run on its way: allocated, but not visible before its values are whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradwire.server.engine.run import Run
from gradwire.server.runs.transfer import check_state, state_upload
from gradwire.server.runs.upload import Upload
from gradwire.wire.errors import ProtocolViolation


@dataclass(eq=False)
class Creation:
    """A run that is not visible yet; its initial values are still arriving."""

    run: Run
    upload: Upload | None
    """Of the initial values; None: the run has them already."""
    replace: bool
    published: bool = False
    origin: str = "by a client"
    """Whence it comes, for those who watch."""
    slots: Upload | None = None
    """The initial optimizer state, where there is one."""

    def begin_with(self, slots: Sequence[str], step: int, tensor_steps: Sequence[int]) -> None:
        """The run begins with a state, of which ``slots`` (in this order) will arrive. Raises ProtocolViolation."""
        run = self.run
        run.tensor_steps = check_state(run, slots, step, tensor_steps)
        run.step = step
        self.slots = state_upload(run, [run.state.slots[name] for name in slots])

    def add_slot(self, slot: int, offset: int, data: bytes) -> None:
        """Takes a slice of a slot. Raises ProtocolViolation where no state was announced, InvalidSlice."""
        if self.slots is None:
            raise ProtocolViolation(
                "a slice of a slot, but the header has no state; expected slices of the values only"
            )
        self.slots.add(slot, offset, data)

    def require_complete(self) -> None:
        """Raises IncompleteValues when some element of the values or of the state has not arrived."""
        if self.upload is not None:
            self.upload.require_complete()
        if self.slots is not None:
            self.slots.require_complete()

    def abandon(self) -> None:
        """Frees the run, unless it has become visible."""
        if not self.published:
            self.run.delete()
