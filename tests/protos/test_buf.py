"""The contract is lint-clean, commented, and compatible with the checked-in image; and the checks that say so bite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.protos.buf import IMAGE, PROTOS, buf, copy_of_protos, replace


def test_contract_passes_lint() -> None:
    result = buf(PROTOS, "lint")
    assert result.returncode == 0, result.stdout + result.stderr


def test_contract_is_compatible_with_the_checked_in_image() -> None:
    result = buf(PROTOS, "breaking", "--against", IMAGE.name)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_unchanged_copy_passes(tmp_path: Path) -> None:
    """So that the tests below fail for the change they make, not for the copy."""
    root = copy_of_protos(tmp_path)
    assert buf(root, "lint").returncode == 0
    assert buf(root, "breaking", "--against", str(IMAGE)).returncode == 0


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("run", "repeated uint64 shape = 2;", "repeated uint64 shape = 3;"),
        ("run", "optional double eps = 4;", "optional float eps = 4;"),
        ("run", "ENCODING_FLOAT16 = 4;", "ENCODING_FLOAT16 = 6;"),
        ("run", "string server_instance = 8;", "string instance = 8;"),
        ("train", "uint64 last_sequence = 2;", "string last_sequence = 2;"),
        ("train", "bool repeated = 6;", "reserved 6;"),
        ("service", "string page_token = 2;", "string page_token = 7;"),
        ("service", "rpc GetRun(GetRunRequest)", "rpc ReadRun(GetRunRequest)"),
    ],
    ids=["renumbered", "other type", "enum value", "renamed (JSON)", "train", "deleted", "service", "method"],
)
def test_breaking_check_bites(tmp_path: Path, name: str, old: str, new: str) -> None:
    """Also on the image's contents: an image that lacked a file would let everything in it pass."""
    root = copy_of_protos(tmp_path)
    replace(root, name, old, new)
    assert buf(root, "build").returncode == 0, "the change must be valid in itself"
    result = buf(root, "breaking", "--against", str(IMAGE))
    assert result.returncode != 0
    assert f"gradwire/v1/{name}.proto" in result.stdout


def test_adding_a_field_breaks_nothing(tmp_path: Path) -> None:
    root = copy_of_protos(tmp_path)
    replace(root, "run", "  bytes data = 2;", "  bytes data = 2;\n  // New.\n  uint32 checksum = 3;")
    result = buf(root, "breaking", "--against", str(IMAGE))
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("name", "declaration"),
    [
        ("run", "message Tensor {"),
        ("run", "  repeated uint64 shape = 2;"),
        ("run", "  optional double low = 12;"),
        ("run", "enum Dtype {"),
        ("run", "  DTYPE_FLOAT64 = 2;"),
        ("run", "    SCHEDULE_CONSTANT = 1;"),
        ("run", "  oneof optimizer {"),
        ("train", "    Attach attach = 1;"),
        ("service", "service OptimizerService {"),
        ("service", "  rpc GetRun(GetRunRequest) returns (GetRunResponse);"),
    ],
)
def test_every_kind_of_declaration_needs_a_comment(tmp_path: Path, name: str, declaration: str) -> None:
    root = copy_of_protos(tmp_path)
    path = root / "gradwire/v1" / f"{name}.proto"
    text = path.read_text()
    bare, count = re.subn(rf"(?:^ *//.*\n)+(?={re.escape(declaration)}$)", "", text, flags=re.MULTILINE)
    assert count == 1
    path.write_text(bare)
    result = buf(root, "lint")
    assert result.returncode != 0
    assert "comment" in result.stdout


def test_packages_and_paths_agree() -> None:
    """``gradwire/v1`` is package ``gradwire.v1`` in the contract and in Python."""
    for path in PROTOS.rglob("*.proto"):
        package = ".".join(path.parent.relative_to(PROTOS).parts)
        assert f"package {package};" in path.read_text()
        assert (path.parent / "py.typed").exists()
