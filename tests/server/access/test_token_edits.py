"""``gradwire tokens`` edits the file whole, and keeps what is around."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gradwire.server.access.access_file import digest_of, parse_access_list
from gradwire.server.access.token_edits import add_token
from gradwire.server.cli.commands import cli


def tokens(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["tokens", *arguments])


def created(path: Path, name: str, *options: str) -> str:
    done = tokens("create", name, "--file", str(path), "--role", "train", *options)
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_a_token_is_made_shown_once_listed_and_revoked(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    secret = created(
        path, "phone-7", "--tenant", "lab", "--days", "30", "--runs", "a-*", "--runs", "b", "--workers", "w"
    )
    assert len(secret.split()) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret not in path.read_text()
    who = parse_access_list(path.read_bytes()).tokens[digest_of(secret)]
    assert (who.tenant, who.role.name, who.id, who.runs, who.workers) == (
        "lab",
        "TRAIN",
        "phone-7",
        ("a-*", "b"),
        ("w",),
    )
    listed = tokens("list", "--file", str(path)).output
    assert "phone-7" in listed
    assert "a-* b" in listed
    assert secret not in listed
    assert tokens("revoke", "phone-7", "--file", str(path)).exit_code == 0
    assert not parse_access_list(path.read_bytes()).tokens
    again = tokens("revoke", "phone-7", "--file", str(path))
    assert again.exit_code == 1
    assert "there is no token 'phone-7'" in again.output


def test_secrets_have_256_bits_and_differ(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    secrets = {created(path, f"t{number}") for number in range(3)}
    assert len(secrets) == 3
    assert all(len(secret) >= 43 + len("gw_") for secret in secrets)


def test_what_is_around_stays(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text("# ours\n[tenants.lab]  # the lab\n\n[[certificates]]\nsan = 'x'\ntenant = 'lab'\nrole = 'read'\n")
    path.chmod(0o640)
    created(path, "one", "--tenant", "lab")
    text = path.read_text()
    assert "# ours\n[tenants.lab]  # the lab" in text
    assert parse_access_list(text.encode()).certificates
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(os.getuid() != 0, reason="files are given away by root alone")
def test_the_owner_stays_the_server_may_be_another_user(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    created(path, "one")
    os.chown(path, 10001, 10002)
    created(path, "two")
    assert tokens("revoke", "one", "--file", str(path)).exit_code == 0
    assert (path.stat().st_uid, path.stat().st_gid) == (10001, 10002)


@pytest.mark.parametrize("text", ["tokens = []\n", "tenants = {lab = {}}\n"])
def test_a_form_that_is_not_edited_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "access.toml"
    path.write_text(text)
    done = tokens("create", "one", "--role", "train", "--tenant", "physics", "--file", str(path))
    assert (done.exit_code == 0) == ("physics" in path.read_text())
    if done.exit_code:
        assert "in a form that is not edited; expected [[tokens]], [tenants.T]" in done.output
        assert path.read_text() == text


@pytest.mark.parametrize("days", ["0", "-1", "nan", "inf", "1e9"])
def test_days_are_a_number_of_days(tmp_path: Path, days: str) -> None:
    path = tmp_path / "access.toml"
    done = tokens("create", "one", "--role", "train", "--days", days, "--file", str(path))
    assert done.exit_code == 2
    assert "is no number of days" in done.output
    assert not path.exists()


def test_a_link_stays_one(tmp_path: Path) -> None:
    path, link = tmp_path / "access.toml", tmp_path / "link"
    path.write_text("")
    link.symlink_to(path)
    created(link, "one")
    assert link.is_symlink()
    assert "one" in path.read_text()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["create", "one", "--role", "train"], "the same id of tokens stands there twice: one"),
        (["create", "o e", "--role", "train"], "id is 'o e'"),
        (["create", "two", "--role", "train", "--tenant", "A"], "tenant 'A'; expected"),
        (["create", "two", "--role", "owner"], "'owner' is not one of"),
        (["create", "two"], "Missing option '--role'"),
        (["revoke", "two"], "there is no token 'two'"),
    ],
)
def test_what_cannot_be_leaves_the_file_as_it_was(tmp_path: Path, options: list[str], why: str) -> None:
    path = tmp_path / "access.toml"
    created(path, "one")
    before = path.read_bytes()
    done = tokens(*options, "--file", str(path))
    assert done.exit_code != 0
    assert why in done.output
    assert path.read_bytes() == before


def test_a_malformed_file_is_not_added_to(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text("[[tokens]]\n")
    done = tokens("create", "one", "--role", "train", "--file", str(path))
    assert done.exit_code == 1
    assert f"{path}: token 1 has no id" in done.output
    assert path.read_text() == "[[tokens]]\n"


def test_editors_do_not_lose_each_others_tokens(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    with ThreadPoolExecutor(4) as pool:
        secrets = list(pool.map(lambda number: add_token(path, f"t{number}", "lab", "read"), range(12)))
    assert set(parse_access_list(path.read_bytes()).tokens) == set(map(digest_of, secrets))
