"""What local steps have done to parameters, as a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradwire.client.encodings.pseudo_gradient import pseudo_gradient
from gradwire.wire.layout import Layout

LAYOUT = Layout([[("w", (2,)), ("b", ())]])
BEFORE = np.array([1.0, 2.0, 3.0], np.float32)


def test_the_sign_of_a_pseudo_gradient_is_before_minus_after() -> None:
    """A gradient points uphill: descending along it by 1 goes to where the local steps went."""
    after = {"w": np.array([0.5, 4.0]), "b": 3.0}
    found = pseudo_gradient(LAYOUT, BEFORE, after)
    assert {name: value.tolist() for name, value in found.items()} == {"w": [0.5, -2.0], "b": 0.0}
    assert (BEFORE[:2] - found["w"]).tolist() == [0.5, 4.0]
    assert BEFORE.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"w": np.zeros(2)}, r"the local parameters lack \['b'\]"),
        ({"w": np.zeros(2), "b": 0.0, "c": 0.0}, r"the local parameters name \['c'\], which this run does not have"),
        ({"w": np.zeros(3), "b": 0.0}, r"'w' has shape \(3,\); expected \(2,\)"),
        ({"w": BEFORE[:2], "b": 0.0}, r"the local parameters 'w' lie where the run's own do"),
    ],
)
def test_another_layout_is_refused_and_so_are_the_run_s_own_arrays(after: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pseudo_gradient(LAYOUT, BEFORE, after)
