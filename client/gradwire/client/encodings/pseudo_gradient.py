"""What local steps have done to parameters, as a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.client.encodings import flat_vector
from gradwire.wire.layout import Layout


def pseudo_gradient(
    layout: Layout, before: npt.NDArray[Any], local_params: Mapping[str, Any]
) -> dict[str, npt.NDArray[Any]]:
    """``before - after`` of each tensor: gradient descent with it goes to where the local steps went.

    Args:
        before: ``[elements]``, the parameters that the local steps began with.
        local_params: name -> array, those that they ended with, of every tensor.

    Raises ValueError for a missing or unknown name, a wrong shape, or arrays that are ``before`` themselves, TypeError
    for a wrong dtype.
    """
    after = flat_vector.flatten(layout, local_params, before.dtype, "the local parameters")
    for name, value in local_params.items():
        if np.may_share_memory(flat_vector.as_array(name, value), before):
            raise ValueError(
                f"the local parameters {name!r} lie where the run's own do, so what they were before is lost; "
                "expected copies, as {name: value.copy() for name, value in run.params.items()} makes"
            )
    return flat_vector.views(layout, np.subtract(before, after, out=after))
