"""The checked-in generated code is what the checked-in generator makes of the checked-in contract."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.protos.buf import PROTOS

ROOT = PROTOS.parent
GENERATOR = ROOT / ".venv-stubs" / "bin" / "python"


def generated(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.glob("gradwire/v1/*_pb2*.py*")}


def test_generated_code_is_current(tmp_path: Path) -> None:
    if not GENERATOR.exists():
        reason = "there is no .venv-stubs; `make test` makes it"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    subprocess.run(
        [PROTOS / "generate.sh", tmp_path],
        env={**os.environ, "PYTHON": str(GENERATOR)},
        capture_output=True,
        check=True,
        timeout=60,
    )
    expected, found = generated(tmp_path), generated(PROTOS)
    assert sorted(found) == sorted(expected)
    stale = [name for name in expected if found[name] != expected[name]]
    assert not stale, "run `make stubs`"


def test_only_the_service_has_a_grpc_module() -> None:
    assert [path.name for path in sorted(PROTOS.rglob("*_pb2_grpc.py"))] == ["service_pb2_grpc.py"]


def test_protobuf_floor_follows_from_the_generator() -> None:
    """Generated code refuses a runtime that is older than its generator: what we declare must not be older."""
    headers = [path.read_text() for path in PROTOS.rglob("*_pb2.py")]
    versions = {
        re.search(r"^# Protobuf Python Version: (\d+)\.(\d+)\.\d+$", header, re.MULTILINE) for header in headers
    }
    assert len(headers) == 3
    assert None not in versions
    newest = max((int(match[1]), int(match[2])) for match in versions if match is not None)
    floors = re.findall(r'^  "protobuf>=(\d+)\.(\d+)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert [(int(major), int(minor)) >= newest for major, minor in floors] == [True]
