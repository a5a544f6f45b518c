"""Who may import whom. The layout is the architecture; these tests keep it so."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = {name: ROOT / name for name in ("protos", "server", "client")}
FLOORS = (
    {"__main__"},
    {"cli"},
    {"app"},
    {"rpc", "web"},
    {"rounds"},
    {"training", "runs"},
    {"durability", "encodings"},
    {"engine"},
    {"devices", "series"},
    {"store", "optimizers", "access"},
    {"memory", "config", "failpoints", "jit", "metrics"},
    {"kernel_cache", "limits"},
)
"""The server's rooms, and the modules outside of any, top down. What stands on a floor imports what is below it or in
its own room, never its neighbour; see docs/architecture.md."""

EDGE = {"__main__", "cli", "app", "rpc"}
"""Know gRPC. All the others, a new one too, are domain code and must not."""

CODEC = "gradwire.server.rpc.codec"
"""Translates messages, so it knows them; it knows no service."""


def imports_of(source: str, package: str) -> set[str]:
    """All that a module may import, at its top or inside functions, as absolute dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def modules(root: str) -> Iterator[tuple[str, set[str]]]:
    """Dotted name and imports of each hand-written module below a source root."""
    for path in sorted((SOURCE_ROOTS[root] / "gradwire").rglob("*.py")):
        if "_pb2" not in path.name:
            package = path.parent.relative_to(SOURCE_ROOTS[root]).parts
            name = package if path.stem == "__init__" else (*package, path.stem)
            yield ".".join(name), imports_of(path.read_text(), ".".join(package))


def under(imports: set[str], *prefixes: str) -> set[str]:
    return {name for name in imports for prefix in prefixes if name == prefix or name.startswith(f"{prefix}.")}


def room_of(name: str) -> str:
    """The room of a module or of something in it; empty: not of the server, or the server's package itself."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["gradwire", "server"] and len(parts) > 2 else ""


def floor_of(room: str) -> int:
    """Counted from the top. Raises StopIteration for a room that stands nowhere."""
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def upward(name: str, imports: set[str]) -> set[str]:
    """What of a module's imports is neither in its own room nor on a floor below."""
    own = room_of(name)
    others = {found: room for found in imports if (room := room_of(found)) not in ("", own)}
    return {found for found, room in others.items() if floor_of(room) <= floor_of(own)}


def domain_modules() -> list[str]:
    return [name for name, _ in modules("server") if room_of(name) not in EDGE]


def loaded_after(program: str) -> set[str]:
    """Modules of a fresh interpreter that has run ``program``."""
    program += "\nimport sys\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_import_finder_sees_every_form() -> None:
    source = """
import a.b as c
from d import e
from . import f
from .g import h
from ..i import j
def late():
    import k
if TYPE_CHECKING:
    from l import m
"""
    expected = {"a.b", "d", "d.e", "x.y", "x.y.f", "x.y.g", "x.y.g.h", "x.i", "x.i.j", "k", "l", "l.m"}
    assert imports_of(source, "x.y") == expected


@pytest.mark.parametrize(
    ("root", "strangers"),
    [
        ("client", ["gradwire.server"]),
        ("server", ["gradwire.client"]),
        ("protos", ["gradwire.server", "gradwire.client"]),
    ],
)
def test_the_contract_imports_neither_side_and_the_sides_not_each_other(root: str, strangers: list[str]) -> None:
    found = dict(modules(root))
    assert len(found) >= 4, "nothing was looked at"
    assert {name: bad for name, imports in found.items() if (bad := under(imports, *strangers))} == {}


def test_every_module_belongs_to_a_room_and_every_room_says_what_it_is_about() -> None:
    found = {name: room_of(name) for name, _ in modules("server")}
    assert set(found.values()) - {""} == {room for rooms in FLOORS for room in rooms}
    assert [name for name, room in found.items() if not room] == ["gradwire.server"]
    packages = [path.parent for path in (SOURCE_ROOTS["server"] / "gradwire" / "server").rglob("__init__.py")]
    for package in packages:
        source = (package / "__init__.py").read_text()
        assert ast.get_docstring(ast.parse(source)), package
        assert not imports_of(source, ""), f"{package} exports again what lies in its modules"
    lost = [path for package in packages for path in package.iterdir() if path.is_dir() and path not in packages]
    assert [path for path in lost if path.name != "__pycache__"] == [], "a folder that is no package"


def test_imports_run_downwards() -> None:
    found = dict(modules("server"))
    assert len(found) > 60, "nothing was looked at"
    assert {
        name: bad for name, imports in found.items() if name != "gradwire.server" and (bad := upward(name, imports))
    } == {}


def test_no_module_imports_itself_by_a_detour() -> None:
    found = dict(modules("server"))
    left = {name: {other for other in imports if other in found} - {name} for name, imports in found.items()}
    while free := [name for name, imports in left.items() if not imports & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("engine.run", "durability.changes", False),
        ("engine.run", "engine.block", True),
        ("engine.run", "store.base.MAX_ENTRY_BYTES", True),
        ("training.session", "runs.registry", False),
        ("runs.registry", "training.session", False),
        ("store.disk", "optimizers.adam", False),
        ("devices.cpu", "jit", True),
        ("jit", "devices.cpu", False),
        ("jit", "config", False),
        ("app", "cli.serve", False),
    ],
)
def test_an_import_upwards_or_sideways_is_found(module: str, imported: str, allowed: bool) -> None:
    name = f"gradwire.server.{imported}"
    assert upward(f"gradwire.server.{module}", {name, "numpy", "gradwire.wire.errors"}) == (
        set() if allowed else {name}
    )


def test_domain_code_imports_no_grpc_and_no_messages() -> None:
    strangers = ("grpc", "grpc_health", "grpc_reflection", "gradwire.v1")
    found = dict(modules("server"))
    domain = domain_modules()
    assert {room_of(name) for name in domain} - {""} == {room for rooms in FLOORS for room in rooms} - EDGE
    assert {name: bad for name in domain if (bad := under(found[name], *strangers))} == {}


def test_codec_knows_messages_but_no_service() -> None:
    found = dict(modules("server"))[CODEC]
    assert under(found, "gradwire.v1")
    assert not under(found, "grpc", "gradwire.v1.service_pb2", "gradwire.v1.service_pb2_grpc")


def test_domain_code_loads_no_grpc_even_indirectly() -> None:
    needs_gpu = ("gradwire.server.devices.cuda",)
    names = [name for name in domain_modules() if not name.startswith(needs_gpu)]
    loaded = loaded_after("\n".join(f"import {name}" for name in names))
    assert set(names) <= loaded
    assert not under(loaded, "grpc", "gradwire.v1.service_pb2", "gradwire.v1.service_pb2_grpc", "torch")


def test_wire_imports_no_grpc() -> None:
    """The error table is shared with code that has no gRPC, and codes are plain numbers there."""
    for name, imports in modules("protos"):
        assert not under(imports, "grpc"), name


def test_promise_4_light_clients() -> None:
    """``import gradwire.client``, every module of it but the one named torch, needs neither torch nor the server."""
    names = [name for name, _ in modules("client") if not under({name}, "gradwire.client.torch")]
    assert len(names) > 5
    loaded = loaded_after("\n".join(f"import {name}" for name in names))
    assert {"gradwire.client", *names} <= loaded
    assert not under(loaded, "torch", "numba", "llvmlite", "gradwire.server", "matplotlib", "rich")


def test_a_client_that_trains_loads_no_command_line() -> None:
    assert not under(loaded_after("import gradwire.client"), "click", "gradwire.client.doctor")


def test_gradwire_is_a_namespace_package() -> None:
    for root in SOURCE_ROOTS.values():
        assert (root / "gradwire").is_dir()
        assert not (root / "gradwire" / "__init__.py").exists()


def test_every_package_is_typed() -> None:
    packages = [path for root in SOURCE_ROOTS.values() for path in (root / "gradwire").iterdir() if path.is_dir()]
    names = {path.name for path in packages if path.name != "__pycache__"}
    assert names == {"v1", "wire", "server", "client"}
    assert [path for path in packages if path.name in names and not (path / "py.typed").is_file()] == []


def test_nothing_unpickles() -> None:
    """What came from outside is never unpickled; nothing here needs to be."""
    strangers = ("pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib")
    for root in SOURCE_ROOTS:
        for name, imports in modules(root):
            assert not under(imports, *strangers), name


@pytest.mark.parametrize("side", ["server", "client"])
def test_tests_mirror_the_rooms(side: str) -> None:
    """A folder of tests that no room answers to would be one that nobody finds from the tree."""
    rooms = {path.parent.name for path in (SOURCE_ROOTS[side] / "gradwire" / side).glob("*/__init__.py")}
    tested = {path.parent.name for path in (ROOT / "tests" / side).glob("*/test_*.py")}
    assert tested <= rooms
    assert len(tested) >= len(rooms) / 2, "nothing was looked at"
