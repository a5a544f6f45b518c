"""The long run: ``python -m tests.robustness``, which is ``make robustness``. It goes on from where it was ended.

With ``--lives``, ``--points`` or ``--damage`` one episode is played (again): the line that the tests and the long run
print for each.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradwire.client import connect
from tests.robustness.damage import KINDS
from tests.robustness.disk import build_library
from tests.robustness.episode import Episode
from tests.robustness.model import Reference
from tests.robustness.plan import (
    ENDS_WITHOUT_POINTS,
    FLUSHES,
    Life,
    at_points,
    at_random,
    points_without_rounds,
    shared_points,
    with_damage,
)
from tests.robustness.servers import Zygote
from tests.robustness.shared.setting import any_settings
from tests.robustness.summary import write_into
from tests.robustness.tally import LongRun, Tally, load, save
from tests.serving import ServerProcess

LIVES = 25
POINTS = 8
KILLS, CUTS = 1000, 500
"""Of the long run, where it is not told how long."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


@dataclass(frozen=True)
class Plan:
    """An episode, and how it is asked for."""

    flags: str
    lives: list[Life]
    churns: bool = True
    rivalry: bool = False
    shared: bool = False
    """Runs with many workers, in place of those with one."""


def planned(seed: int) -> Plan:
    """The episode of a seed in the long run of runs with one worker."""
    points = [*points_without_rounds(), *FLUSHES]
    if seed % 10 == 9:
        return damages(seed, len(KINDS) * 2)
    if seed % 5 == 4:
        first = seed // 5 * POINTS % len(points)
        some = (points + points)[first : first + POINTS]
        return Plan(f"--points {','.join(some)}", at_points(seed, some, 3))
    return anywhere(seed, LIVES, 4)


def shared_planned(seed: int) -> Plan:
    """And in that of shared runs."""
    return shared_at_points(seed, shared_points(), 2) if seed % 4 == 3 else shared_anywhere(seed, LIVES, 4)


def anywhere(seed: int, lives: int, troubles: int) -> Plan:
    return Plan(f"--lives {lives} --troubles {troubles}", at_random(seed, lives, troubles), rivalry=True)


def shared_anywhere(seed: int, lives: int, troubles: int) -> Plan:
    plan = at_random(seed, lives, troubles, ENDS_WITHOUT_POINTS)
    return Plan(f"--shared --lives {lives} --troubles {troubles}", plan, churns=False, shared=True)


def shared_at_points(seed: int, points: list[str], times: int) -> Plan:
    flags = f"--shared --points {','.join(points)} --times {times}"
    return Plan(flags, at_points(seed, points, times), churns=False, shared=True)


def damages(seed: int, count: int) -> Plan:
    return Plan(f"--damage {count}", with_damage(seed, count), churns=False)


PLANS = {"single": planned, "shared": shared_planned}
"""Long runs, by what their episodes are of."""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """``given``: None: those of the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the one episode; of the first one of a long run")
    parser.add_argument("--lives", type=int, help="one episode of so many servers, killed at random")
    parser.add_argument("--troubles", type=int, default=2, help="at most so many further faults in each life")
    parser.add_argument("--points", help="one episode in which servers die at these points, each --times times")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--shared", action="store_true", help="that episode, or the long run, is of shared runs alone")
    parser.add_argument("--damage", type=int, help="one episode with so many damaged files")
    parser.add_argument("--kills", type=int, help="the long run goes on to so many, of either kind of run")
    parser.add_argument("--cuts", type=int, help="and until connections have been cut so often")
    parser.add_argument("--minutes", type=float, default=1e9, help="this part of it ends after so long")
    parser.add_argument("--state", type=Path, default=Path("out/robustness.json"), help="where the parts are added up")
    parser.add_argument("--docs", action="store_true", help=f"write the summary to {DOCUMENT.name}")
    options = parser.parse_args(given)
    if options.kills is None and options.cuts is None:
        options.kills, options.cuts = KILLS, CUTS
    options.kills, options.cuts = options.kills or 0, options.cuts or 0  # who gives one means that one alone
    return options


def main() -> int:
    options = arguments()
    one: Plan | None = None
    if options.points:
        points = options.points.split(",")
        one = Plan(f"--points {options.points}", at_points(options.seed, points, options.times))
        if options.shared:
            one = shared_at_points(options.seed, points, options.times)
    elif options.damage:
        one = damages(options.seed, options.damage)
    elif options.lives:
        make = shared_anywhere if options.shared else anywhere
        one = make(options.seed, options.lives, options.troubles)
    runs = load(options.state, PLANS)
    wanted = ["shared"] if options.shared else list(runs)
    if one is not None or not all(enough(runs[kind], options) for kind in wanted):
        with tempfile.TemporaryDirectory() as directory, ServerProcess("--device", "cpu") as process:
            library = build_library(Path(directory))
            with Zygote(library) as zygote, connect(process.target) as server:
                reference = Reference(server)
                if one is not None:
                    print(play(options.seed, one, zygote, reference))
                    return 0
                go_on(runs, wanted, options, zygote, reference)
    if options.docs:
        for kind in wanted:
            write_into(DOCUMENT, kind, runs[kind])
    return 0


def go_on(
    runs: Mapping[str, LongRun],
    wanted: Sequence[str],
    options: argparse.Namespace,
    zygote: Zygote,
    reference: Reference,
) -> None:
    """Episodes of each kind in turn, until there are enough of each or the time is over."""
    options.state.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for kind in wanted:
        runs[kind].parts += 1
    while going := [kind for kind in wanted if not enough(runs[kind], options)]:
        for kind in going:
            if time.monotonic() - started > options.minutes * 60:
                return
            run, begun = runs[kind], time.monotonic()
            seed = options.seed + run.episodes
            run.tally.add(play(seed, PLANS[kind](seed), zygote, reference))
            run.episodes += 1
            run.seconds += time.monotonic() - begun
            save(options.state, runs)
            print(f"{kind}: {run.tally.kills} kills; connections cut {run.tally.cuts} times so far", flush=True)


def enough(run: LongRun, options: argparse.Namespace) -> bool:
    return bool(run.tally.kills >= options.kills and run.tally.cuts >= options.cuts)


def play(seed: int, plan: Plan, zygote: Zygote, reference: Reference) -> Tally:
    """One episode; what it leaves stays on the disk where it fails."""
    print(f"again: python -m tests.robustness {plan.flags} --seed {seed}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix=f"robustness-{seed}-"))
    try:
        with Episode(
            directory,
            seed,
            zygote,
            reference,
            shapes=[] if plan.shared else None,
            churns=plan.churns,
            rivalry=plan.rivalry,
            shared=any_settings(seed) if plan.shared else (),
        ) as episode:
            episode.play(plan.lives)
    except BaseException:
        print(f"what is left of it: {directory}", file=sys.stderr)
        raise
    shutil.rmtree(directory)
    return episode.tally


if __name__ == "__main__":
    sys.exit(main())
