"""The page in a real browser: it draws, follows, comes back, compares, and takes nobody's words for markup."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import Adam, Run, connect
from gradwire.server.durability.stored_runs import DamagedRun
from tests.faults.hosted import HostedServer
from tests.integration.access import AccessFile, secret_of
from tests.serving import ServerProcess
from tests.web.browser import Browser

HOSTILE = "<img src=x onerror='document.title=1'>"

DARK = "rgb(15, 16, 19)"
LIGHT = "rgb(248, 248, 247)"

INK = """
const canvas = document.querySelectorAll('.chart canvas')[arguments[0] ?? 0];
if (!canvas || !canvas.width) return 0;
const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', {willReadFrequently: true});
copy.drawImage(canvas, 0, 0);
const pixels = copy.getImageData(0, 0, canvas.width, canvas.height).data;
const colors = arguments[1];
let found = 0;
for (let at = 0; at < pixels.length; at += 4) {
  if (colors.every((each, part) => Math.abs(pixels[at + part] - each) < 12) && pixels[at + 3] > 200) found++;
}
return found;
"""
"""How many pixels of a chart have a colour."""

ACCENT = [79, 70, 229]
SECOND = [232, 113, 10]


def url(hosted: HostedServer, path: str = "/") -> str:
    return f"http://{hosted.server.http_address}{path}"


@contextmanager
def trained(hosted: HostedServer, name: str, steps: int = 30, **options: Any) -> Iterator[Run]:
    """A run that has taken some steps, with a loss that falls."""
    with connect(hosted.target) as server, server.create_run(name, {"w": np.zeros(3)}, Adam(), **options) as run:
        train(run, steps)
        yield run


def train(run: Run, steps: int, scale: float = 1.0) -> None:
    for _ in range(steps):
        run.step({"w": np.ones(3)}, log={"loss": scale / (1 + run.step_count)})


def state_of(window: Browser) -> str:
    return window.text("#connection")


def body_color(window: Browser) -> str:
    found: str = window.run("return getComputedStyle(document.body).backgroundColor")
    return found


def test_the_list_draws_and_follows(window: Browser, hosted: HostedServer) -> None:
    with trained(hosted, "list-a", 30) as run, trained(hosted, "list-b", 10):
        window.open(url(hosted))
        window.until(lambda: window.count(".runs tbody tr") >= 2, "both runs are there")
        row = "tr:has(a[href='/runs/list-a'])"
        assert "adam" in window.text(row)
        window.until(lambda: window.count(f"{row} .spark polyline"), "its curve is drawn")
        train(run, 4)
        window.until(lambda: "34" in window.text(f"{row} .step"), "it follows")
        window.press("/")
        window.enter(".filter", "list-b")
        window.until(lambda: window.count(".runs tbody tr") == 1, "the filter holds")
        window.enter(".filter", " no such run")
        window.until(lambda: "No run looks like that" in window.text(".empty"), "nothing is said to be there")
    with connect(hosted.target) as server:
        server.delete_run("list-a")
        server.delete_run("list-b")


def test_sorted_by_what_is_asked_for(window: Browser, hosted: HostedServer) -> None:
    with trained(hosted, "sort-a", 3), trained(hosted, "sort-b", 5), trained(hosted, "sort-c", 1):
        window.open(url(hosted))
        window.enter(".filter", "sort-")

        def order() -> list[str]:
            found: list[str] = window.run(
                "return [...document.querySelectorAll('.runs tbody a')].map((each) => each.text)"
            )
            return found

        window.until(lambda: order() == ["sort-a", "sort-b", "sort-c"], "by name")
        window.click("th.step button")
        window.until(lambda: order() == ["sort-b", "sort-a", "sort-c"], "by step, the largest first")
        window.click("th.step button")
        window.until(lambda: order() == ["sort-c", "sort-a", "sort-b"], "and the other way")
        assert window.run("return document.querySelector('th.step').ariaSort") == "ascending"


def test_a_run_draws_and_is_followed(window: Browser, hosted: HostedServer) -> None:
    with trained(hosted, "live") as run:
        window.open(url(hosted, "/runs/live"))
        window.until(lambda: window.run(INK, 0, ACCENT) > 100, "its loss is drawn")
        assert window.text("h1") == "live"
        assert window.text(".chart h3") == "loss"
        assert window.text(".legend") == "0.033333"
        window.until(lambda: "gradient norm" in window.text("main"), "the server's own are there")
        train(run, 20)
        window.until(lambda: window.text(".legend") == "0.02", "its newest value is shown")
        run.step({"w": np.ones(3)}, overrides={0: {"lr": 0.5}})
        window.until(lambda: "lr 0.001 to 0.5" in window.text(".events"), "the change is told")
        window.until(lambda: "0.5" in window.text(".pairs"), "and in force")
        saved = run.save_snapshot("by hand")
        window.until(lambda: "by hand" in window.text(".snapshots"), "the snapshot is there")
        train(run, 3)
        run.roll_back(saved.id)
        window.until(lambda: "rolled back" in window.text(".events"), "going back is told")
        window.until(lambda: window.text(".legend") == "0.02", "the curve has gone back too")


def test_a_value_that_no_line_leads_to_is_a_point(window: Browser, hosted: HostedServer) -> None:
    with connect(hosted.target) as server, server.create_run("points", {"w": np.zeros(3)}, Adam()) as run:
        run.step({"w": np.ones(3)}, log={"once": 1.0})
        run.step_many({"w": np.ones((9, 3))}, returns="none", log={"gaps": np.where(np.arange(9) % 2, np.nan, 1.0)})
        window.open(url(hosted, "/runs/points"))
        for chart in (0, 1):
            window.until(partial(window.run, INK, chart, ACCENT), "it is drawn")
        assert window.run(INK, 1, ACCENT) > 3 * window.run(INK, 0, ACCENT), "each of them"


def test_curves_are_drawn_when_somebody_sees_them(window: Browser, hosted: HostedServer) -> None:
    with connect(hosted.target) as server, server.create_run("dozens", {"w": np.zeros(3)}, Adam()) as run:
        for _ in range(2):
            run.step({"w": np.ones(3)}, log={f"value {number}": 1.0 for number in range(40)})
        window.open(url(hosted, "/runs/dozens"))
        window.until(lambda: window.count(".chart") >= 40, "they are all there")
        window.until(lambda: window.run(INK, 0, ACCENT) > 50, "what is seen is drawn")
        assert window.count(".chart canvas") < 20
        window.run("document.querySelectorAll('.chart')[39].scrollIntoView()")
        window.until(lambda: window.count(".chart:nth-child(40) canvas"), "and what comes to be seen")


def test_runs_are_compared(window: Browser, hosted: HostedServer) -> None:
    with trained(hosted, "left"), trained(hosted, "right", 0) as right:
        train(right, 60, 2.0)
        window.open(url(hosted))
        window.until(lambda: window.count("a[href='/runs/right']"), "both are there")
        for name in ("left", "right"):
            window.click(f"tr:has(a[href='/runs/{name}']) input")
        window.until(lambda: window.text(".compare") == "Compare 2 runs", "they are chosen")
        window.click(".compare")
        window.until(lambda: window.run(INK, 0, ACCENT) > 50 and window.run(INK, 0, SECOND) > 50, "both are drawn")
        assert window.text(".chips").split("\n")[:2] == ["left", "right"]
        window.click(".chip button")
        window.until(lambda: not window.run(INK, 0, SECOND), "one is left")
        assert window.run("return location.search") == ""
        window.enter(".curves .filter", "right\ue007")
        window.until(lambda: window.run(INK, 0, SECOND) > 50, "and added by its name")
        window.enter(".curves .filter", "nothing\ue007")
        window.until(
            lambda: window.text(".chip.gone span, .chip.gone a") == "nothing", "one that is not there is marked"
        )
        window.until(lambda: window.run(INK, 0, ACCENT) > 50, "and keeps nothing from being drawn")


def test_scales_and_smoothing(window: Browser, hosted: HostedServer) -> None:
    def look() -> Any:
        return window.run("return document.querySelector('.chart canvas').toDataURL().length")

    with trained(hosted, "scales", 60):
        window.open(url(hosted, "/runs/scales"))
        window.until(lambda: window.run(INK, 0, ACCENT) > 100, "its loss is drawn")
        before = look()
        window.press("l")
        window.until(lambda: window.run("return document.querySelector('.chart .toggle').ariaPressed") == "true", "log")
        window.until(lambda: look() != before, "it looks otherwise")
        window.press("]")
        window.until(lambda: window.text("output") == "0.1", "smoothed")
        box = window.run("return document.querySelector('.u-over').getBoundingClientRect().toJSON()")
        left, top, width = box["x"], box["y"], box["width"]
        window.drag((left + 0.3 * width, top + 50), (left + 0.6 * width, top + 60))
        window.until(lambda: "whole range" in window.text(".bar"), "a part is shown")
        window.press("\ue00c")
        window.until(lambda: "whole range" not in window.text(".bar"), "and all of it again")


def test_no_two_places_of_an_axis_have_the_same_label(window: Browser, hosted: HostedServer) -> None:
    window.open(url(hosted))
    labels = "return import('/static/format.js').then((format) => format.labels(arguments[0]))"
    assert window.run(labels, [0, 5e6, 1e7]) == ["0", "5M", "10M"]
    assert window.run(labels, [10_000_000, 10_000_005]) == ["10,000,000", "10,000,005"]
    assert window.run(labels, [0.69314, 0.6931500000000001]) == ["0.69314", "0.69315"]
    assert window.run(labels, [None, 1, 10]) == ["", "1", "10"]
    assert window.run(labels, [0, 1e16, 3e38]) == ["0", "1e16", "3e38"]
    assert window.run(labels, [1.5e-7, 2e-7]) == ["1.5e-7", "2e-7"]


def test_axes_count_whole_steps_and_go_as_far_as_values_do(window: Browser, hosted: HostedServer) -> None:
    draw = """
    return import("/static/chart.js").then(async ({ Chart, Points }) => {
      const points = new Points();
      points.take({ from: 0, width: 1, step: arguments[0], mean: arguments[1] });
      const runs = [{ name: "runs/x", title: "x", color: "--c0", series: new Map([["loss", points]]) }];
      const shared = { runs, events: [], smoothing: 0, logStep: false, zoom: null, chosenEvent: 0, theme: 0 };
      const chart = new Chart("loss", shared);
      chart.log = arguments[2];
      document.querySelector("main").replaceChildren(chart.element);
      chart.draw();
      while (!chart.plot?.axes[0]._splits) await new Promise(requestAnimationFrame);
      return chart.plot.axes.map((axis) => axis._splits);
    });
    """
    window.open(url(hosted))
    steps, values = window.run(draw, [40, 41], [0.5, 3e38], False)
    assert steps == [40, 41]
    assert 3 <= len(values) <= 12
    assert values[-1] >= 2e38
    _, powers = window.run(draw, [40, 41], [1e-280, 1e32], True)
    assert powers == pytest.approx([1e-270, 1e-225, 1e-180, 1e-135, 1e-90, 1e-45, 1])
    _, powers = window.run(draw, [40, 41], [0.2, 3.0], True)
    assert powers == pytest.approx([*np.arange(2, 10) / 10, *range(1, 11)])


def test_words_of_others_stay_words(window: Browser, hosted: HostedServer) -> None:
    def shown(place: str) -> bool:
        return HOSTILE in window.text(place)

    with (
        connect(hosted.target) as server,
        server.create_run("hostile", {HOSTILE: np.zeros(2)}, Adam(), worker_id=HOSTILE) as run,
    ):
        run.step({HOSTILE: np.ones(2)}, log={HOSTILE: 1.0})
        run.save_snapshot(HOSTILE)
        window.open(url(hosted, "/runs/hostile"))
        window.until(lambda: HOSTILE in window.text(".workers"), "the worker is there")
        window.click("summary")
        for place in (".workers", ".events", ".snapshots", ".tensors", ".chart h3"):
            window.until(partial(shown, place), f"{place} shows it as it is")
        assert window.count("main img") == 0
        assert window.run("return document.title") == "hostile · gradwire"


def test_dark_as_the_system_is_or_as_somebody_wants_it(window: Browser, hosted: HostedServer) -> None:
    with trained(hosted, "dark"):
        window.prefer("dark")
        window.open(url(hosted, "/runs/dark"))
        window.until(lambda: window.run(INK, 0, [141, 134, 255]) > 50, "it is drawn in the colours of the dark")
        assert body_color(window) == DARK
        window.press("t")
        window.until(lambda: body_color(window) == LIGHT, "the choice holds")
        window.until(lambda: window.run(INK, 0, ACCENT) > 50, "curves change with it")
        window.open(url(hosted, "/runs/dark"))
        assert body_color(window) == LIGHT, "and is remembered"
        window.run("localStorage.clear()")


def test_it_fits_a_phone(window: Browser, hosted: HostedServer) -> None:
    with trained(hosted, "phone-with-a-rather-long-name-that-has-to-be-broken-or-cut-somewhere-since-it-fits-nowhere"):
        for path in (
            "/",
            "/runs/phone-with-a-rather-long-name-that-has-to-be-broken-or-cut-somewhere-since-it-fits-nowhere",
        ):
            window.size(360, 780)
            window.open(url(hosted, path))
            window.until(lambda: window.count(".runs tbody tr") or window.count(".chart canvas"), "it is drawn")
            assert window.run("return document.documentElement.scrollWidth") <= 360


def test_by_the_keyboard_alone(window: Browser, hosted: HostedServer) -> None:
    with trained(hosted, "keys"):
        window.open(url(hosted))
        window.enter(".filter", "keys\ue00c")
        window.until(lambda: window.count(".runs tbody tr") == 1, "it is there")
        window.press("?")
        window.until(lambda: "next run" in window.text("dialog"), "the keys are told")
        window.press("\ue00c")
        window.press("j")
        window.press("\ue007")
        window.until(lambda: window.run("return location.pathname") == "/runs/keys", "it is opened")


def test_it_comes_back_after_the_server_has(browser: Browser, tmp_path: Path) -> None:
    """Here the console says that the server was away."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ("--http", f"127.0.0.1:{port}", "--data-dir", str(tmp_path / "runs"))
    with ServerProcess(*flags) as process:
        with connect(process.target) as server, server.create_run("lasts", {"w": np.zeros(3)}, Adam()) as run:
            train(run, 5)
            browser.open(f"http://127.0.0.1:{port}/runs/lasts")
            browser.until(lambda: "5" in browser.text(".facts"), "it is shown")
            browser.run("window.same = true")
        process.kill()
    browser.until(lambda: state_of(browser) == "reconnecting", "it says that it waits")
    with ServerProcess(*flags) as process, connect(process.target) as server:
        browser.until(lambda: state_of(browser) == "live", "it is there again")
        with server.attach("lasts") as run:
            train(run, 2)
            browser.until(lambda: browser.text(".facts dd") == "7", "and goes on")
        browser.until(lambda: "recovered" in browser.text(".events"), "it says what has happened")
    assert browser.run("return window.same"), "nobody has loaded it anew"
    browser.open("about:blank")
    browser.complaints()


def test_a_run_that_is_damaged_is_said_to_be_and_is_shown_when_it_is_back(
    browser: Browser, hosted: HostedServer
) -> None:
    """Here the console says that somebody was refused."""
    damaged = hosted.registry._damaged
    damaged["runs/broken"] = DamagedRun("runs/broken", "", "its journal is not what was written")
    browser.open(url(hosted, "/runs/broken"))
    browser.until(lambda: browser.text(".head .pill") == state_of(browser) == "damaged", "it is said")
    assert "its journal is not what was written" in browser.text(".banner.wrong")
    del damaged["runs/broken"]
    browser.until(lambda: browser.text(".head .pill") == state_of(browser) == "not there", "nor is there another one")
    with trained(hosted, "broken", 3):
        browser.until(lambda: state_of(browser) == "live" and browser.text(".facts dd") == "3", "another one has come")
        browser.until(lambda: not browser.text(".banner.wrong"), "and nothing is wrong with it")
    browser.open("about:blank")
    browser.complaints()


def test_who_is_asked_signs_in_and_out(browser: Browser, tmp_path: Path) -> None:
    """Here the console says that somebody was refused."""
    access = AccessFile(tmp_path / "access.toml")
    access.add("read", "lab", "read")
    with HostedServer(http="127.0.0.1:0", access=str(access.path)) as hosted:
        browser.open(url(hosted))
        browser.until(lambda: browser.count("#token"), "it asks")
        browser.enter("#token", "gw_wrong")
        browser.click(".sign-in button")
        browser.until(lambda: "not one of this server's" in browser.text(".wrong"), "it says why not")
        browser.enter("#token", secret_of("read"))
        browser.click(".sign-in button")
        browser.until(lambda: "No runs yet" in browser.text("main"), "it lets in")
        assert browser.text("#who") == "read · lab · read"
        assert browser.run("return document.cookie") == "", "no script sees it"
        assert secret_of("read") not in browser.run("return JSON.stringify([localStorage, sessionStorage])")
        browser.click("#sign-out")
        browser.until(lambda: browser.count("#token"), "it asks again")
        browser.enter("#token", secret_of("read"))
        browser.click(".sign-in button")
        browser.until(lambda: browser.text("#who") == "read · lab · read", "it lets in once more")
        access.remove("read")
        browser.until(lambda: browser.count("#token"), "it asks by itself when the token is revoked")
        assert browser.text("#who") == ""
        assert browser.run("return document.getElementById('sign-out').hidden")
    browser.open("about:blank")
    browser.complaints()
