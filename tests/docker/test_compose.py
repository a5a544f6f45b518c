"""The compose files obey the compose specification, keep runs, and keep the server closed, confined and able to drain.

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

from gradwire.server.cli.serve import serve_command, size
from gradwire.server.config import ServerConfig

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((Path(__file__).parent / "data/compose-spec.json").read_text())
FILES = ["compose.yaml", "compose.cuda.yaml"]
TLS_FILE = "compose.tls.yaml"
DATA = "/var/lib/gradwire"


class _Loader(yaml.SafeLoader):
    """Knows compose's mark for what replaces, and is not added to, what a file extends."""


def _sequence(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node)


_Loader.add_constructor("!override", _sequence)


def load(name: str) -> dict[str, Any]:
    """The file as it is where no variable is set."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / name).read_text())
    assert "${" not in text
    content: dict[str, Any] = yaml.load(text, _Loader)
    return content


def check(content: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(content)


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert match
    assert duration
    return 60 * int(match[1] or 0) + int(match[2] or 0)


def option(command: list[str], name: str) -> str:
    return next(word.partition("=")[2] for word in command if word.startswith(f"{name}="))


@pytest.fixture(scope="module")
def server() -> dict[str, Any]:
    service: dict[str, Any] = load("compose.yaml")["services"]["server"]
    return service


@pytest.mark.parametrize("name", [*FILES, TLS_FILE])
def test_obeys_the_schema_of_the_specification(name: str) -> None:
    assert SCHEMA["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]
    check(load(name))
    check(yaml.load((ROOT / name).read_text(), _Loader))


@pytest.mark.parametrize("name", FILES)
def test_the_schema_refuses_a_broken_file(name: str) -> None:
    for key, wrong in [("ports", "50051"), ("stop_grace_period", 45), ("helthcheck", {}), ("cap_drop", "ALL")]:
        broken = copy.deepcopy(load(name))
        broken["services"]["server"][key] = wrong
        with pytest.raises(jsonschema.ValidationError):
            check(broken)


def test_publishes_on_loopback_only(server: dict[str, Any]) -> None:
    assert server["ports"] == ["127.0.0.1:50051:50051", "127.0.0.1:9464:9464"]
    for port in server["ports"]:
        assert ipaddress.ip_address(port.rsplit(":", 2)[0]).is_loopback
    assert "network_mode" not in server
    assert '"127.0.0.1:${GRADWIRE_PORT:-50051}:50051"' in (ROOT / "compose.yaml").read_text()


def test_serves_the_published_port(server: dict[str, Any]) -> None:
    command = server["command"]
    assert command[0] == "serve"
    listen = option(command, "--listen")
    assert listen.rpartition(":")[2] == server["ports"][0].rsplit(":", 1)[1]
    http = option(command, "--http")
    assert http.rpartition(":")[2] == server["ports"][1].rsplit(":", 1)[1]
    assert option(command, "--http-name") in load("compose.yaml")["services"]  # by which other containers call it
    ServerConfig(listen=(listen,), http=http, insecure="--insecure" in command)  # not refused


def test_is_killed_only_after_the_drain(server: dict[str, Any]) -> None:
    """And after the last snapshots, which take time too."""
    assert seconds(server["stop_grace_period"]) >= ServerConfig().drain_timeout_seconds + 60
    assert server["init"] is True


def test_comes_back_by_itself(server: dict[str, Any]) -> None:
    assert server["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", FILES)
def test_health_is_said_once_in_the_image(name: str) -> None:
    """test_dockerfiles.py says how; what two places say would differ one day."""
    service = load(name)["services"]["server"]
    assert "healthcheck" not in service
    assert "HEALTHCHECK" in (ROOT / service["build"]["dockerfile"]).read_text()


def test_is_confined(server: dict[str, Any]) -> None:
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "user"} & set(server)


def test_is_bounded_and_takes_its_bounds_from_the_container(server: dict[str, Any]) -> None:
    """No --max-memory and no --threads in the command: their defaults follow the container's limits."""
    limits = server["deploy"]["resources"]["limits"]
    assert size(limits["memory"].replace("g", "GiB")) == 4 * 2**30
    assert limits["cpus"] == "0"
    assert limits["pids"] >= 256
    assert not {"--max-memory", "--threads"} & {word.partition("=")[0] for word in server["command"]}
    assert {"max-size", "max-file"} == set(server["logging"]["options"])


def test_every_setting_of_the_server_can_be_handed_on_that_the_image_does_not_decide(server: dict[str, Any]) -> None:
    variables = {parameter.envvar for parameter in serve_command.params if parameter.envvar}
    decided = {"GRADWIRE_LISTEN", "GRADWIRE_INSECURE", "GRADWIRE_DATA_DIR", "GRADWIRE_DEVICE"}
    decided |= {"GRADWIRE_HTTP", "GRADWIRE_HTTP_NAME"}
    # They name files, which would have to be handed on too, and to the health check.
    decided |= {"GRADWIRE_TLS_SERVER_CERT", "GRADWIRE_TLS_SERVER_KEY", "GRADWIRE_TLS_CLIENT_CA"}
    decided |= {"GRADWIRE_ACCESS", "GRADWIRE_AUDIT_LOG"}
    assert set(server["environment"]) == variables - decided


@pytest.mark.parametrize("name", FILES)
def test_runs_and_kernels_outlive_the_container_in_folders_that_the_image_makes(
    name: str, server: dict[str, Any]
) -> None:
    """A volume takes over the owner of such a folder; any other one would be root's, and the server end with exit 1."""
    folders = dict(reversed(volume.split(":")) for volume in server["volumes"])
    assert folders == {"/var/cache/gradwire": "kernels", DATA: "runs"}
    assert option(server["command"], "--data-dir") == DATA
    assert set(folders.values()) == set(load(name)["volumes"])
    dockerfile = (ROOT / load(name)["services"]["server"]["build"]["dockerfile"]).read_text()
    assert "GRADWIRE_CACHE_DIR=/var/cache/gradwire\n" in dockerfile
    assert f"--owner gradwire --group gradwire --mode 0700 {DATA} /var/cache/gradwire\n" in dockerfile


def test_cuda_adds_the_reservation_and_takes_nothing_away() -> None:
    service = load("compose.cuda.yaml")["services"]["server"]
    assert service.pop("extends") == {"file": "compose.yaml", "service": "server"}
    (device,) = service.pop("deploy")["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "gpu" in device["capabilities"]
    assert service == {"image": "gradwire:0.1.0-cuda", "build": {"dockerfile": "docker/cuda.Dockerfile"}}


def test_tls_asks_who_comes_before_it_opens_a_port_to_others(tmp_path: Path) -> None:
    service = load(TLS_FILE)["services"]["server"]
    assert service["extends"] == {"file": "compose.yaml", "service": "server"}
    assert service["ports"] == ["50051:50051", "127.0.0.1:9464:9464"]
    options = dict(flag.removeprefix("--").split("=") for flag in service["command"][1:])
    folder = "/run/gradwire"
    assert service["volumes"] == [f"./secrets:{folder}:ro"]
    ServerConfig(
        listen=(options["listen"],),
        http=options["http"],
        tls_cert=options["tls-cert"],
        tls_key=options["tls-key"],
        access=options["access"],
    )  # not refused
    assert all(options[name].startswith(f"{folder}/") for name in ("tls-cert", "tls-key", "access"))
    assert options["data-dir"] == DATA
    assert {value.partition("=")[0] for value in service["environment"]} == {
        "GRADWIRE_TLS_CA",
        "GRADWIRE_TLS_SERVER_NAME",
    }
    assert "!override" in (ROOT / TLS_FILE).read_text(), "the port of loopback would stay beside it"
