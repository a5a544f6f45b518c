"""What browsers load: little, of known origin, and nothing that a strict policy would have to allow."""

from __future__ import annotations

import hashlib
import re

from gradwire.server.web.answers import POLICY
from gradwire.server.web.assets import load

MOST_BYTES = 150_000

VENDORED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE.txt": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""SHA-256 of the files of uPlot 1.6.32 as npm has them."""

ASSETS = load()
OWN = {name: asset.data.decode() for name, asset in ASSETS.items() if name not in VENDORED}


def test_all_of_it_is_little() -> None:
    assert sum(len(asset.data) for asset in ASSETS.values()) < MOST_BYTES


def test_what_others_have_made_is_what_they_have_made() -> None:
    assert {name: hashlib.sha256(ASSETS[name].data).hexdigest() for name in VENDORED} == VENDORED
    assert b"uPlot (v1.6.32)" in ASSETS["uPlot.iife.min.js"].data[:100]
    assert b"MIT License" in ASSETS["uPlot.LICENSE.txt"].data


def test_the_policy_allows_nothing_that_stands_in_text() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert set(rules.values()) == {"'none'", "'self'", "'script'"}
    assert "unsafe" not in POLICY


def test_nothing_stands_in_text() -> None:
    html = OWN["index.html"]
    assert not re.search(r"<script(?![^>]* src=)", html)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", html)


def test_nothing_comes_from_elsewhere() -> None:
    for name, text in OWN.items():
        addresses = set(re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]+", text)) - {"http://www.w3.org"}
        assert not addresses, name
    names = {match for text in OWN.values() for match in re.findall(r"/static/([\w.]+)", text)}
    names |= {match for text in OWN.values() for match in re.findall(r'from "\./([\w.]+)"', text)}
    assert names <= ASSETS.keys()
    assert ASSETS.keys() - names == {"index.html", "uPlot.LICENSE.txt"}


def test_no_script_makes_markup_of_text() -> None:
    for name, text in OWN.items():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|Function\(", text
        ), name


def test_a_tag_is_of_the_contents() -> None:
    assert len({asset.tag for asset in ASSETS.values()}) == len(ASSETS)
    assert load()["main.js"] == ASSETS["main.js"]
