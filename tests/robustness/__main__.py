"""The long run: ``python -m tests.robustness``, which is ``make robustness``. It goes on from where it was ended.

With ``--lives``, ``--points`` or ``--damage`` one episode is played (again): the line that the tests and the long run
print for each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
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
from tests.robustness.tally import Tally
from tests.serving import ServerProcess

LIVES = 25
POINTS = 8
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
    """The episode of a seed in the long run: now of runs with one worker, now of shared runs."""
    number, shared = divmod(seed, 2)
    if shared:
        return shared_at_points(seed, shared_points(), 2) if number % 4 == 3 else shared_anywhere(seed, LIVES, 4)
    points = [*points_without_rounds(), *FLUSHES]
    if number % 10 == 9:
        return damages(seed, len(KINDS) * 2)
    if number % 5 == 4:
        first = number // 5 * POINTS % len(points)
        some = (points + points)[first : first + POINTS]
        return Plan(f"--points {','.join(some)}", at_points(seed, some, 3))
    return anywhere(seed, LIVES, 4)


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


def load(path: Path) -> tuple[Tally, dict[str, float]]:
    """What earlier parts have counted."""
    tally, about = Tally(), {"next_seed": 0.0, "seconds": 0.0, "episodes": 0.0, "parts": 0.0}
    if path.exists():
        data = json.loads(path.read_text())
        about.update(data["about"])
        for name, value in data["tally"].items():
            setattr(tally, name, Counter(value) if isinstance(value, dict) else value)
    return tally, about


def save(path: Path, tally: Tally, about: dict[str, float]) -> None:
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"about": about, "tally": vars(tally)}, indent=1, sort_keys=True))
    unfinished.replace(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the one episode; of the first one of a long run")
    parser.add_argument("--lives", type=int, help="one episode of so many servers, killed at random")
    parser.add_argument("--troubles", type=int, default=2, help="at most so many further faults in each life")
    parser.add_argument("--points", help="one episode in which servers die at these points, each --times times")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--shared", action="store_true", help="that episode is one of shared runs")
    parser.add_argument("--damage", type=int, help="one episode with so many damaged files")
    parser.add_argument(
        "--kills", type=int, default=1000, help="the long run goes on to so many, and as many more of shared runs"
    )
    parser.add_argument("--cuts", type=int, default=500, help="and cuts connections so often")
    parser.add_argument("--minutes", type=float, default=1e9, help="this part of it ends after so long")
    parser.add_argument("--state", type=Path, default=Path("out/robustness.json"), help="where the parts are added up")
    parser.add_argument("--docs", action="store_true", help=f"write the summary to {DOCUMENT.name}")
    return parser.parse_args()


def enough(tally: Tally, options: argparse.Namespace) -> bool:
    """Whether the long run has come to its end."""
    least = min(tally.kills - tally.shared_kills, tally.shared_kills)
    return bool(least >= options.kills and tally.cuts >= options.cuts)


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
    tally, about = (Tally(), {}) if one else load(options.state)
    if options.docs and one is None and enough(tally, options):
        write_into(DOCUMENT, tally, about)
        return 0
    options.state.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, ServerProcess("--device", "cpu") as process:
        library = build_library(Path(directory))
        with Zygote(library) as zygote, connect(process.target) as server:
            reference = Reference(server)
            if one is not None:
                print(play(options.seed, one, zygote, reference))
                return 0
            about["parts"] += 1
            seed = int(about["next_seed"]) or options.seed
            while not enough(tally, options):
                if time.monotonic() - started > options.minutes * 60:
                    break
                begun = time.monotonic()
                found = play(seed, planned(seed), zygote, reference)
                tally.add(found)
                seed += 1
                about["next_seed"], about["episodes"] = seed, about["episodes"] + 1
                about["seconds"] += time.monotonic() - begun
                save(options.state, tally, about)
                print(
                    f"{tally.kills} kills, {tally.shared_kills} of shared runs, {tally.cuts} connections cut so far",
                    flush=True,
                )
    if options.docs:
        write_into(DOCUMENT, tally, about)
    return 0


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
