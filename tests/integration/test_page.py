"""The page as programs see it: who gets what, as text, JSON and events, and that little is held for anybody."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from gradwire.client import Adam, Shared, connect
from gradwire.server.engine.run import Run
from gradwire.server.web import answers, door, listing, streams
from gradwire.server.web.following import FollowsAll
from gradwire.server.web.page import Page
from tests.faults.hosted import WAIT_SECONDS, HostedServer, eventually
from tests.integration.access import ROLES, AccessFile, secret_of
from tests.integration.certificates import Files
from tests.integration.watching import Answer, Scraped, ask, hosted_page

HTTP: dict[str, Any] = {"http": "127.0.0.1:0"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\n"


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedServer]:
    """Shared; give runs names of your own. What it shows is newer than elsewhere."""
    with hosted_page() as server:
        yield server


@pytest.fixture
def access(tmp_path: Path) -> AccessFile:
    file = AccessFile(tmp_path / "access.toml")
    for role in ROLES:
        file.add(role, "lab", role)
    file.add("other", "other", "read")
    file.add("some", "lab", "read", 'runs = ["some-*"]')
    return file


def get(hosted: HostedServer, path: str, **more: Any) -> Any:
    """What JSON says."""
    answer = ask(hosted, path, **more)
    assert answer.status == 200, answer.text
    return json.loads(answer.text)


def listed(hosted: HostedServer, **more: Any) -> dict[str, Any]:
    """All runs, by name."""
    return {run["name"]: run for run in get(hosted, "/api/runs", **more)}


class Events:
    """A stream of events; a context manager."""

    def __init__(self, hosted: HostedServer, query: str = "", *, last_id: str = "", **headers: str) -> None:
        host, _, port = hosted.server.http_address.rpartition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_SECONDS)
        sent = {**headers, **({"Last-Event-ID": last_id} if last_id else {})}
        self._connection.request("GET", f"/stream{query}", headers=sent)
        self.answer = self._connection.getresponse()
        self.last_id = last_id

    def next(self, *kinds: str) -> tuple[str, Any]:
        """The next event, of one of these kinds if there are any; ``("over", None)`` at the end."""
        kind, data = "", ""
        while line := self.answer.readline().decode():
            field, _, text = line.rstrip("\n").partition(": ")
            if field == "event":
                kind = text
            elif field == "data":
                data = text
            elif field == "id":
                self.last_id = text
            elif not line.strip():
                if kind and (not kinds or kind in kinds):
                    return kind, json.loads(data)
                kind = ""
        return "over", None

    def until(self, kind: str, condition: Any = lambda data: True) -> Any:
        """The next event of a kind that is as wanted."""
        while True:
            found, data = self.next(kind)
            assert found == kind, "the stream has ended"
            if condition(data):
                return data

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *error: object) -> None:
        self.answer.close()
        self._connection.close()


def page_of(hosted: HostedServer) -> Page:
    door = hosted.server._door
    assert door is not None
    page: Page = door._handler.page  # type: ignore[attr-defined]
    return page


def login(
    hosted: HostedServer, token: str, headers: dict[str, str] | None = None, context: ssl.SSLContext | None = None
) -> Answer:
    host, _, port = hosted.server.http_address.rpartition(":")
    connection = (
        http.client.HTTPConnection(host, int(port), timeout=WAIT_SECONDS)
        if context is None
        else http.client.HTTPSConnection(host, int(port), timeout=WAIT_SECONDS, context=context)
    )
    form = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
    try:
        connection.request("POST", "/login", urlencode({"token": token}), form)
        response = connection.getresponse()
        return Answer(response.status, response.read().decode(), dict(response.getheaders()))
    finally:
        connection.close()


# --- what there is ----------------------------------------------------------------------------------------------------


def test_a_browser_gets_the_page_and_curl_gets_text(hosted: HostedServer) -> None:
    with connect(hosted.target) as server, server.create_run("text", {"w": np.zeros(3)}, Adam(lr=0.5)) as run:
        run.step({"w": np.ones(3)})
        for path in ("/", "/runs/text"):
            page = ask(hosted, path, headers=BROWSER)
            assert page.headers["Content-Type"] == "text/html; charset=utf-8"
            assert "text" not in page.text.partition("<body>")[2].partition("<noscript>")[0].split()
            text = ask(hosted, path)
            assert text.headers["Content-Type"] == "text/plain; charset=utf-8"
            lines = [line.split() for line in text.text.splitlines() if line.startswith("runs/text ")]
            assert [(line[0], line[2]) for line in lines] == [("runs/text", "1")]
        assert "adam  lr=0.5" in text.text
        assert "attached" in text.text


def test_what_others_have_named_is_data_in_json_and_escaped_in_text(hosted: HostedServer) -> None:
    with (
        connect(hosted.target) as server,
        server.create_run("hostile", {HOSTILE: np.zeros(2)}, Adam(), worker_id=HOSTILE) as run,
    ):
        run.save_snapshot(HOSTILE)
        found = get(hosted, "/api/runs/hostile")
        text = ask(hosted, "/runs/hostile").text
    assert found["tensors"] == [{"name": HOSTILE, "shape": [2]}]
    assert found["workers"][0]["id"] == HOSTILE
    assert found["snapshots"][0]["label"] == HOSTILE
    assert "\x1b" not in text
    assert "<img src=x onerror=alert(1)>\\x1b[31m\\n" in text


def test_what_is_said_of_a_run(hosted: HostedServer) -> None:
    with connect(hosted.target) as server, server.create_run("facts", {"w": np.zeros(4)}, Adam(lr=0.5)) as run:
        run.step({"w": np.ones(4)})
        run.step({"w": np.ones(4)}, overrides={0: {"lr": 0.25}})
        saved = run.save_snapshot("good")
        run.step({"w": np.ones(4)})
        run.roll_back(saved.id)
        server.attach("facts", worker_id="another").step({"w": np.ones(4)})
        row = listed(hosted)["runs/facts"]
        found = get(hosted, "/api/runs/facts")
        curves = get(hosted, "/api/runs/facts/series")
    assert (row["step"], row["parameters"], row["optimizer"], row["durability"]) == (3, 4, "adam", "memory")
    blocks = found["workers"][0]["blocks"]
    assert (blocks["count"], blocks["received_bytes"]) == (1, 32)
    assert 0 < blocks["p50"] == blocks["p99"] < WAIT_SECONDS
    assert {way: sum(paths.values()) for way, paths in found["bytes"].items()} == {"received": 128, "sent": 128}
    assert {path for paths in found["bytes"].values() for path in paths} <= {"stream", "lane", "shared_memory"}
    assert row["spark"]["name"] == "gradient_norm"
    assert found["groups"][0]["lr"] == 0.25
    told = [(event["kind"], event["text"], event["step"]) for event in found["events"]]
    assert ("hyperparameters", "lr 0.5 to 0.25", 2) in told
    assert ("snapshot", f"number {saved.id}, good", 2) in told
    assert ("rolled back", f"from step 3 to snapshot {saved.id}", 2) in told
    assert curves["gradient_norm"]["step"] == [1, 2, 3]
    assert curves["gradient_norm"]["mean"] == [2, 2, 2]
    assert get(hosted, "/api/runs/facts/series?from=3")["gradient_norm"]["step"] == [3]


def test_who_has_lost_a_run_to_another_is_among_its_events(hosted: HostedServer) -> None:
    with connect(hosted.target) as server, server.create_run("taken", {"w": np.zeros(4)}, Adam(), worker_id="older"):
        with connect(hosted.target) as other, other.attach("taken", worker_id="newer", takeover=True) as run:
            run.step({"w": np.ones(4)})
            told = [(event["kind"], event["text"]) for event in get(hosted, "/api/runs/taken")["events"]]
        assert told[-2:] == [("fenced", "older was replaced by newer"), ("attached", "newer")]


def test_what_is_said_of_a_shared_run(hosted: HostedServer) -> None:
    with connect(hosted.target) as server:
        run = server.create_run("shared", {"w": np.zeros(4)}, Adam(), workers=Shared(quorum=1), worker_id="w-0")
        run.step({"w": np.ones(4)})
        eventually(lambda: get(hosted, "/api/runs/shared")["workers"][0]["blocks"] is not None, "the block is noted")
        found = get(hosted, "/api/runs/shared")
        run.close()
    (worker,) = found["workers"]
    assert (worker["id"], worker["attached"], worker["outcomes"]["accepted"]) == ("w-0", True, 1)
    assert (worker["waits_for"], found["worker_count"]) == ("block 2", 1)
    assert (worker["blocks"]["count"], worker["blocks"]["received_bytes"]) == (1, 32)
    assert 0 < worker["blocks"]["p50"] < WAIT_SECONDS
    assert (found["round"]["number"], found["round"]["outcomes"]["accepted"]) == (2, 1)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/runs/nothing", 404),
        ("/runs/nothing", 404),
        ("/api/runs/nothing/series", 404),
        ("/stream?run=runs/nothing", 404),
        ("/stream?" + "&".join(["run=runs/x"] * 9), 400),
        ("/runs/", 404),
        ("/runs/a/b", 404),
        ("/static/nothing.js", 404),
        ("/static/..%2fpage.py", 404),
        ("/static/page.py", 404),
        ("/static/__init__.py", 404),
    ],
)
def test_what_is_not_there(hosted: HostedServer, path: str, status: int) -> None:
    answer = ask(hosted, path)
    assert answer.status == status
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_a_number_of_steps_is_one(hosted: HostedServer) -> None:
    with connect(hosted.target) as server, server.create_run("numbers", {"w": np.zeros(1)}, Adam()):
        for wrong in ("-1", "1e3", "\u0663", "9" * 30):
            answer = ask(hosted, f"/api/runs/numbers/series?{urlencode({'from': wrong})}")
            assert answer.status == 400
            assert "expected a number of steps" in answer.text


def test_headers_leave_a_browser_nothing_to_guess(hosted: HostedServer) -> None:
    for path in ("/", "/static/main.js", "/static/page.css", "/api/runs", "/nothing"):
        headers = ask(hosted, path, headers=BROWSER).headers
        assert headers["Content-Security-Policy"] == answers.POLICY
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"


def test_files_are_sent_once(hosted: HostedServer) -> None:
    first = ask(hosted, "/static/main.js")
    assert first.headers["Cache-Control"] == "no-cache"
    again = ask(hosted, "/static/main.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.text) == (304, "")
    assert ask(hosted, "/static/main.js", headers={"If-None-Match": '"other"'}).status == 200


def test_nothing_can_be_changed(hosted: HostedServer) -> None:
    for path in ("/", "/runs/x", "/api/runs", "/api/runs/x", "/stream", "/static/main.js"):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert ask(hosted, path, method=method).status == 405
    assert ask(hosted, "/login").status == 405
    assert login(hosted, "gw_x").status == 404, "nobody is asked here"


# --- events -----------------------------------------------------------------------------------------------------------


def test_the_list_is_told_and_then_what_changes(hosted: HostedServer) -> None:
    with connect(hosted.target) as server, server.create_run("moves", {"w": np.zeros(3)}, Adam()) as run:
        with Events(hosted) as events:
            assert events.answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            assert events.next()[0] == "hello"
            first = events.until("runs")
            assert first["whole"]
            assert "runs/moves" in {row["name"] for row in first["rows"]}
            run.step({"w": np.ones(3)})
            moved = events.until("runs", lambda data: any(row["step"] == 1 for row in data["rows"]))
            assert not moved["whole"]
            assert [row["name"] for row in moved["rows"] if row["step"] == 1] == ["runs/moves"]
            events.until("seen")
            last_id = events.last_id
            server.create_run("comes", {"w": np.zeros(3)}, Adam()).close()
            events.until("runs", lambda data: any(row["name"] == "runs/comes" for row in data["rows"]))
            server.delete_run("comes")
            events.until("runs", lambda data: data["gone"] == ["runs/comes"])
        with Events(hosted, last_id=last_id) as events:
            again = events.until("runs")
            assert not again["whole"], "it comes back, and is told what it has missed"
            assert again["gone"] == ["runs/comes"]
        for wrong in ("nonsense", "other.5", f"{last_id}9"):
            with Events(hosted, last_id=wrong) as events:
                assert events.until("runs")["whole"]


def test_a_run_is_followed_and_who_comes_back_gets_the_rest(hosted: HostedServer) -> None:
    def last(data: Any) -> int:
        return int(data["series"]["gradient_norm"]["step"][-1])

    with connect(hosted.target) as server, server.create_run("followed", {"w": np.zeros(3)}, Adam()) as run:
        run.step_many({"w": np.ones((40, 3))})
        for _ in range(50):
            run.step({"w": np.ones(3)})
        with Events(hosted, "?run=runs/followed") as events:
            kinds = {events.next()[0] for _ in range(6)}
            assert {"hello", "whole", "about", "settings", "workers", "events"} == kinds
            assert last(events.until("series")) == 90
            run.step({"w": np.ones(3)})
            news = events.until("series")
            assert (news["series"]["gradient_norm"]["from"], last(news)) == (90, 91)
            events.until("seen")
        run.step({"w": np.ones(3)})
        with Events(hosted, "?run=runs/followed", last_id=events.last_id) as events:
            kind, news = events.next("series", "whole")
            assert (kind, last(news)) == ("series", 92)
            assert news["series"]["gradient_norm"]["from"] >= 90
            saved = run.save_snapshot()
            run.step({"w": np.ones(3)})
            run.roll_back(saved.id)
            assert events.until("events", lambda data: data["events"][-1]["kind"] == "rolled back")
        with Events(hosted, "?run=runs/followed", last_id=events.last_id) as events:
            assert events.next("series", "whole")[0] == "whole", "its past is another one"


def test_values_of_earlier_steps_reach_whoever_follows_and_whoever_comes_back(hosted: HostedServer) -> None:
    def steps(data: Any, name: str) -> list[int]:
        return list(data["series"].get(name, {}).get("step", []))

    with connect(hosted.target) as server, server.create_run("late", {"w": np.zeros(3)}, Adam()) as run:
        for _ in range(9):
            run.step({"w": np.ones(3)})
        with Events(hosted, "?run=runs/late") as events:
            events.until("series")
            run.log({"x": np.ones(3)}, at=[1, 2, 3])
            run.step({"w": np.ones(3)})
            assert steps(events.until("series", lambda data: "x" in data["series"]), "x") == [1, 2, 3]
            events.until("seen")
            last_id = events.last_id
        run.log({"x": np.ones(3), "new": np.ones(3)}, at=[4, 5, 6])
        run.step({"w": np.ones(3)})
        for again in (last_id, ""):
            with Events(hosted, "?run=runs/late", last_id=again) as events:
                news = events.until("series")
                assert steps(news, "x")[-3:] == steps(news, "new") == [4, 5, 6]
                events.until("seen")
                last_id = events.last_id
        run.log({"x": np.ones(2)}, at=[7, 8])
        run.step({"w": np.ones(3)})
        with Events(hosted, "?run=runs/late", last_id=last_id) as events:
            kind, news = events.next("series", "whole")
            assert (kind, steps(news, "x")) == ("series", [6, 7, 8])


def test_several_runs_are_followed_at_once(hosted: HostedServer) -> None:
    with connect(hosted.target) as server:
        runs = [server.create_run(name, {"w": np.zeros(3)}, Adam()) for name in ("one", "two")]
        for run in runs:
            run.step({"w": np.ones(3)})
        with Events(hosted, "?run=runs/one&run=runs/two") as events:
            names = {events.until("series")["name"] for _ in range(2)}
            assert names == {"runs/one", "runs/two"}
            server.delete_run("two")
            assert events.until("missing")["name"] == "runs/two"
            server.delete_run("one")
            assert events.until("end")["why"] == "runs/one has been deleted"
            assert events.next() == ("over", None)


def test_a_run_is_followed_though_one_beside_it_is_not_there_yet(hosted: HostedServer) -> None:
    with connect(hosted.target) as server:
        server.create_run("here", {"w": np.zeros(3)}, Adam()).step({"w": np.ones(3)})
        with Events(hosted, "?run=runs/here&run=runs/there&run=%3Cb%3E") as events:
            assert events.until("series")["name"] == "runs/here"
            missing = [events.until("missing") for _ in range(2)]
            assert [each["name"] for each in missing] == ["runs/there", "<b>"]
            assert missing[0]["why"] == "there is no run 'runs/there' on this server"
            server.create_run("there", {"w": np.zeros(3)}, Adam()).step({"w": np.ones(3)})
            assert events.until("whole")["name"] == "runs/there"
            assert events.until("series")["name"] == "runs/there"


def test_silence_is_filled(hosted: HostedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_HEARTBEAT_SECONDS", 0.05)
    with Events(hosted) as events:
        lines = iter(events.answer.readline, b"")
        assert next(line for line in lines if line.startswith(b":")) == b": still here\n"


def test_there_are_so_many_streams_and_places_are_free_again(
    hosted: HostedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: hosted.call(lambda: len(page_of(hosted).streams)) == 0, "others have gone")
    monkeypatch.setattr(streams, "MAX_STREAMS_OF_ONE", 2)
    refused = Scraped(hosted)("gradwire_page_streams_refused_total")
    with Events(hosted), Events(hosted):
        with Events(hosted) as third:
            assert third.answer.status == 503
            assert "2 of yours" in third.answer.read().decode()
        found = Scraped(hosted)
        assert found("gradwire_page_streams") == 2
        assert found("gradwire_page_streams_refused_total") == refused + 1
    eventually(lambda: hosted.call(lambda: len(page_of(hosted).streams)) == 0, "their places are free")
    monkeypatch.setattr(streams, "MAX_STREAMS", 1)
    with Events(hosted), Events(hosted) as second:
        assert second.answer.status == 503


def test_a_stream_outlives_what_other_connections_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "CONNECTION_SECONDS", 0.5)
    with HostedServer(**HTTP) as hosted, Events(hosted) as events:
        host, _, port = hosted.server.http_address.rpartition(":")
        with socket.create_connection((host, int(port)), WAIT_SECONDS) as silent:
            assert silent.recv(1) == b"", "this one is closed"
        with connect(hosted.target) as server, server.create_run("late", {"w": np.zeros(3)}, Adam()):
            events.until("runs", lambda data: data["rows"])


def test_streams_end_when_the_server_drains() -> None:
    with HostedServer(**HTTP) as hosted, Events(hosted) as events:
        events.until("runs")
        hosted.drain()
        assert events.until("end")["why"] == "the server is about to stop"


async def more_than_fits(self: object, rows: object) -> bytes:
    return b"x" * 2**26


def test_one_who_does_not_read_leaves_its_place_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FollowsAll, "news", more_than_fits)
    with HostedServer(**HTTP, stall_timeout_seconds=1.0) as hosted, Events(hosted):
        page = page_of(hosted)
        eventually(lambda: hosted.call(lambda: len(page.streams)) == 1, "it is there")
        eventually(lambda: hosted.call(lambda: len(page.streams)) == 0, "it has been ended")


def test_one_who_does_not_read_is_ended_too(monkeypatch: pytest.MonkeyPatch, access: AccessFile) -> None:
    with HostedServer(**HTTP, access=str(access.path)) as hosted:
        page = page_of(hosted)
        monkeypatch.setattr(FollowsAll, "news", more_than_fits)
        with Events(hosted, Authorization=f"Bearer {secret_of('read')}"):
            eventually(lambda: hosted.call(lambda: len(page.streams)) == 1, "it is there")
            access.remove("read")
            began = time.monotonic()
            eventually(lambda: hosted.call(lambda: len(page.streams)) == 0, "it has been ended")
            assert time.monotonic() - began < WAIT_SECONDS / 2


# --- who --------------------------------------------------------------------------------------------------------------


def test_a_tenant_sees_its_own_runs_by_its_own_names(access: AccessFile) -> None:
    access.add("other-train", "other", "train")
    with HostedServer(**HTTP, access=str(access.path)) as hosted:
        for token, names in {"train": ["a", "some-b"], "other-train": ["a"]}.items():
            with connect(hosted.target, token=secret_of(token)) as server:
                for name in names:
                    server.create_run(name, {"w": np.zeros(3)}, Adam()).close()

        def names_of(token: str) -> set[str]:
            return set(listed(hosted, token=secret_of(token)))

        assert names_of("read") == {"runs/a", "runs/some-b"}
        assert names_of("other") == {"runs/a"}
        assert names_of("some") == {"runs/some-b"}
        assert names_of("admin") == {"runs/a", "runs/some-b", "tenants/other/runs/a"}
        for path in ("/api/runs/a", "/runs/a", "/stream?run=runs/a"):
            assert ask(hosted, path, token=secret_of("some")).status == 403
        for path in ("/api/tenants/other/runs/a", "/stream?run=tenants/other/runs/a"):
            assert ask(hosted, path, token=secret_of("read")).status == 404
        theirs = "?run=runs/some-b&run=runs/a&run=tenants/other/runs/a"
        with Events(hosted, theirs, Authorization=f"Bearer {secret_of('some')}") as events:
            missing = [events.until("missing") for _ in range(2)]
            assert [each["name"] for each in missing] == ["runs/a", "tenants/other/runs/a"]
            assert "none of the runs that this token is for" in missing[0]["why"]
        assert get(hosted, "/api/tenants/other/runs/a", token=secret_of("admin"))["name"] == "tenants/other/runs/a"
        for path in ("/", "/runs/a", "/api/runs", "/api/runs/a", "/stream"):
            assert ask(hosted, path).status == 401
            assert ask(hosted, path, token=secret_of("observe")).status == 403
            assert "other" not in ask(hosted, path, token=secret_of("read"), method="HEAD").text
        assert "other" not in ask(hosted, "/", token=secret_of("read")).text
        assert ask(hosted, "/", headers=BROWSER).status == 200, "it holds nothing"


def test_a_token_is_shown_once_and_its_session_ends_with_it(access: AccessFile, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    with HostedServer(**HTTP, access=str(access.path), audit_log=str(audit)) as hosted:
        assert login(hosted, "gw_wrong").status == 401
        assert login(hosted, "").status == 401
        assert login(hosted, secret_of("observe")).status == 403
        made = login(hosted, f" {secret_of('read')}\n")
        assert (made.status, made.text) == (204, "")
        given, _, attributes = made.headers["Set-Cookie"].partition("; ")
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes.split("; "))
        assert secret_of("read") not in given
        cookie = {"Cookie": given}
        assert ask(hosted, "/api/runs", headers=cookie).status == 200
        assert ask(hosted, "/metrics", headers=cookie).status == 200
        other = login(hosted, secret_of("read")).headers["Set-Cookie"].partition(";")[0]
        ended = ask(hosted, "/logout", method="POST", headers={"Cookie": other})
        assert (ended.status, "Max-Age=0" in ended.headers["Set-Cookie"]) == (204, True)
        assert ask(hosted, "/api/runs", headers={"Cookie": other}).status == 401
        left = {"Cookie": login(hosted, secret_of("read")).headers["Set-Cookie"].partition(";")[0]}
        bearer = {"Authorization": f"Bearer {secret_of('read')}"}
        with Events(hosted, **left) as events, Events(hosted, **left, **bearer) as by_token:
            assert events.until("hello")["id"] == "read"
            assert ask(hosted, "/logout", method="POST", headers=left).status == 204
            assert events.until("end")["why"] == "the session has ended; sign in again"
            with connect(hosted.target, token=secret_of("train")) as server:
                server.create_run("later", {"w": np.zeros(3)}, Adam()).close()
            by_token.until("runs", lambda data: data["rows"])  # a token is no session
        with Events(hosted, **cookie) as events:
            assert events.until("hello")["id"] == "read"
            access.remove("read")
            began = time.monotonic()
            assert "revoked" in events.until("end")["why"]
            assert events.next() == ("over", None)
            assert time.monotonic() - began < WAIT_SECONDS / 2
        assert ask(hosted, "/api/runs", headers=cookie).status == 401
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    logins = [(line["id"], line["outcome"]) for line in lines if line["action"] == "Login"]
    assert logins == [("", "refused"), ("", "refused"), ("observe", "refused"), *[("read", "ok")] * 3]
    assert secret_of("read") not in audit.read_text()
    assert given.partition("=")[2] not in audit.read_text()


def test_over_tls_the_session_never_leaves_it(access: AccessFile, tmp_path: Path) -> None:
    files = Files(tmp_path / "tls")
    with HostedServer(**HTTP, **files.server, access=str(access.path)) as hosted:
        context = ssl.create_default_context(cafile=files.path("ca.pem"))
        own = f"https://{hosted.server.http_address}"
        given, _, attributes = (
            login(hosted, secret_of("read"), {"Origin": own}, context).headers["Set-Cookie"].partition("; ")
        )
        assert given.startswith(f"__Host-gradwire-{own.rpartition(':')[2]}=")
        assert "Secure" in attributes.split("; ")
        assert ask(hosted, "/api/runs", context=context, headers={"Cookie": given}).status == 200
        assert ask(hosted, "/api/runs", context=context).status == 401


def test_a_page_from_elsewhere_gets_nothing(access: AccessFile, hosted: HostedServer) -> None:
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example.org"},
        {"Origin": "null"},
    ):
        for path in ("/api/runs", "/stream", "/", "/metrics"):
            assert ask(hosted, path, headers=headers).status == 403
        assert ask(hosted, "/", headers={**headers, **BROWSER}).status == 200, "a link leads to the page"
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    assert ask(hosted, "/metrics", headers=link).status == 200, "and one to the metrics"
    with HostedServer(**HTTP, access=str(access.path)) as guarded:
        assert login(guarded, secret_of("read"), {"Origin": "https://evil.example.org"}).status == 403
        assert login(guarded, secret_of("read"), {"Sec-Fetch-Site": "cross-site"}).status == 403
        own = f"http://{guarded.server.http_address}"
        assert login(guarded, secret_of("read"), {"Origin": own, "Sec-Fetch-Site": "same-origin"}).status == 204
        assert login(guarded, "x" * 10_000).status == 413


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_many_runs_are_looked_at_beside_the_event_loop(hosted: HostedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that do not move are not looked at closely."""
    found: list[tuple[str, threading.Thread]] = []
    facts_of = listing.facts_of

    def noting(run: Run) -> dict[str, Any]:
        found.append((run.spec.name, threading.current_thread()))
        return facts_of(run)

    monkeypatch.setattr(listing, "facts_of", noting)
    with connect(hosted.target) as server, server.create_run("still", {"w": np.zeros(1)}, Adam()):
        assert "runs/still" in listed(hosted)
        assert "runs/still" in listed(hosted)
    assert [name for name, _ in found if name == "runs/still"] == ["runs/still"]
    assert hosted._thread not in {thread for _, thread in found}
