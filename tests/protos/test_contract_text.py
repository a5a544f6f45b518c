"""What the .proto files tell those who have nothing else: each refusal, each limit. The code says the same."""

from __future__ import annotations

import re

import pytest
from google.rpc import code_pb2

from gradwire.server.config import ServerConfig
from gradwire.server.engine.shared import MAX_WORKERS
from gradwire.server.engine.workers import MAX_ID_BYTES
from gradwire.server.rpc.series_calls import MOST_BUCKETS, SERIES_A_MESSAGE
from gradwire.server.runs.run_table import MAX_PAGE
from gradwire.server.store.base import MAX_ENTRY_BYTES
from gradwire.v1 import service_pb2
from gradwire.wire.encoding import MAX_ROW_BYTES
from gradwire.wire.errors import DOMAIN, MAX_METADATA_BYTES, STATUS_DETAILS_KEY, TABLE
from gradwire.wire.layout import MAX_DIMENSIONS, MAX_ELEMENTS, MAX_TENSOR_NAME_BYTES, MAX_TENSORS
from gradwire.wire.series import MAX_BUCKETS, MAX_NAME_BYTES, MAX_SERIES, OWN_SERIES
from gradwire.wire.service import MAX_MESSAGE_BYTES, SERVICE_NAME
from tests.protos.buf import PROTOS

TEXT = {path.stem: path.read_text() for path in (PROTOS / "gradwire/v1").glob("*.proto")}
ROW = re.compile(r"^//   ([A-Z_]+) +([A-Z_]+) +(true|false|any) +(no|later|attach) +(\S.*)$", re.MULTILINE)
ROWS = ROW.findall(TEXT["service"])


def prose(name: str) -> str:
    """The file without the comment signs and line ends."""
    return re.sub(r"\s*\n\s*(?://)? *", " ", TEXT[name])


def test_each_refusal_stands_in_the_contract_once_with_its_code_and_nothing_else_does() -> None:
    assert sorted(row[0] for row in ROWS) == sorted(TABLE)
    for reason, code, *_ in ROWS:
        assert code == code_pb2.Code.Name(TABLE[reason].code), reason


def test_the_service_is_called_what_both_sides_say() -> None:
    assert service_pb2.DESCRIPTOR.services_by_name["OptimizerService"].full_name == SERVICE_NAME


def test_what_may_pass_by_itself_is_what_the_client_tries_again() -> None:
    """DRAINING and STARTING; the others with "later" wait for people."""
    later = {row[0] for row in ROWS if row[3] == "later"}
    assert (
        {"DRAINING", "STARTING"}
        <= later
        <= {"DRAINING", "STARTING", "RUN_BUSY", "LEADER_BUSY", "MEMORY_LIMIT_EXCEEDED", "STORAGE_FULL"}
    )
    for reason, code, applied, *_ in ROWS:
        if code == "INVALID_ARGUMENT":
            assert applied == "false", reason


def test_reasons_that_are_named_elsewhere_exist() -> None:
    named = {
        word
        for name in TEXT
        for word in re.findall(r"(?:reason|refused with(?: reason)?) ([A-Z]+_?[A-Z_]+)\b", prose(name))
    }
    assert "SEQUENCE_MISMATCH" in named
    assert named <= {*TABLE, "FAILED_PRECONDITION"}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("service", f"No request may be larger than {MAX_MESSAGE_BYTES // 2**20} MiB"),
        ("service", f"at most {MAX_TENSORS:,} tensors and {MAX_ELEMENTS:,} elements"),
        ("service", f'with domain "{DOMAIN}"'),
        ("service", f"trailing metadata `{STATUS_DETAILS_KEY}`"),
        ("service", f"`metadata`, at most {MAX_METADATA_BYTES // 2**10} KiB"),
        ("service", f"grpc.health.v1.Health answers for `{SERVICE_NAME}`"),
        ("service", f"probes an idle connection every {ServerConfig().keepalive_seconds:g} s (--keepalive)"),
        ("service", f"has not been answered for {2 * ServerConfig().keepalive_seconds:g} s"),
        ("service", f"did not read for {ServerConfig().stall_timeout_seconds:g} s (--stall-timeout)"),
        ("service", f"caps it at {MAX_PAGE:,}"),
        ("service", f"not empty, at most {MAX_ID_BYTES} bytes. If the run exists"),
        ("train", f"not empty, at most {MAX_ID_BYTES} bytes. The same worker"),
        ("train", f"of each of {MAX_WORKERS:,} workers"),
        ("train", f"stay at or below {MAX_ROW_BYTES // 2**20} MiB;"),
        ("train", f"stay at or below {MAX_ENTRY_BYTES // 2**20} MiB."),
        ("train", f"1 to {MAX_NAME_BYTES} bytes of printable characters"),
        ("train", f"A run has at most {MAX_SERIES} series, of which {OWN_SERIES} places"),
        ("train", f"At most {MAX_SERIES - OWN_SERIES}, each name once"),
        ("train", f"At most {MAX_BUCKETS:,}: one for each of `block_steps`"),
        ("service", f"Of more than {SERIES_A_MESSAGE} series at once there are fewer buckets, {MOST_BUCKETS:,} in all"),
        ("run", f"not empty, at most {MAX_TENSOR_NAME_BYTES} bytes"),
        ("run", f"At most {MAX_DIMENSIONS}."),
    ],
)
def test_limits_are_those_of_the_code(name: str, sentence: str) -> None:
    assert prose(name).count(sentence) == 1
