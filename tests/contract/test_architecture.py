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
EDGE = {"__main__", "cli", "runs_cli", "app", "service", "exchange", "snapshot_calls", "calls", "guard"}
"""The server's modules that know gRPC. Every other one, a new one too, is domain code and must not."""

CODEC = {"codec"}
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


def domain_modules() -> list[str]:
    names = [name for name, _ in modules("server")]
    return [name for name in names if name.removeprefix("gradwire.server.") not in EDGE | CODEC]


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


def test_domain_code_imports_no_grpc_and_no_messages() -> None:
    strangers = ("grpc", "grpc_health", "grpc_reflection", "gradwire.v1")
    found = dict(modules("server"))
    domain = domain_modules()
    assert {"gradwire.server.run", "gradwire.server.session", "gradwire.server.devices.cpu"} <= set(domain)
    assert {name: bad for name in domain if (bad := under(found[name], *strangers))} == {}


def test_codec_knows_messages_but_no_service() -> None:
    found = dict(modules("server"))["gradwire.server.codec"]
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
    assert not under(loaded, "torch", "numba", "llvmlite", "click", "gradwire.server", "matplotlib", "rich")


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
