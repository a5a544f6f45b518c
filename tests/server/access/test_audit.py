"""The audit log: a line for each call, wherever the file has gone meanwhile, and never in anybody's way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gradwire.server.access import audit
from gradwire.server.access.audit import AuditLog
from gradwire.server.access.identity import Identity, Role

WHO = Identity("lab", Role.TRAIN, "phone")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_did_what(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(path)
    log.note(WHO, "ipv4:127.0.0.1:5", "GetRun", "tenants/lab/runs/x", "")
    log.note(None, "unix:", "GetRun", "", "UNAUTHENTICATED")
    log.close()
    first, second = lines(path)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "tenant": "lab", "id": "phone", "role": "train", "peer": "ipv4:127.0.0.1:5", "action": "GetRun",
        "resource": "tenants/lab/runs/x", "outcome": "ok", "reason": "",
    }  # fmt: skip
    assert (second["tenant"], second["outcome"], second["reason"]) == ("", "refused", "UNAUTHENTICATED")


def test_lines_are_added_to_a_file_that_others_may_not_read(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    for _ in range(2):
        log = AuditLog(path)
        log.note(WHO, "", "GetRun", "", "")
        log.close()
    assert len(lines(path)) == 2
    assert path.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_is_rotated_is_opened_anew(tmp_path: Path, replaced: bool) -> None:
    path, old = tmp_path / "audit", tmp_path / "audit.1"
    log = AuditLog(path)
    log.note(WHO, "", "first", "", "")
    while not old.exists():
        if path.read_text():
            os.rename(path, old)
    if replaced:
        path.touch()
    log.note(WHO, "", "second", "", "")
    log.close()
    assert [line["action"] for line in lines(old)] == ["first"]
    assert [line["action"] for line in lines(path)] == ["second"]


def test_lines_that_cannot_be_written_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    log = AuditLog(directory / "audit")
    (directory / "audit").unlink()
    directory.rmdir()
    for _ in range(3):
        log.note(WHO, "", "GetRun", "", "")
    log.close()
    assert log.lost == 3
    assert caplog.text.count("cannot be written") == 1


def test_a_full_disk_does_not_keep_the_server_from_ending(caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog(Path("/dev/full"))
    log.note(WHO, "", "GetRun", "", "")
    log.close()
    assert log.lost == 1
    assert "No space left" in caplog.text


def test_each_outage_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    log = AuditLog(directory / "audit")
    for outage in (1, 2):
        directory.rename(tmp_path / "moved")
        for _ in range(2):
            log.note(WHO, "", "lost", "", "")
        while log.lost < 2 * outage:
            pass
        (tmp_path / "moved").rename(directory)
        log.note(WHO, "", f"kept {outage}", "", "")
        while f"kept {outage}" not in (directory / "audit").read_text():
            pass
    log.close()
    assert caplog.text.count("cannot be written") == 2


def test_long_names_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(path)
    log.note(WHO, "", "GetRun", "x" * 10_000_000, "RUN_NOT_FOUND")
    log.close()
    assert path.stat().st_size < 1000


def test_lines_that_nobody_takes_in_time_are_counted_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_WAITING", 2)
    monkeypatch.setattr(AuditLog, "_write", lambda log: None)
    log = AuditLog(tmp_path / "audit")
    for _ in range(5):
        log.note(WHO, "", "GetRun", "", "")
    assert log.lost == 3
    log._file.close()


def test_there_is_no_log_where_none_can_be(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory"):
        AuditLog(tmp_path)
