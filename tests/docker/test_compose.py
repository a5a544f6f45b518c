"""The compose files obey the compose specification and keep the server closed, confined and able to drain.

`data/compose-spec.json` is the specification's own JSON schema, unchanged, under the Apache License 2.0 (beside it in
`LICENSE.compose-spec`); it came from the PyPI package check-jsonschema 0.39.0, which carries it as data.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gradwire.server.config import ServerConfig

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((Path(__file__).parent / "data/compose-spec.json").read_text())
FILES = ["compose.yaml", "compose.cuda.yaml"]


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return content


def check(content: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(content)


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert match
    assert duration
    return 60 * int(match[1] or 0) + int(match[2] or 0)


@pytest.fixture(scope="module")
def server() -> dict[str, Any]:
    service: dict[str, Any] = load("compose.yaml")["services"]["server"]
    return service


@pytest.mark.parametrize("name", FILES)
def test_obeys_the_schema_of_the_specification(name: str) -> None:
    assert SCHEMA["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]
    check(load(name))


@pytest.mark.parametrize("name", FILES)
def test_the_schema_refuses_a_broken_file(name: str) -> None:
    for key, wrong in [("ports", "50051"), ("stop_grace_period", 45), ("helthcheck", {}), ("cap_drop", "ALL")]:
        broken = copy.deepcopy(load(name))
        broken["services"]["server"][key] = wrong
        with pytest.raises(jsonschema.ValidationError):
            check(broken)


def test_publishes_on_loopback_only(server: dict[str, Any]) -> None:
    assert server["ports"] == ["127.0.0.1:50051:50051"]
    for port in server["ports"]:
        assert ipaddress.ip_address(port.rsplit(":", 2)[0]).is_loopback
    assert "network_mode" not in server


def test_serves_the_published_port(server: dict[str, Any]) -> None:
    command = server["command"]
    assert command[0] == "serve"
    listen = command[command.index("--listen") + 1]
    assert listen.rpartition(":")[2] == server["ports"][0].rsplit(":", 1)[1]
    ServerConfig(listen=(listen,), insecure="--insecure" in command)  # not refused


def test_is_killed_only_after_the_drain(server: dict[str, Any]) -> None:
    assert seconds(server["stop_grace_period"]) >= ServerConfig().drain_timeout_seconds + 5


def test_health_is_asked_through_the_health_service(server: dict[str, Any]) -> None:
    how, *command = server["healthcheck"]["test"]
    assert how == "CMD", "without a shell"
    port = server["ports"][0].rsplit(":", 1)[1]
    assert command == ["gradwire", "health", "--target", f"127.0.0.1:{port}"]


def test_is_confined(server: dict[str, Any]) -> None:
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "user"} & set(server)


@pytest.mark.parametrize("name", FILES)
def test_the_kernel_cache_outlives_the_container(name: str, server: dict[str, Any]) -> None:
    volume, _, target = server["volumes"][0].partition(":")
    assert volume in load(name)["volumes"]
    dockerfile = ROOT / load(name)["services"]["server"]["build"]["dockerfile"]
    assert f"GRADWIRE_CACHE_DIR={target}\n" in dockerfile.read_text()


def test_cuda_adds_the_reservation_and_takes_nothing_away() -> None:
    service = load("compose.cuda.yaml")["services"]["server"]
    assert service.pop("extends") == {"file": "compose.yaml", "service": "server"}
    (device,) = service.pop("deploy")["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "gpu" in device["capabilities"]
    assert service == {"image": "gradwire:cuda", "build": {"dockerfile": "docker/cuda.Dockerfile"}}
