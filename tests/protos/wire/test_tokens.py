"""Where a client's token comes from, and to whom it may go."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from gradwire.wire.tls import TLS
from gradwire.wire.tokens import MAX_SECRET_CHARACTERS, TokenSource, token_variable, tokens_to

TARGET = "Host.example:50051"
SECRET = "s3cret-of-the-test"


class Place:
    """The environment and the user's folder of one test."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = patch
        for name in ("GRADWIRE_TOKEN", "GRADWIRE_TOKEN_FILE"):
            patch.delenv(name, raising=False)
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        self.user_file = folder / "config" / "gradwire" / "tokens.toml"
        self.file = folder / "token"

    def put(self, path: Path, content: str | bytes) -> None:
        """In place of what was there, as a whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(".new")
        new.write_bytes(content.encode() if isinstance(content, str) else content)
        new.replace(path)

    def name_file(self, content: str | bytes) -> None:
        self.put(self.file, content)
        self.patch.setenv("GRADWIRE_TOKEN_FILE", str(self.file))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_the_first_that_says_something_counts(place: Place) -> None:
    assert TokenSource(TARGET).secret is None
    place.put(place.user_file, f'[targets]\n"{TARGET}" = "of-the-user"\n"other:1" = "of-another"\n')
    assert TokenSource(TARGET).secret == "of-the-user"
    place.name_file("of-the-file")
    assert TokenSource(TARGET).secret == "of-the-file"
    place.patch.setenv("GRADWIRE_TOKEN", "of-the-environment")
    assert TokenSource(TARGET).secret == "of-the-environment"
    assert TokenSource(TARGET, "of-the-caller").secret == "of-the-caller"
    for name in ("GRADWIRE_TOKEN", "GRADWIRE_TOKEN_FILE"):
        place.patch.setenv(name, "")
    assert TokenSource(TARGET).secret == "of-the-user", "what is empty is not set"
    assert token_variable() is None


def test_calls_carry_it_as_a_bearer_token(place: Place) -> None:
    assert TokenSource(TARGET).metadata() == ()
    assert TokenSource(TARGET, SECRET).metadata() == (("authorization", f"Bearer {SECRET}"),)


def test_a_file_may_end_with_a_line(place: Place) -> None:
    place.name_file(f"\n {SECRET}\r\n")
    assert TokenSource(TARGET).secret == SECRET


@pytest.mark.parametrize(
    ("target", "key"),
    [
        (TARGET, "host.EXAMPLE:50051"),
        (TARGET, "dns:///host.example:50051"),
        ("[::1]:7", "ipv6:[::1]:7"),
        ("unix:/run/gradwire", "unix:///run/gradwire"),
        ("unix:///run/gradwire", "unix:/run/gradwire"),
        ("unix-abstract:gradwire", "unix-abstract:gradwire"),
    ],
)
def test_a_target_is_known_by_each_of_its_spellings(place: Place, target: str, key: str) -> None:
    place.put(place.user_file, f'[targets]\n"{key}" = "{SECRET}"\n')
    assert TokenSource(target).secret == SECRET


@pytest.mark.parametrize("target", ["host.example:50052", "host:50051", "unix:/host.example:50051", "unix:/Run"])
def test_a_token_is_for_no_other_target(place: Place, target: str) -> None:
    place.put(place.user_file, f'[targets]\n"{TARGET}" = "{SECRET}"\n"unix:/run" = "{SECRET}"\n')
    assert TokenSource(target).secret is None


def test_without_a_folder_of_configurations_it_is_that_of_the_home(place: Place) -> None:
    home = place.folder / "home"
    place.put(home / ".config" / "gradwire" / "tokens.toml", f'[targets]\n"{TARGET}" = "{SECRET}"\n')
    place.patch.setenv("HOME", str(home))
    for folder in ("", "relative"):
        place.patch.setenv("XDG_CONFIG_HOME", folder)
        assert TokenSource(TARGET).secret == SECRET


def test_what_changes_is_read_again(place: Place) -> None:
    place.name_file("first")
    tokens = TokenSource(TARGET)
    assert (tokens.secret, tokens.generation) == ("first", 0)
    place.put(place.file, "second")
    assert (tokens.secret, tokens.generation) == ("second", 1)
    assert not tokens.is_newer_than(1)
    place.put(place.file, "third")
    assert tokens.is_newer_than(1)
    place.put(place.file, "third\n")
    assert not tokens.is_newer_than(2), "it is the same one"
    place.patch.setenv("GRADWIRE_TOKEN", "fourth")
    assert (tokens.secret, tokens.generation) == ("fourth", 3)


def test_a_change_that_its_stamp_does_not_show_is_found_by_who_was_refused(place: Place) -> None:
    place.name_file("first")
    times = place.file.stat()
    tokens = TokenSource(TARGET)
    with place.file.open("r+") as same:
        same.write("again")
    os.utime(place.file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert tokens.secret == "first"
    assert tokens.is_newer_than(0)
    assert tokens.secret == "again"


def test_a_file_of_the_user_may_come_later(place: Place) -> None:
    tokens = TokenSource(TARGET)
    assert tokens.secret is None
    place.put(place.user_file, f'[targets]\n"{TARGET}" = "{SECRET}"\n')
    assert tokens.is_newer_than(0)
    assert tokens.secret == SECRET


@pytest.mark.parametrize("change", ["empty", "two lines", "gone", "a folder", "a pipe"])
def test_what_is_half_written_leaves_the_token_as_it_was(place: Place, change: str) -> None:
    place.name_file("first")
    tokens = TokenSource(TARGET)
    place.file.unlink()
    if change in ("empty", "two lines"):
        place.file.write_text("" if change == "empty" else "sec\nond")
    elif change == "a folder":
        place.file.mkdir()
    elif change == "a pipe":
        os.mkfifo(place.file)  # whoever opened it would wait
    assert not tokens.is_newer_than(0)
    assert tokens.secret == "first"
    if change == "a folder":
        place.file.rmdir()
    place.put(place.file, "second")
    assert tokens.secret == "second"


def test_a_user_who_forgets_a_target_keeps_the_connections_to_it(place: Place) -> None:
    place.put(place.user_file, f'[targets]\n"{TARGET}" = "{SECRET}"\n')
    tokens = TokenSource(TARGET)
    place.user_file.unlink()
    assert tokens.secret == SECRET
    assert TokenSource(TARGET).secret is None


def user(text: str | bytes) -> Callable[[Place], None]:
    return lambda place: place.put(place.user_file, text)


def file(text: str | bytes) -> Callable[[Place], None]:
    return lambda place: place.name_file(text)


def variable(name: str, text: str) -> Callable[[Place], None]:
    return lambda place: place.patch.setenv(name, text)


NAMED = "the file that GRADWIRE_TOKEN_FILE names"

MALFORMED: list[tuple[Callable[[Place], None], type[Exception], str]] = [
    (variable("GRADWIRE_TOKEN", f"{SECRET} x"), ValueError, r"^GRADWIRE_TOKEN is no token; expected one line"),
    (variable("GRADWIRE_TOKEN", f"{SECRET}\u00e9"), ValueError, r"^GRADWIRE_TOKEN is no token"),
    (variable("GRADWIRE_TOKEN", " "), ValueError, r"^GRADWIRE_TOKEN is empty"),
    (variable("GRADWIRE_TOKEN", SECRET * 500), ValueError, rf"expected a token of at most {MAX_SECRET_CHARACTERS}$"),
    # some day it will be the token itself
    (variable("GRADWIRE_TOKEN_FILE", SECRET), FileNotFoundError, f"{NAMED} cannot be read: No such file"),
    (variable("GRADWIRE_TOKEN_FILE", "/"), IsADirectoryError, f"{NAMED} cannot be read: Is a"),
    (variable("GRADWIRE_TOKEN_FILE", "/dev/zero"), ValueError, r"GRADWIRE_TOKEN_FILE names is larger than"),
    (file(""), ValueError, r"GRADWIRE_TOKEN_FILE names is empty"),
    (file(f"{SECRET}\n{SECRET}\n"), ValueError, r"GRADWIRE_TOKEN_FILE names is no token"),
    (file(SECRET.encode() + b"\xff\x00"), ValueError, r"GRADWIRE_TOKEN_FILE names is no token"),
    (user(f"[targets]\n{TARGET} = {SECRET}\n"), ValueError, r"tokens.toml is no TOML \(at line 2, column \d+\)$"),
    (user(f'[targets]\n"{TARGET}" = {SECRET}\n'), ValueError, r"tokens.toml is no TOML \(at line 2, column \d+\)$"),
    (user(f'[targets]\n"{TARGET}" = "{SECRET}'), ValueError, r"tokens.toml is no TOML \(at end of document\)$"),
    (user(SECRET.encode() + b"\xff"), ValueError, r"tokens.toml is no TOML \(it is not UTF-8\)$"),
    (user(f'"{TARGET}" = "{SECRET}"\n'), ValueError, r"tokens.toml has no table \[targets\]"),
    (user(f'targets = "{SECRET}"\n'), ValueError, r"tokens.toml has no table \[targets\]"),
    (user(f'[targets]\n"{TARGET}" = ["{SECRET}"]\n'), ValueError, r"is of type list; expected a token in quotes$"),
    (user(f'[targets]\n"{TARGET}" = "{SECRET} "\n'), ValueError, r"has for 'Host.example:50051' is no token"),
    (
        user(f'[targets]\n"{TARGET}" = "{SECRET}"\n"{TARGET.lower()}" = "{SECRET}"\n'),
        ValueError,
        r"tokens.toml names Host.example:50051 2 times",
    ),
]


@pytest.mark.parametrize(("given", "kind", "message"), MALFORMED)
def test_what_is_malformed_is_refused_without_being_shown(
    place: Place,
    caplog: pytest.LogCaptureFixture,
    given: Callable[[Place], None],
    kind: type[Exception],
    message: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    given(place)
    with pytest.raises(kind, match=message) as caught:
        TokenSource(TARGET)
    assert SECRET not in shown(caught.value) + caplog.text


@pytest.mark.parametrize("token", ["", f"{SECRET}\n", f" {SECRET}", f"{SECRET}\x00", "\u00e9"])
def test_a_token_of_the_caller_s_is_taken_as_it_is_or_not_at_all(token: str) -> None:
    with pytest.raises(ValueError, match=r"^token is (empty|no token)") as caught:
        TokenSource(TARGET, token)
    assert SECRET not in shown(caught.value)


def shown(error: BaseException) -> str:
    """All that a traceback or a debugger would show of an exception, and of those that it came from."""
    chain: list[BaseException | None] = [error, error.__cause__, error.__context__]
    words = [f"{link!s}{link!r}{vars(link)}" for link in chain if link is not None]
    return "".join([*words, *traceback.format_exception_only(error)])


def test_no_token_in_the_words_for_its_source(place: Place) -> None:
    assert repr(TokenSource(TARGET, SECRET)) == f"TokenSource('{TARGET}', a token)"
    assert repr(TokenSource(TARGET)) == f"TokenSource('{TARGET}', no token)"


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/run/x"])
def test_on_this_host_tls_is_spoken_where_it_is_asked_for(place: Place, target: str) -> None:
    tokens, tls = tokens_to(target, None, SECRET)
    assert (tokens is not None, tls) == (True, None)
    assert tokens_to(target, TLS(server_name="x"), SECRET)[1] == TLS(server_name="x")


@pytest.mark.parametrize("target", ["host.example:1", "192.0.2.1:1", "worker.localhost:1", "127.1:1"])
def test_a_token_goes_to_other_hosts_through_tls_alone(place: Place, target: str) -> None:
    tokens, tls = tokens_to(target, None, SECRET)
    assert tokens is not None
    assert tls == TLS()
    assert tokens_to(target, TLS(server_name="x"), SECRET)[1] == TLS(server_name="x")


def test_one_that_comes_later_is_not_sent_in_the_clear(place: Place) -> None:
    """The connection stands, without TLS, by then."""
    assert tokens_to(TARGET, None) == (None, None)
    tokens, tls = tokens_to("localhost:1", None)
    assert (tokens is not None, tls) == (True, None)
