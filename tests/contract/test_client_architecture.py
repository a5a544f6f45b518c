"""The client's rooms and their floors: who may import whom inside ``gradwire.client``."""

from __future__ import annotations

import ast

import pytest

from tests.contract.test_architecture import SOURCE_ROOTS, modules, under

CLIENT = "gradwire.client"
FLOORS = (
    ("__init__", "doctor", "torch"),
    ("connection",),
    ("run",),
    ("stored_run",),
    ("training",),
    ("calls",),
    ("encodings", "options"),
    ("transport", "overrides", "workers"),
    ("errors", "optimizers"),
)
"""Rooms and single files, from the top down. Each imports itself and what lies below it; neighbours are strangers."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """The room, or the file at the top, that a module of the client belongs to."""
    return module.removeprefix(CLIENT).lstrip(".").partition(".")[0] or "__init__"


def wrong_imports(found: dict[str, set[str]]) -> set[tuple[str, str]]:
    """(module, import) of those that run upwards or sideways. Whoever imports a name of a room imports the room."""
    wrong = set()
    for module, imports in found.items():
        ours = room_of(module)
        for name in under(imports, CLIENT) - {CLIENT}:
            theirs = room_of(name)
            if theirs != ours and FLOOR_OF.get(theirs, -1) <= FLOOR_OF[ours]:
                wrong.add((module, name))
    return wrong


def test_every_module_belongs_to_a_room() -> None:
    rooms = {room_of(name) for name, _ in modules("client")}
    assert rooms == FLOOR_OF.keys()


def test_imports_run_downwards() -> None:
    found = dict(modules("client"))
    assert len(found) > 40, "nothing was looked at"
    assert wrong_imports(found) == set()


@pytest.mark.parametrize(
    ("module", "imported", "is_wrong"),
    [
        ("gradwire.client.transport.stream", "gradwire.client.training.block", True),
        ("gradwire.client.encodings.block", "gradwire.client.options", True),
        ("gradwire.client.torch.binding", "gradwire.client.doctor.report", True),
        ("gradwire.client.run", "gradwire.client.Server", True),
        ("gradwire.client.transport.stream", "gradwire.client.transport.retry", False),
        ("gradwire.client.connection", "gradwire.client.run.Run", False),
    ],
)
def test_an_import_that_runs_upwards_or_sideways_is_found(module: str, imported: str, is_wrong: bool) -> None:
    assert bool(wrong_imports({module: {imported}})) is is_wrong


def test_a_room_says_what_it_is_about_and_passes_nothing_on() -> None:
    """Every name is imported from where it is made; only the rooms that users import from have public names."""
    for path in sorted((SOURCE_ROOTS["client"] / "gradwire" / "client").glob("*/__init__.py")):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        assert path.parent.name == "torch" or len(tree.body) == 1, path
