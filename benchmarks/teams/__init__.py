"""Everybody who lets several workers train one vector: this project and its peers. One module each; see `team.Team`.

A module is both sides: its class is what the benchmark holds, and as a program it is one worker. Imports of libraries
are the modules' own, so that the peers of another environment load none of ours.
"""

from __future__ import annotations

import importlib

from benchmarks.teams.task import Task
from benchmarks.teams.team import Team, Unavailable

OURS = "gradwire"
IN_SHARED_MEMORY = "gradwire, parameters in shared memory"
WITHOUT_SHARED_MEMORY = "gradwire, no shared memory"
GLOO = "gloo all-reduce, fused Adam in each"
RAY = "Ray actor that averages"
FLOWER = "Flower FedAdam"
KINDS = {
    OURS: "gradwire_team:GradwireTeam",
    IN_SHARED_MEMORY: "gradwire_team:ParametersInSharedMemory",
    WITHOUT_SHARED_MEMORY: "gradwire_team:WithoutSharedMemory",
    GLOO: "gloo_team:GlooTeam",
    RAY: "ray_team:RayTeam",
    FLOWER: "flower_team:FlowerTeam",
}


def start(name: str, task: Task) -> Team:
    """The team of that name, ready for a round. Raises Unavailable."""
    module_name, _, kind = KINDS[name].partition(":")
    try:
        module = importlib.import_module(f"benchmarks.teams.{module_name}")
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed: pip install -e '.[peers]'") from None
    team: Team = getattr(module, kind)(task)
    return team
