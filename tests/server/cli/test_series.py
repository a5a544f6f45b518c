"""``gradwire runs series`` against a live server."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from gradwire.client import AMSGrad, connect
from gradwire.server.cli.commands import cli
from tests.faults.hosted import HostedServer

LOSSES = [0.5, math.nan, 0.25, math.inf]


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedServer]:
    with HostedServer() as server, connect(server.target) as connection:
        with connection.create_run("x", {"w": np.ones(2)}, AMSGrad()) as run:
            for loss in LOSSES:
                run.step({"w": np.ones(2)}, log={"loss": loss, "val, loss": 1.0, "val; loss": 2.0})
        yield server


def series(hosted: HostedServer, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["runs", "series", "x", "--target", hosted.target, *arguments])
    assert result.exit_code == code, result.output
    return result


def test_csv_has_a_line_for_each_bucket(hosted: HostedServer) -> None:
    rows = list(csv.DictReader(series(hosted).stdout.splitlines()))
    assert {row["series"] for row in rows} >= {"loss", "val, loss", "gradient_norm", "lr"}
    found = [row for row in rows if row["series"] == "loss"]
    assert [(int(row["first_step"]), row["bucket_steps"], row["count"]) for row in found] == [
        (step, "1", "1") for step in range(1, 5)
    ]
    np.testing.assert_array_equal([float(row["last"]) for row in found], LOSSES)


def test_json_is_written_whole_to_a_file(hosted: HostedServer, tmp_path: Path) -> None:
    arguments = ("--name", "loss", "--format", "json", "--out", str(tmp_path / "x.json"), "--from-step", "2")
    assert series(hosted, *arguments).stdout == ""
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["step"] == 4
    assert [each["name"] for each in found["series"]] == ["loss"]
    assert found["series"][0]["first"] == ["NaN", 0.25, "Infinity"]
    assert found["series"][0]["first_step"] == [2, 3, 4]


def test_a_resolution_puts_neighbours_together(hosted: HostedServer) -> None:
    rows = list(csv.DictReader(series(hosted, "--name", "val, loss", "--resolution", "3").stdout.splitlines()))
    assert [(row["first_step"], row["bucket_steps"], row["count"]) for row in rows] == [
        ("0", "2", "1"),
        ("2", "2", "2"),
        ("4", "2", "1"),
    ]


def events_in(file: Path) -> Iterator[Any]:
    """As TensorFlow's files have them."""
    from tensorboardX.proto.event_pb2 import Event

    data, at = file.read_bytes(), 0
    while at < len(data):  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[at : at + 8], "little")
        yield Event.FromString(data[at + 12 : at + 12 + size])
        at += 16 + size


def values_in(file: Path) -> list[tuple[int, str, float]]:
    """Step, tag and value of each."""
    return [(event.step, value.tag, value.simple_value) for event in events_in(file) for value in event.summary.value]


def test_events_of_tensorboard_hold_the_means(
    hosted: HostedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = series(hosted, "--name", "loss", "--format", "tensorboard", "--out", str(tmp_path))
    assert (said.stdout, said.stderr) == (f"wrote 1 series to {tmp_path}\n", "")
    (file,) = tmp_path.iterdir()
    found = values_in(file)
    assert [(step, tag) for step, tag, _ in found] == [(step, "loss") for step in range(1, 5)]
    np.testing.assert_array_equal([value for *_, value in found], LOSSES)
    assert not [record for record in caplog.records if record.name.startswith("tensorboardX")], "NaN is a value"


def test_no_two_series_become_one_for_tensorboard(hosted: HostedServer, tmp_path: Path) -> None:
    series(hosted, "--name", "val, loss", "--name", "val; loss", "--format", "tensorboard", "--out", str(tmp_path))
    (file,) = tmp_path.iterdir()
    assert sorted(values_in(file)) == [
        (step, tag, value) for step in range(1, 5) for tag, value in (("val, loss", 1.0), ("val; loss", 2.0))
    ]


def test_what_older_files_of_a_directory_say_is_dropped(hosted: HostedServer, tmp_path: Path) -> None:
    """By the mark with which TensorFlow begins anew at a step: TensorBoard drops what it has of that one and later."""
    series(hosted, "--name", "loss", "--format", "tensorboard", "--out", str(tmp_path))
    (file,) = tmp_path.iterdir()
    version, begin, first, *_ = events_in(file)
    assert version.file_version == "brain.Event:2", "older ones are dropped by other rules"
    assert (begin.step, begin.session_log.status) == (0, begin.session_log.START)
    assert first.summary.value[0].tag == "loss"


def test_a_full_disk_is_said_and_leaves_nothing(
    hosted: HostedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboardX import RecordWriter

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "flush", full)
    result = series(hosted, "--format", "tensorboard", "--out", str(tmp_path / "new"), code=1)
    assert "No space left on device" in f"{result.exception}{result.stderr}"
    assert list((tmp_path / "new").iterdir()) == []


def test_without_tensorboardx_it_is_named(
    hosted: HostedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    result = series(hosted, "--format", "tensorboard", "--out", str(tmp_path), code=1)
    assert "pip install 'gradwire[tensorboard]'" in result.stderr
    assert "--out DIRECTORY" in series(hosted, "--format", "tensorboard", code=2).stderr


def test_a_series_that_is_not_there_is_named(hosted: HostedServer) -> None:
    result = series(hosted, "--name", "los", code=1)
    assert "x has no series los; it has " in result.stderr
