"""``gradwire whoami`` and ``gradwire status``, and the token of commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from gradwire.client.doctor.command import command as doctor_command
from gradwire.server.cli.about import whoami_command
from gradwire.server.cli.commands import cli
from tests.integration.certificates import Files
from tests.integration.guarded import Guarded

SECRET = "s3cret-of-the-test"

WHO = """\
tenant:            vision
role:              train
id:                ci
expires:           2027-01-15T08:00:00+00:00
runs:              ci-*
workers:           w?
"""

STATUS = """\
version:           1.2.3
instance:          instance
uptime:            61 s
recovered:         yes
runs:              3
damaged runs:      1
memory:            10 of 20 bytes
event loop lag:    12.5 ms
certificate:       until 2027-01-15T08:00:00+00:00
access file error: line 3\\nis no token
audit lines lost:  7
"""


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("GRADWIRE_TARGET", "GRADWIRE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("GRADWIRE_TOKEN", SECRET)
    return monkeypatch


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with Guarded(SECRET) as server:
        yield server


def called(*arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments])


def test_plain_text_one_fact_a_line(guarded: Guarded) -> None:
    assert called("whoami", "--target", guarded.target).output == WHO
    assert called("status", "--target", guarded.target).output == STATUS


def test_runs_carry_it_and_health_does_not(guarded: Guarded, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("GRADWIRE_TARGET", guarded.target)
    assert called("runs", "list").exit_code == 0
    assert called("health").exit_code == 0
    assert guarded.calls == [("ListRuns", SECRET), ("Check", None)]


@pytest.mark.parametrize("command", ["whoami", "status"])
def test_a_token_that_is_not_known_is_a_message(
    guarded: Guarded, environment: pytest.MonkeyPatch, command: str
) -> None:
    environment.setenv("GRADWIRE_TOKEN", "another")
    result = called(command, "--target", guarded.target)
    assert result.exit_code == 1
    assert result.output == "Error: this token is not known here (UNAUTHENTICATED)\n"


def test_the_default_target_gets_none(guarded: Guarded, environment: pytest.MonkeyPatch) -> None:
    """Anybody may listen there."""
    (option,) = (param for param in whoami_command.params if param.name == "target")
    environment.setattr(option, "default", guarded.target)
    result = called("whoami")
    assert result.exit_code == 1
    assert "GRADWIRE_TOKEN is for a target that is named: pass --target" in result.output
    assert guarded.calls == [("WhoAmI", None)]


def test_to_another_host_it_goes_through_tls_alone(guarded: Guarded, environment: pytest.MonkeyPatch) -> None:
    environment.setattr("gradwire.wire.tokens.is_loopback", lambda target: False)
    result = called("whoami", "--target", guarded.target)
    assert result.exit_code == 1
    assert "it does not speak TLS, and this client does (TLS is spoken because there is a token)" in result.output
    assert not guarded.calls


def test_health_speaks_tls_where_the_others_do(
    guarded: Guarded, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Beside a token, to another host; the token itself is not sent."""
    for module in ("wire.tokens", "server.cli.target"):
        environment.setattr(f"gradwire.{module}.is_loopback", lambda target: False)
    result = called("health", "--target", guarded.target)
    assert result.exit_code == 1
    assert "it does not speak TLS, and this client does" in result.output
    files = Files(tmp_path / "files")
    environment.setenv("GRADWIRE_TLS_CA", files.path("ca.pem"))
    credentials = grpc.ssl_server_credentials(
        [(Path(files.path("server.key")).read_bytes(), Path(files.path("server.pem")).read_bytes())]
    )
    with Guarded(SECRET, credentials=credentials) as encrypted:
        assert called("health", "--target", encrypted.target).exit_code == 0
        assert encrypted.calls == [("Check", None)]


def test_a_token_is_no_option_and_a_malformed_one_is_not_shown(
    guarded: Guarded, environment: pytest.MonkeyPatch
) -> None:
    """The command line of a process is there for all to read."""
    for command in (whoami_command, doctor_command()):
        assert all("token" not in name for param in command.params for name in param.opts)
    environment.setenv("GRADWIRE_TOKEN", f"{SECRET} x")
    result = called("whoami", "--target", guarded.target)
    assert result.exit_code == 1
    assert "GRADWIRE_TOKEN is no token" in result.output
    assert SECRET not in result.output
    assert not guarded.calls
