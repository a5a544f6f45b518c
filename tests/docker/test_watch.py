"""Alerts, dashboard and document speak of metrics that a server really exports, and alerts fire when they should."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import ssl
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradwire.client import AMSGrad, connect
from tests.faults.hosted import HostedServer
from tests.integration.access import AccessFile, secret_of
from tests.integration.certificates import Files
from tests.integration.watching import ask, families

ROOT = Path(__file__).resolve().parents[2]
WATCH = ROOT / "docker/watch"
ALERTS = yaml.safe_load((WATCH / "alerts.yml").read_text())
RULES: list[dict[str, Any]] = [rule for one in ALERTS["groups"] for rule in one["rules"]]
TESTS: list[dict[str, Any]] = yaml.safe_load((WATCH / "alerts_test.yml").read_text())["tests"]
DASHBOARD: dict[str, Any] = json.loads((WATCH / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
SERIES = [one["series"] for test in TESTS for one in test["input_series"]]

NAME = re.compile(r"\b((?:gradwire|grpc_server|process)_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
ADDED = {"job", "instance"}
"""Labels that Prometheus adds."""

CLOSED = {"cause", "reason", "phase", "result", "kind", "grpc_type", "direction", "path"}
"""Labels all of whose values are exported from the beginning on."""

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")


Exported = dict[str, dict[str, set[str]]]
"""Of each sample by its name: its labels, and which values each of them has."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """By a server that has all that there can be, and a run that has made a step."""
    folder = tmp_path_factory.mktemp("watch")
    files, access = Files(folder / "tls"), AccessFile(folder / "access.toml")
    access.add("train")
    settings: dict[str, Any] = {
        "http": "127.0.0.1:0",
        "metrics_per_run": True,
        "data_dir": str(folder / "data"),
        "access": str(access.path),
        "audit_log": str(folder / "audit"),
        **files.server,
    }
    found: Exported = defaultdict(lambda: defaultdict(set))
    with HostedServer(**settings) as hosted:
        step(hosted, files)
        context = ssl.create_default_context(cafile=files.path("ca.pem"))
        for family in families(ask(hosted, token=secret_of("train"), context=context).text).values():
            for sample in family.samples:
                labels = found[sample.name]
                for label, value in sample.labels.items():
                    labels[label].add(value)
    return found


def step(hosted: HostedServer, files: Files) -> None:
    with (
        connect(hosted.target, tls=files.trusting, token=secret_of("train")) as server,
        server.create_run("x", {"w": [0.0]}, AMSGrad()) as run,
    ):
        run.step({"w": [1.0]})


def used(text: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Names of metrics in a query or a series, each with its matchers."""
    for found in NAME.finditer(text):
        yield found[1], MATCHER.findall(found[2] or "")


def unknown(text: str, exported: Exported) -> list[str]:
    """What a query or a series names that no server exports."""
    wrong = []
    for name, matchers in used(text):
        if name not in exported:
            wrong.append(name)
            continue
        for label, operator, value in matchers:
            if label in ADDED:
                continue
            values = exported[name].get(label, set())
            if not values or (label in CLOSED and operator == "=" and value not in values):
                wrong.append(f"{name}{{{label}{operator}{value!r}}}")
    return wrong


def test_what_nobody_exports_is_found(exported: Exported) -> None:
    """Or the next tests could not fail."""
    assert unknown("rate(gradwire_step_total[5m])", exported) == ["gradwire_step_total"]
    assert unknown('gradwire_blocks_total{result="lost"}', exported) == ["gradwire_blocks_total{result='lost'}"]
    assert unknown('gradwire_blocks_total{job="x",cause=~".*"}', exported) == ["gradwire_blocks_total{cause=~'.*'}"]
    assert unknown('sum by (x) (gradwire_runs{job="x"}) / on (y) gradwire_streams', exported) == []


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_is_about_what_is_exported(rule: dict[str, Any], exported: Exported) -> None:
    assert rule["alert"] == "GradwireDown" or list(used(rule["expr"]))
    assert unknown(rule["expr"], exported) == []
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"].startswith("{{ $labels.instance }}")


@pytest.mark.parametrize("query", QUERIES)
def test_a_panel_is_about_what_is_exported(query: str, exported: Exported) -> None:
    assert list(used(query))
    assert unknown(query, exported) == []
    assert all('job="$job",instance=~"$instance"' in (found[2] or "") for found in NAME.finditer(query))


def test_tests_of_alerts_are_about_what_is_exported(exported: Exported) -> None:
    assert [wrong for series in SERIES for wrong in unknown(series, exported)] == []


def test_each_alert_is_seen_to_fire_and_to_be_silent() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for test in TESTS:
        for case in test.get("alert_rule_test", []):
            (fires if case["exp_alerts"] else silent).add(case["alertname"])
    assert fires == silent == {rule["alert"] for rule in RULES}


def test_what_is_exported_is_explained(exported: Exported) -> None:
    text = (ROOT / "docs/watching.md").read_text()
    explained = set(re.findall(r"`((?:gradwire|grpc_server)_\w+)`", text))
    found = {re.sub("_(bucket|count|sum)$", "", name) for name in exported if not name.startswith("process_")}
    assert explained == found


def test_the_dashboard_is_one() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    assert all(panel["title"] for panel in PANELS)
    drawn = [panel for panel in PANELS if panel["type"] != "row"]
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in drawn)
    sources = [one["datasource"] for panel in drawn for one in (panel, *panel["targets"])]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    assert {one["name"] for one in DASHBOARD["templating"]["list"]} == {"datasource", "job", "instance"}


def test_no_panel_covers_another() -> None:
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=60)


@promtool
def test_prometheus_takes_its_settings() -> None:
    assert (found := run("check", "config", str(WATCH / "prometheus.yml"))).returncode == 0, found.stderr


@promtool
def test_alerts_fire_when_they_should() -> None:
    assert (found := run("test", "rules", str(WATCH / "alerts_test.yml"))).returncode == 0, found.stdout + found.stderr


@promtool
@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("gradwire_oldest_block_seconds > 120", "gradwire_oldest_block_seconds > 1200"),
        ("gradwire_streams > 0 and ", ""),
        ("for: 2m", "for: 20m"),
        ('{cause="recovery"} > 0', " > 0"),
        ("< 0.1", "< 0.3"),
    ],
)
def test_an_alert_that_is_wrong_fails_its_tests(tmp_path: Path, text: str, wrong: str) -> None:
    rules = (WATCH / "alerts.yml").read_text()
    assert text in rules
    (tmp_path / "alerts.yml").write_text(rules.replace(text, wrong))
    shutil.copy(WATCH / "alerts_test.yml", tmp_path)
    assert run("test", "rules", str(tmp_path / "alerts_test.yml")).returncode != 0


@promtool
def test_queries_of_the_dashboard_are_queries(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(QUERIES)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert (found := run("check", "rules", str(file))).returncode == 0, found.stderr
    rules[0]["expr"] += ")"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert run("check", "rules", str(file)).returncode != 0
