"""What a run may have come by where files were damaged, and it was said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness.model import Block, Operation, Shape, Write
from tests.robustness.trainer import Trainer, World

BEFORE, AFTER = Block(1, 3, True, None, "last"), Block(2, 1, True, None, "last")
FIRST, SECOND = Write(3, False), Write(4, True)


@pytest.mark.parametrize("damaged", [True, False])
def test_any_writes_that_came_after_the_step_it_goes_on_from_may_be_missing(tmp_path: Path, damaged: bool) -> None:
    log = tmp_path / "log"
    log.write_text("ERROR: runs/a goes on from step 3: values that had been written are lost\n")
    trainer = Trainer(World("", "", log, damaged=damaged), Shape("a", "SNAPSHOT", 1))
    trainer.applied = [BEFORE, FIRST, SECOND, AFTER]
    found = list(trainer._histories())
    assert found[0] == trainer.applied
    missing: list[list[Operation]] = [[FIRST], [FIRST, SECOND], [SECOND]]
    expected = [[each for each in trainer.applied if each not in some] for some in missing]
    assert found[1:] == (expected if damaged else [])
