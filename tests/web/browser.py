"""A headless Chromium, spoken to as the W3C's WebDriver has it: a few calls are less than a library for all of them."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

WAIT_SECONDS = 30.0
"""How long anything that should happen at once may take on a busy machine."""

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""By which the standard marks elements."""


def programs() -> tuple[str, str] | None:
    """Paths of a Chromium and of its driver; None: one of them is not installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One window. A context manager; needs what `programs` finds."""

    def __init__(self) -> None:
        found = programs()
        assert found is not None, "expected chromium and chromedriver on PATH"
        browser, driver = found
        self._profile = tempfile.mkdtemp(prefix="gradwire-browser-")
        self._driver = subprocess.Popen(
            [driver, "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "HOME": self._profile},  # what it leaves behind goes with its profile
        )
        self._session = ""
        try:
            self._address = f"http://127.0.0.1:{self._port()}"
            arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            arguments += ["--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run"]
            arguments += ["--force-device-scale-factor=1", f"--user-data-dir={self._profile}"]
            wanted = {
                "goog:chromeOptions": {"binary": browser, "args": arguments},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{answer['sessionId']}"
        except BaseException:
            self.close()
            raise

    def _port(self) -> int:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if "started successfully on port" in line:
                return int(line.rstrip(".\n").rpartition(" ")[2])
        raise AssertionError("the driver has ended")

    def open(self, url: str) -> None:
        self._do("POST", "/url", {"url": url})

    def size(self, width: int, height: int) -> None:
        """Of what the page has, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """``light`` or ``dark``: what the system's settings say."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.devtools("Emulation.setEmulatedMedia", {"features": [feature]})

    def devtools(self, command: str, parameters: Mapping[str, Any]) -> Any:
        """A command of Chromium's own protocol."""
        return self._do("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns; it is the body of a function."""
        return self._do("POST", "/execute/sync", {"script": script, "args": arguments})

    def text(self, selector: str) -> str:
        """What is to be read in an element; empty: it is not there."""
        found: str = self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        return found

    def count(self, selector: str) -> int:
        found: int = self.run("return document.querySelectorAll(arguments[0]).length", selector)
        return found

    def click(self, selector: str) -> None:
        self._do("POST", f"/element/{self._element(selector)}/click", {})

    def enter(self, selector: str, text: str) -> None:
        self._do("POST", f"/element/{self._element(selector)}/value", {"text": text})

    def press(self, key: str) -> None:
        """A key, wherever the focus is."""
        events = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._do("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": events}]})

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """The mouse, from one place to another, pressed."""
        moves = [
            {"type": "pointerMove", "x": round(start[0]), "y": round(start[1])},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "x": round(end[0]), "y": round(end[1]), "duration": 50},
            {"type": "pointerUp", "button": 0},
        ]
        self._do("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """The first value of ``condition()`` that is true."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            if found := condition():
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"did not happen: {what}; the page says {self.text('main')[:2000]!r}")
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """What the console has had of warnings and errors since it was asked last."""
        lines = self._do("POST", "/se/log", {"type": "browser"})
        return [line["message"] for line in lines if line["level"] in ("SEVERE", "WARNING")]

    def picture(self, path: Path) -> None:
        """Of what the window shows, as PNG."""
        path.write_bytes(base64.b64decode(self._do("GET", "/screenshot")))

    def close(self) -> None:
        try:
            if self._session:
                self._do("DELETE", "")
        except (OSError, urllib.error.URLError):  # it has gone by itself
            pass
        finally:
            self._driver.terminate()
            self._driver.wait()
            if self._driver.stdout is not None:
                self._driver.stdout.close()
            shutil.rmtree(self._profile, ignore_errors=True)

    def _element(self, selector: str) -> str:
        found = self._do("POST", "/element", {"using": "css selector", "value": selector})
        name: str = found[_ELEMENT]
        return name

    def _do(self, method: str, path: str, body: Any = None) -> Any:
        return self._call(method, f"{self._session}{path}", body)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self._address}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path}: {json.load(error)['value']['message']}") from None

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
