"""Series as snapshots, journals and files have them: read back with nothing taken on trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradwire.server.series.buckets import LAST_STEP
from gradwire.server.series.scalars import table_from_text
from gradwire.wire.series import MAX_SERIES, Table, is_own, name_error

_MANY = 2**9
"""So many times more values than steps there may be: as many as an integer of 64 bits counts."""


def check_data(data: Mapping[str, Any]) -> dict[str, tuple[int, int, Table]]:
    """Width, newest step and buckets of each series. Raises ValueError, TypeError for what `to_data` has not made."""
    found: dict[str, tuple[int, int, Table]] = {}
    for name, (width, last_step, text) in data.items():
        table = table_from_text(text)
        steps, counts = table[0], table[6]
        whole = np.concatenate((steps, counts / _MANY, [width, last_step]))
        if not (len(steps) and (whole >= 0).all() and (whole <= LAST_STEP).all() and (steps == np.floor(steps)).all()):
            raise ValueError(f"series {name!r} has steps or counts that are none")
        if width < 1 or width & (width - 1) or (steps % width).any() or (steps[1:] <= steps[:-1]).any():
            raise ValueError(f"series {name!r} has buckets that do not lie side by side")
        if (counts < 1).any() or not steps[-1] <= last_step < steps[-1] + width:
            raise ValueError(f"series {name!r} has a bucket without values, or values beyond its buckets")
        if name_error(name) and not is_own(name):
            raise ValueError(name_error(name))
        found[name] = width, last_step, table
    if len(found) > MAX_SERIES:
        raise ValueError(f"{len(found)} series; expected at most {MAX_SERIES}")
    return found
