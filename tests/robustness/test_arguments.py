"""How far the long run goes."""

from __future__ import annotations

import pytest

from tests.robustness.__main__ import CUTS, KILLS, arguments, enough
from tests.robustness.tally import LongRun, Tally


@pytest.mark.parametrize(
    ("given", "kills", "cuts"),
    [
        ([], KILLS, CUTS),
        (["--kills", "7"], 7, 0),
        (["--cuts", "7"], 0, 7),
        (["--shared", "--kills", "7", "--cuts", "3"], 7, 3),
    ],
)
def test_the_long_run_goes_on_to_what_it_is_given_and_no_further(given: list[str], kills: int, cuts: int) -> None:
    options = arguments(given)
    assert enough(LongRun(tally=Tally(kills=kills, cuts=cuts)), options)
    if kills:
        assert not enough(LongRun(tally=Tally(kills=kills - 1, cuts=cuts)), options)
    if cuts:
        assert not enough(LongRun(tally=Tally(kills=kills, cuts=cuts - 1)), options)
