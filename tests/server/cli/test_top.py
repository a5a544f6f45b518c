"""``gradwire top``: lines for programs, and a table for people that ends when they want."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from gradwire.client import AMSGrad, Server, Shared, connect
from gradwire.server.cli import top
from gradwire.server.cli.commands import cli
from gradwire.server.cli.live_table import screen_of
from gradwire.server.cli.looks import Looks
from gradwire.server.cli.top import FIELDS, plain_lines
from gradwire.v1 import service_pb2, service_pb2_grpc
from tests.faults.hosted import WAIT_SECONDS, HostedServer, eventually

HOSTILE = "evil\tw\n\x1b]0;title\x07[red]"


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedServer]:
    with HostedServer() as server:
        yield server


@pytest.fixture
def server(hosted: HostedServer) -> Iterator[Server]:
    with connect(hosted.target) as connection:
        yield connection
        for summary in connection.list_runs():
            connection.delete_run(summary.name)


def run_top(hosted: HostedServer, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["top", "--target", hosted.target, *arguments])
    assert result.exit_code == code, result.output
    return result


def fields(line: str) -> dict[str, str]:
    return dict(zip(("time", *FIELDS), line.split("\t"), strict=True))


def test_a_line_for_each_run_and_look(hosted: HostedServer, server: Server) -> None:
    server.create_run("idle", {"w": np.zeros(3)}, AMSGrad()).close()
    with server.create_run("busy", {"w": np.zeros(3, np.float32)}, AMSGrad(), worker_id=HOSTILE) as run:
        for _ in range(3):
            run.step({"w": np.ones(3)})
        header, *lines = run_top(hosted, "--interval", "0.1", "--count", "2").output.splitlines()
    assert header.split("\t") == ["time", *FIELDS]
    found = [fields(line) for line in lines]
    assert [each["name"] for each in found] == ["busy", "idle"] * 2
    busy, idle = found[0], found[1]
    assert (busy["state"], busy["step"], busy["workers"], busy["waits_for"]) == ("running", "3", "1", "block 4")
    assert float(busy["steps_per_second"]) > 0
    assert float(busy["idle_seconds"]) >= 0
    assert (idle["state"], idle["idle_seconds"], idle["steps_per_second"]) == ("idle", "-", "0")
    assert datetime.fromisoformat(found[2]["time"]) > datetime.fromisoformat(busy["time"])


def test_one_run(hosted: HostedServer, server: Server) -> None:
    for name in ("a", "ab"):
        server.create_run(name, {"w": np.zeros(3)}, AMSGrad()).close()
    lines = run_top(hosted, "a", "--count", "1").output.splitlines()[1:]
    assert [fields(line)["name"] for line in lines] == ["a"]
    assert "there is no run 'runs/b'" in run_top(hosted, "b", "--count", "1", code=1).output
    assert "expected runs/NAME" in run_top(hosted, "b\n", code=1).output


@pytest.mark.parametrize("interval", ["0", "nan", "0.01", "1e9"])
def test_intervals_that_are_none(hosted: HostedServer, interval: str) -> None:
    assert "expected" in run_top(hosted, "--interval", interval, code=2).output


class Away(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "not \x1b[2J there"


def test_a_server_that_is_away_is_waited_for_once_it_has_answered() -> None:
    away = False

    def list_runs(request: service_pb2.ListRunsRequest) -> service_pb2.ListRunsResponse:
        if away:
            raise Away
        return service_pb2.ListRunsResponse(runs=[service_pb2.RunSummary(name="runs/x")])

    stub: Any = SimpleNamespace(ListRuns=list_runs)
    looks = Looks(stub, "", 3)
    assert looks.look()
    away = True
    assert looks.look()
    assert (looks.error, [run.name for run in looks.runs]) == (r"no answer: not \x1b[2J there", ["runs/x"])
    away = False
    assert not looks.look()
    assert looks.error == ""
    away = True
    with pytest.raises(Away):
        Looks(stub, "", 3).look()


def test_the_fastest_come_first() -> None:
    speeds = {"a": 0, "b": 3, "c": 9, "d": 0}
    runs = [service_pb2.RunSummary(name=f"runs/{name}", steps_per_second=speed) for name, speed in speeds.items()]
    stub: Any = SimpleNamespace(ListRuns=lambda request: service_pb2.ListRunsResponse(runs=runs))
    looks = Looks(stub, "", None)
    assert looks.look()
    assert "".join(run.name[-1] for run in looks.runs) == "cbad"
    assert [line.split("\t")[1] for line in plain_lines(looks.runs, datetime.now(UTC))] == ["c", "b", "a", "d"]


def drawn(looks: Any, width: int = 100, height: int = 20) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system="truecolor")
    with console.capture() as captured:
        console.print(screen_of(looks, width, height, datetime(2026, 1, 2, 3, 4, 5)))
    return captured.get().splitlines()


def test_names_of_others_are_neither_markup_nor_obeyed() -> None:
    run = service_pb2.RunSummary(name="runs/x", attached_worker_id=HOSTILE, damage="")
    worker = service_pb2.Worker(worker_id=HOSTILE, wait=service_pb2.Wait(text=HOSTILE))
    looks = SimpleNamespace(runs=[run], workers=[worker], error="")
    text = "\n".join(drawn(looks, width=200))
    assert text.count(r"evil\tw\n\x1b]0;title\x07[red]") == 3
    assert set(re.findall(r"\x1b(?!\[[0-9;]*m)", text)) == set()
    assert not set(text) & set("\t\x07\r")


def test_a_table_is_no_larger_than_its_screen() -> None:
    runs = [service_pb2.RunSummary(name=f"runs/{'n' * 100}{number}") for number in range(1000)]
    lines = drawn(SimpleNamespace(runs=runs, workers=[], error=""), width=80, height=24)
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert len(plain) < 24
    assert max(map(len, plain)) <= 80
    assert plain[0].startswith("1000 runs, 0 with workers")
    assert plain[-1].strip() == "and 982 more"


def test_each_worker_is_shown_with_its_run(hosted: HostedServer, server: Server) -> None:
    run = server.create_run("s", {"w": np.zeros(2)}, AMSGrad(), workers=Shared(quorum=2), worker_id="w1")
    run.close()
    with server.attach("s", worker_id="w1"), grpc.insecure_channel(hosted.target) as channel:
        looks = Looks(service_pb2_grpc.OptimizerServiceStub(channel), "runs/s", 1)
        looks.look()
        assert [worker.worker_id for worker in looks.workers] == ["w1"]
        text = "\n".join(drawn(looks, width=200))
    assert "w1" in text
    assert "block 1, for 0 s" in text


class Terminal:
    """``gradwire top`` on a terminal of its own, 30 lines of 120 cells."""

    def __init__(self, target: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
        command = [sys.executable, "-m", "gradwire.server", "top", "--target", target, "--interval", "0.1"]
        self.process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdin=self.slave, stdout=self.slave, stderr=self.slave
        )
        self.shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self.master, 65_536):
                self.shown += data
        except OSError:
            pass

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.slave)
        self._reader.join(WAIT_SECONDS)
        os.close(self.master)


def ended(shown: bytes) -> bool:
    """Whether all that a terminal was told to begin it has been told to end."""
    marks = ((b"\x1b[?1049h", b"\x1b[?1049l"), (b"\x1b[?25l", b"\x1b[?25h"))
    return all(0 <= shown.rfind(begin) < shown.rfind(end) for begin, end in marks)


@pytest.mark.parametrize("end", ["q", "Ctrl-C"])
def test_on_a_terminal_until_somebody_wants_no_more(hosted: HostedServer, server: Server, end: str) -> None:
    server.create_run("first", {"w": np.zeros(3)}, AMSGrad()).close()
    terminal = Terminal(hosted.target)
    try:
        eventually(lambda: b"first" in terminal.shown, "the table is there")
        server.create_run("second", {"w": np.zeros(3)}, AMSGrad()).close()
        eventually(lambda: b"second" in terminal.shown, "it goes on")
        if end == "q":
            os.write(terminal.master, b"xq")
        else:
            terminal.process.send_signal(2)
        assert terminal.process.wait(WAIT_SECONDS) == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before
        eventually(lambda: ended(terminal.shown), "the screen and its cursor are as they were")
        assert b"Traceback" not in terminal.shown
    finally:
        terminal.close()


def test_without_rich_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradwire.server.cli.live_table", None)
    looks: Any = SimpleNamespace(look=lambda: True)
    with pytest.raises(Exception, match=r"pip install 'gradwire\[plot\]'"):
        top._show(looks, 1.0)
