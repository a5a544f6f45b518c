"""One browser and one server for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.hosted import HostedServer
from tests.integration.watching import hosted_page
from tests.web.browser import Browser, programs


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A window; whoever takes it leaves it somewhere."""
    if programs() is None:
        pytest.skip("no chromium and chromedriver here (Debian's packages of these names)")
    with Browser() as window:
        yield window


@pytest.fixture
def window(browser: Browser) -> Iterator[Browser]:
    """The browser as it is at first: of usual size, in the light; its console must stay silent."""
    browser.open("about:blank")
    browser.complaints()
    browser.size(1280, 900)
    browser.prefer("light")
    yield browser
    assert browser.complaints() == []


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedServer]:
    """Shared; give runs names of your own. It tells news sooner than elsewhere."""
    with hosted_page() as server:
        yield server
