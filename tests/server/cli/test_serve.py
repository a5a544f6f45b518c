"""The command line: flags win over the environment, which wins over the defaults."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gradwire.server.app import Server
from gradwire.server.cli import serve as serve_module
from gradwire.server.cli.commands import cli
from gradwire.server.cli.logs import JsonFormatter, TextFormatter
from gradwire.server.config import ServerConfig
from tests.children import child
from tests.serving import ServerProcess

OPTIONS: dict[str, tuple[str, str, Any, Any]] = {
    # field: (flag, a text for the environment, what it means, another value for the flag)
    "access": ("--access", "access.toml", "access.toml", "other.toml"),
    "audit_log": ("--audit-log", "audit", "audit", "other"),
    "http": ("--http", "127.0.0.1:9464", "127.0.0.1:9464", "[::1]:80"),
    "max_connections": ("--max-connections", "100", 100, 7),
    "device": ("--device", "cpu", "cpu", "cuda:1"),
    "threads": ("--threads", "3", 3, 4),
    "worker_threads": ("--worker-threads", "2", 2, 5),
    "max_parameters": ("--max-parameters", "1000", 1000, 7),
    "max_memory": ("--max-memory", "1.5GiB", 3 * 2**29, 4096),
    "max_result": ("--max-result", "64KiB", 2**16, 12),
    "data_dir": ("--data-dir", "/var/a", "/var/a", "/var/b"),
    "snapshot_interval_seconds": ("--snapshot-interval", "7.5", 7.5, 60.0),
    "snapshot_steps": ("--snapshot-steps", "100", 100, 5),
    "snapshots_kept": ("--snapshots-kept", "1", 1, 9),
    "stall_timeout_seconds": ("--stall-timeout", "2.5", 2.5, 9.0),
    "keepalive_seconds": ("--keepalive", "20", 20.0, 0.5),
    "drain_timeout_seconds": ("--drain-timeout", "1", 1.0, 4.0),
    "log_format": ("--log-format", "json", "json", "text"),
}
each_option = pytest.mark.parametrize("field", OPTIONS)
TLS = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
"""By their fields; half of a pair is refused, so they are given together."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ServerConfig]:
    """What the command would have served with; nothing is served."""
    configs: list[ServerConfig] = []

    async def serve(config: ServerConfig, embedded: bool) -> None:
        configs.append(config)

    monkeypatch.setattr(serve_module, "_serve", serve)
    monkeypatch.setattr(serve_module, "set_up_logging", lambda log_format, level: None)
    for name in list(os.environ):
        if name.startswith("GRADWIRE_"):
            monkeypatch.delenv(name)
    return configs


def serve(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, ["serve", *arguments], env=environment)


def variable(flag: str) -> str:
    return "GRADWIRE_" + flag.strip("-").replace("-", "_").upper()


def test_every_setting_has_an_option() -> None:
    switches = {"insecure", "reflection", "shared_memory", "metrics_per_run"}
    several = {"listen", "http_name"}
    assert {field.name for field in dataclasses.fields(ServerConfig)} == {*OPTIONS, *switches, *TLS, *several}


def test_who_may_watch(started: list[ServerConfig]) -> None:
    for result in (
        serve("--http", "127.0.0.1:1", "--http-name", "a", "--http-name", "b", "--metrics-per-run"),
        serve(GRADWIRE_HTTP="127.0.0.1:1", GRADWIRE_HTTP_NAME="a b", GRADWIRE_METRICS_PER_RUN="1"),
    ):
        assert result.exit_code == 0, result.output
        assert started.pop() == ServerConfig(http="127.0.0.1:1", http_name=("a", "b"), metrics_per_run=True)
    refused = serve("--metrics-per-run")
    assert refused.exit_code == 1
    assert "--metrics-per-run is True, without --http" in refused.output


def test_files_of_tls(started: list[ServerConfig]) -> None:
    flags = {f"--{field.replace('_', '-')}": name for field, name in TLS.items()}
    for result in (
        serve(*[part for pair in flags.items() for part in pair]),
        serve(  # not the names of a client's, which may be set beside them
            GRADWIRE_TLS_SERVER_CERT="server.pem", GRADWIRE_TLS_SERVER_KEY="server.key", GRADWIRE_TLS_CLIENT_CA="ca.pem"
        ),
    ):
        assert result.exit_code == 0, result.output
        assert started.pop() == ServerConfig(**TLS)  # type: ignore[arg-type]
    refused = serve("--tls-cert", "a")
    assert refused.exit_code == 1
    assert "--tls-cert is 'a', and --tls-key is ''; expected both, or neither" in refused.output


def test_without_flags_the_defaults_hold(started: list[ServerConfig]) -> None:
    assert serve().exit_code == 0
    assert started == [ServerConfig()]


@each_option
def test_environment_wins_over_the_default(started: list[ServerConfig], field: str) -> None:
    flag, text, meant, _ = OPTIONS[field]
    result = serve(**{variable(flag): text})
    assert result.exit_code == 0, result.output
    assert started == [dataclasses.replace(ServerConfig(), **{field: meant})]
    assert meant != getattr(ServerConfig(), field)


@each_option
def test_flag_wins_over_the_environment(started: list[ServerConfig], field: str) -> None:
    flag, text, _, other = OPTIONS[field]
    result = serve(flag, str(other), **{variable(flag): text})
    assert result.exit_code == 0, result.output
    assert getattr(started[0], field) == other


def test_listen_may_be_repeated(started: list[ServerConfig]) -> None:
    serve("--listen", "127.0.0.1:1", "--listen", "unix:x")
    serve(GRADWIRE_LISTEN="127.0.0.1:2 unix:y")
    assert [config.listen for config in started] == [("127.0.0.1:1", "unix:x"), ("127.0.0.1:2", "unix:y")]


def test_switches(started: list[ServerConfig]) -> None:
    serve("--insecure", "--reflection", "--listen", "0.0.0.0:1")
    serve(GRADWIRE_INSECURE="1", GRADWIRE_REFLECTION="true", GRADWIRE_LISTEN="0.0.0.0:1")
    serve(GRADWIRE_INSECURE="0", GRADWIRE_REFLECTION="false")
    assert [(config.insecure, config.reflection) for config in started] == [(True, True), (True, True), (False, False)]


def test_shared_memory_is_on_until_it_is_turned_off(started: list[ServerConfig]) -> None:
    serve()
    serve("--no-shared-memory")
    serve(GRADWIRE_SHARED_MEMORY="0")
    serve("--shared-memory", GRADWIRE_SHARED_MEMORY="0")
    assert [config.shared_memory for config in started] == [True, False, False, True]


@pytest.mark.parametrize(
    ("text", "meant"), [("1000", 1000), ("64KiB", 65536), (" 2MiB ", 2**21), ("0.5GiB", 2**29), ("1e3", 1000)]
)
def test_sizes(started: list[ServerConfig], text: str, meant: int) -> None:
    assert serve("--max-memory", text).exit_code == 0
    assert started[0].max_memory == meant


@pytest.mark.parametrize("text", ["", "many", "KiB", "1 kB", "1KB", "nan", "inf", "1e999", "0x10"])
def test_malformed_size_says_what_was_expected(started: list[ServerConfig], text: str) -> None:
    result = serve("--max-memory", text)
    assert result.exit_code == 2
    assert "expected a number of bytes" in " ".join(result.output.split())
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--listen", "0.0.0.0:50051"], "pass --insecure"),
        (["--listen", "nowhere"], "expected HOST:PORT or unix:PATH"),
        (["--max-parameters", "0"], "expected 1 or more"),
        *(
            ([flag, text], f"Invalid value for '{flag}' {{}}: {text} seconds; expected a finite number above 0")
            for flag in ("--keepalive", "--stall-timeout", "--drain-timeout", "--snapshot-interval")
            for text in ("0", "-1", "nan", "inf", "1e300")
        ),
        (["--keepalive", "soon"], "Invalid value for '--keepalive' {}: 'soon' is no number of seconds"),
        (["--max-memory", "-1"], "--max-memory is -1; expected 0 or more"),
        (["--threads", "-1"], "--threads is -1; expected 0 or more"),
        (["--log-format", "xml"], "'text', 'json'"),
        (["--threads", "two"], "not a valid integer"),
        (["--speed", "11"], "No such option"),
        (["extra"], "unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refusal_is_a_message_and_no_traceback(started: list[ServerConfig], arguments: list[str], what: str) -> None:
    result = serve(*arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit)
    what = what.format(f"(env var: '{variable(arguments[0])}')")
    assert what in " ".join(result.output.split())
    assert started == []


def test_help_names_every_flag_variable_and_default() -> None:
    result = CliRunner().invoke(cli, ["serve", "--help"], terminal_width=110)
    assert result.exit_code == 0
    for flag, *_ in OPTIONS.values():
        assert flag in result.output
        assert f"env var: {variable(flag)}" in " ".join(result.output.split())
    for text in ("--listen", "--insecure", "--reflection", "127.0.0.1:50051", "60.0", "256MiB"):
        assert text in result.output
    assert "--embedded" not in result.output, "for our own client, not for people"


def test_version_is_the_distributions() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert result.exit_code == 0
    assert "0.1.0" in result.output


def test_json_log_line_holds_message_and_traceback() -> None:
    try:
        raise ValueError("line one\nline two")
    except ValueError:
        record = logging.LogRecord("a.b", logging.ERROR, "f", 1, "what %s", ("happened\n",), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    entry = json.loads(text)
    assert (entry["level"], entry["logger"], entry["message"]) == ("ERROR", "a.b", "what happened\n")
    assert "line two" in entry["exception"]


def test_server_logs_its_effective_configuration_as_json_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gradwire.server", "serve", "--device", "cpu", "--log-format", "json"]
    command += ["--listen", f"unix:{tmp_path}/socket", "--stall-timeout", "5"]
    environment = {**os.environ, "GRADWIRE_STALL_TIMEOUT": "7", "GRADWIRE_MAX_PARAMETERS": "1234"}
    with child(command, env=environment) as process:
        assert process.stderr is not None
        entries = []
        for line in process.stderr:
            entries.append(json.loads(line))
            if "serving on" in entries[-1]["message"]:
                process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    messages = [entry["message"] for entry in entries]
    (configuration,) = [text for text in messages if text.startswith("effective configuration: ")]
    shown = json.loads(configuration.removeprefix("effective configuration: "))
    assert set(shown) == {field.name for field in dataclasses.fields(ServerConfig)}
    assert (shown["stall_timeout_seconds"], shown["max_parameters"], shown["keepalive_seconds"]) == (5.0, 1234, 10.0)
    assert shown["max_memory"] > 0, "the effective value, not the placeholder"
    assert messages[-1] == "stopped"


def test_promise_6_a_reachable_server_needs_the_word() -> None:
    """The refusal comes from the real command; with --insecure the same address is served."""
    command = [sys.executable, "-m", "gradwire.server", "serve", "--listen", "0.0.0.0:0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: refusing to listen on '0.0.0.0:0'")
    assert "Traceback" not in result.stderr
    with ServerProcess("--insecure", "--device", "cpu", listen="0.0.0.0:0") as process:
        port = int(process.target.rpartition(":")[2])
        health = [sys.executable, "-m", "gradwire.server", "health", "--target", f"localhost:{port}"]
        checked = subprocess.run(health, capture_output=True, text=True, check=False, timeout=60)
        assert (checked.returncode, checked.stdout) == (0, f"localhost:{port}: SERVING\n")


def test_log_line_stays_one_whatever_others_are_called() -> None:
    record = logging.LogRecord("a.b", logging.INFO, "f", 1, "worker %s", ("x\n2026 ERROR\x1b[2J\u202e",), None)
    assert TextFormatter("%(message)s").format(record) == "worker x\\n2026 ERROR\\x1b[2J\\u202e"


def test_a_failed_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that cannot be compiled, say."""

    def fail(server: Server) -> None:
        raise KeyError("first line\nsecond line")

    monkeypatch.setattr(Server, "_warm_up", fail)
    monkeypatch.setattr(serve_module, "set_up_logging", lambda log_format, level: None)
    result = serve("--listen", "127.0.0.1:0", "--device", "cpu")
    gc.collect()  # what gRPC leaves behind would say so then
    assert result.exit_code == 1
    assert result.output == "Error: the server cannot start: KeyError: 'first line\\nsecond line'\n"


def test_address_in_use_is_a_message_and_an_exit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "gradwire.server", "serve", "--device", "cpu", "--listen", address]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert f"Error: cannot listen on {address}" in result.stderr
    assert "Traceback" not in result.stderr


def test_nothing_of_the_working_directory_is_run(tmp_path: Path) -> None:
    """Also where Python itself, started with ``-m``, looks there first."""
    for name in ("click", "grpc", "runpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the working directory')")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    command = [sys.executable, "-m", "gradwire.server", "--version"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert ", version " in result.stdout


def test_the_interpreter_of_a_server_gives_way_soon_and_looks_at_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a client is told where the server is."""
    done: list[str] = []

    async def serve(config: ServerConfig, ready: Callable[[Any], None], *rest: object) -> None:
        assert done == ["switch"]
        ready(SimpleNamespace(addresses=[], device=SimpleNamespace(name="cpu"), http_address=""))

    monkeypatch.setattr("gradwire.server.app.serve", serve)
    monkeypatch.setattr(serve_module, "switch_often", lambda: done.append("switch"))
    monkeypatch.setattr(serve_module, "spare_what_stays", lambda: done.append("spare"))
    monkeypatch.setattr(serve_module, "_ignore_further_signals", lambda: None)
    assert CliRunner().invoke(cli, ["serve"]).exit_code == 0
    assert done == ["switch", "spare"]


def test_what_that_means() -> None:
    program = """
        import gc, sys
        from gradwire.server.cli.interpreter import spare_what_stays, switch_often
        switch_often()
        spare_what_stays()
        print(sys.getswitchinterval() < 0.001, gc.get_freeze_count() > 1000)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
