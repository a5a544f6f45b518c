"""Who gets in, by what the file says now, and for how long."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gradwire.server.access.access_file import BadAccessFile, digest_of
from gradwire.server.access.gate import Gate
from gradwire.server.access.token_edits import add_token, remove_token
from gradwire.wire.errors import InvalidSpec, Unauthenticated

SECRET = "gw_0123456789"


def entry(name: str, secret: str, *lines: str) -> str:
    more = "\n".join(lines)
    return f'[[tokens]]\nid = "{name}"\nsha256 = "{digest_of(secret)}"\ntenant = "default"\nrole = "train"\n{more}\n'


CERTIFICATE = '[[certificates]]\nsan = "worker"\ntenant = "default"\nrole = "read"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "access.toml"
    file.write_text(entry("one", SECRET) + CERTIFICATE)
    return file


def test_a_known_token_is_somebody(path: Path) -> None:
    gate = Gate(path)
    assert gate.identify(f"Bearer {SECRET}").id == "one"
    assert gate.identify(f"bearer  {SECRET} ").id == "one"


@pytest.mark.parametrize(
    "sent",
    ["", "Bearer", "Bearer ", "Basic x", SECRET, f"Bearer {SECRET}x", "Bearer \udcff", f"Bearer {digest_of(SECRET)}"],
)
def test_anything_else_is_nobody_and_is_not_repeated(path: Path, sent: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        Gate(path).identify(sent)
    assert SECRET not in str(caught.value)


def test_no_token_and_no_certificate_is_nobody(path: Path) -> None:
    with pytest.raises(Unauthenticated, match="authorization: Bearer TOKEN"):
        Gate(path).identify(None)
    with pytest.raises(Unauthenticated):
        Gate(path).identify(None, ["stranger"])


def test_a_certificate_is_somebody_until_it_ends(path: Path) -> None:
    gate = Gate(path)
    later = time.time() + 1000
    assert gate.identify(None, ["stranger", "worker"], later).until == later
    assert not gate.over(gate.identify(None, ["worker"], later))
    with pytest.raises(Unauthenticated, match="expired"):
        gate.identify(None, ["worker"], time.time() - 1)
    with pytest.raises(Unauthenticated):  # a token that is wrong is not made good by a certificate
        gate.identify("Bearer x", ["worker"], later)


def test_a_token_ends(path: Path) -> None:
    path.write_text(entry("one", SECRET, "expires = 2020-01-01T00:00:00Z"))
    with pytest.raises(Unauthenticated, match="'one' has expired"):
        Gate(path).identify(f"Bearer {SECRET}")


def test_who_is_inside_is_told_when_that_no_longer_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(entry("one", SECRET, "expires = 2100-01-01T00:00:00Z") + entry("two", "x"))
    gate = Gate(path)
    one, two = gate.identify(f"Bearer {SECRET}"), gate.identify("Bearer x")
    assert (gate.over(one), gate.over(two)) == ("", "")
    path.write_text(entry("two", "x").replace("train", "read"))
    assert gate.look()
    assert "revoked" in gate.over(one)
    assert "other things" in gate.over(two)
    path.write_text(entry("one", SECRET, "expires = 2100-01-01T00:00:00Z"))
    assert gate.look()
    assert gate.over(one) == ""
    monkeypatch.setattr(time, "time", lambda: 5e9)
    assert "expired" in gate.over(one)


def test_a_token_that_has_just_been_made_is_known_at_once(path: Path) -> None:
    gate = Gate(path)
    path.write_text(entry("one", SECRET) + entry("new", "n"))
    assert gate.identify("Bearer n").id == "new"
    assert not gate.look()  # it has been taken
    path.write_text(entry("one", SECRET))
    with pytest.raises(Unauthenticated):  # strangers do not make the file be read again and again
        gate.identify("Bearer x")
    assert gate.look()  # it had not been


def test_another_secret_under_the_same_id_revokes_the_first(path: Path) -> None:
    gate = Gate(path)
    one = gate.identify(f"Bearer {SECRET}")
    path.write_text(entry("one", "another"))
    assert gate.look()
    assert "revoked" in gate.over(one)


def test_an_end_that_is_moved_counts_for_those_who_are_inside(path: Path) -> None:
    path.write_text(entry("one", SECRET, "expires = 2100-01-01T00:00:00Z"))
    gate = Gate(path)
    one = gate.identify(f"Bearer {SECRET}")
    path.write_text(entry("one", SECRET, "expires = 2020-01-01T00:00:00Z"))
    assert gate.look()
    assert "expired" in gate.over(one)
    path.write_text(entry("one", SECRET, "expires = 2200-01-01T00:00:00Z"))
    assert gate.look()
    assert gate.over(one) == ""


def test_a_token_is_not_held_up_by_a_certificate_of_its_name(path: Path) -> None:
    same = '[[certificates]]\nsan = "one"\ntenant = "default"\nrole = "train"\n'
    path.write_text(entry("one", SECRET) + same)
    gate = Gate(path)
    token, certificate = gate.identify(f"Bearer {SECRET}"), gate.identify(None, ["one"])
    path.write_text(same)
    assert gate.look()
    assert "revoked" in gate.over(token)
    assert gate.over(certificate) == ""


@pytest.mark.parametrize("text", ["[tenants.q]\nruns = " + "1" * 5000, "a = " + "[" * 50_000, "a = [" * 20_000])
def test_what_the_reader_of_toml_chokes_on_is_a_bad_file_like_others(path: Path, text: str) -> None:
    gate = Gate(path)
    path.write_text(text)
    assert not gate.look()
    assert "no TOML" in gate.error
    path.write_text("# none")
    assert gate.look()


def test_a_fifo_is_not_waited_for(path: Path) -> None:
    gate = Gate(path)
    path.unlink()
    os.mkfifo(path)
    assert not gate.look()
    assert gate.error == "it is no file"


def test_a_longer_life_revokes_nobody(path: Path) -> None:
    gate = Gate(path)
    one = gate.identify(f"Bearer {SECRET}")
    path.write_text(entry("one", SECRET, "expires = 2100-01-01T00:00:00Z"))
    assert gate.look()
    assert gate.over(one) == ""


@pytest.mark.parametrize("what", ["missing", "directory", "malformed", "binary"])
def test_a_file_that_cannot_be_taken_leaves_all_as_it_was(path: Path, what: str) -> None:
    gate = Gate(path)
    path.unlink()
    if what == "directory":
        path.mkdir()
    elif what == "malformed":
        path.write_text(entry("other", "y") + "[[tokens]]\n")
    elif what == "binary":
        path.write_bytes(b"\xff\xfe")
    assert not gate.look()
    assert gate.error
    assert gate.identify(f"Bearer {SECRET}").id == "one"
    with pytest.raises(Unauthenticated):
        gate.identify("Bearer y")
    if what == "directory":
        path.rmdir()
    path.write_text(entry("one", SECRET) + CERTIFICATE)
    gate.look()
    assert gate.error == ""


@pytest.mark.parametrize("text", ["# nobody", "[tenants.x]"])
def test_a_file_without_tokens_turns_all_away(path: Path, text: str) -> None:
    gate = Gate(path)
    one = gate.identify(f"Bearer {SECRET}")
    path.write_text(text)
    assert gate.look()
    assert "revoked" in gate.over(one)
    path.write_text("")  # there is nobody left to be turned away
    assert gate.look()


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_an_empty_file_is_a_truncated_one(path: Path, text: str) -> None:
    gate = Gate(path)
    path.write_text(text)
    assert not gate.look()
    assert gate.error.startswith("it is empty")
    assert gate.identify(f"Bearer {SECRET}").id == "one"


def test_who_takes_the_last_token_away_means_it(tmp_path: Path) -> None:
    path = tmp_path / "edited.toml"
    secret = add_token(path, "only", "default", "train")
    gate = Gate(path)
    only = gate.identify(f"Bearer {secret}")
    remove_token(path, "only")
    assert gate.look()
    assert "revoked" in gate.over(only)


def test_a_tenant_without_a_table_is_refused_by_name(path: Path) -> None:
    gate = Gate(path)
    gate.require_tenant("default")
    with pytest.raises(InvalidSpec, match=r"no tenant 'lbas'; expected a table \[tenants\.lbas\]"):
        gate.require_tenant("lbas")


def test_a_link_that_is_turned_counts_though_its_target_is_older(path: Path, tmp_path: Path) -> None:
    """As Kubernetes swaps the files of a secret."""
    new = tmp_path / "new.toml"
    new.write_text(entry("two", "x"))
    os.utime(new, (1, 1))
    link = tmp_path / "link"
    link.symlink_to(path)
    gate = Gate(link)
    turned = tmp_path / "turned"
    turned.symlink_to(new)
    turned.rename(link)
    assert gate.look()
    assert gate.identify("Bearer x").id == "two"


def test_there_is_no_beginning_without_a_good_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Gate(tmp_path / "missing")
    (tmp_path / "bad").write_text("[")
    with pytest.raises(BadAccessFile):
        Gate(tmp_path / "bad")
