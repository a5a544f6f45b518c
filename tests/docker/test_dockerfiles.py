"""What the images promise, read from the Dockerfiles; that they build was tried with buildah."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = {"cpu": ROOT / "docker/cpu.Dockerfile", "cuda": ROOT / "docker/cuda.Dockerfile"}
GPU_PACKAGES = ("torch", "numba-cuda", "nvidia")
HEALTH = ["gradwire", "health", "--target", "127.0.0.1:50051"]


class Instruction(NamedTuple):
    name: str
    value: str


def parse(text: str) -> list[list[Instruction]]:
    """The instructions of each stage, in order; continued lines joined, comments dropped."""
    joined = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text))
    stages: list[list[Instruction]] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, value = line.split(maxsplit=1)
        if name == "FROM":
            stages.append([])
        elif not stages:
            continue  # an ARG that FROM uses
        stages[-1].append(Instruction(name, " ".join(value.split())))
    return stages


def values(stage: list[Instruction], name: str) -> list[str]:
    return [instruction.value for instruction in stage if instruction.name == name]


def environment(stage: list[Instruction]) -> dict[str, str]:
    return dict(pair.split("=", 1) for value in values(stage, "ENV") for pair in value.split())


def printed_requirements(extra: str) -> list[str]:
    command = [sys.executable, str(ROOT / "docker/requirements.py"), extra]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def package_name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match
    return match[0].lower().replace("_", "-")


@pytest.fixture(params=list(FILES))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stages(variant: str) -> list[list[Instruction]]:
    return parse(FILES[variant].read_text())


def test_ships_from_a_later_stage_on_a_slim_base(stages: list[list[Instruction]]) -> None:
    assert [stage[0].value for stage in stages] == ["${PYTHON_IMAGE} AS base", "base AS build", "base"]
    assert not any("pip" in value for value in values(stages[-1], "RUN"))


def test_the_base_can_be_pinned_and_its_python_is_the_newest_that_all_wheels_have(variant: str) -> None:
    """3.14 was tried; whoever raises it tries `pip download --python-version` first."""
    text = FILES[variant].read_text()
    assert re.findall(r"(?m)^ARG PYTHON_IMAGE=(\S+)$", text) == ["docker.io/library/python:3.14-slim-trixie"]
    assert text.index("ARG PYTHON_IMAGE=") < text.index("FROM ")


def test_says_what_it_is(stages: list[list[Instruction]], variant: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = FILES[variant].read_text()
    assert f"ARG VERSION={project['version']}\n" in text
    assert f"-t gradwire:{project['version']}-{variant} ." in text
    labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', " ".join(values(stages[-1], "LABEL"))))
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "licenses": project["license"],
        "version": "${VERSION}",
        "revision": "${REVISION}",
        "base.name": "${PYTHON_IMAGE}",
    }
    compose = ROOT / {"cpu": "compose.yaml", "cuda": "compose.cuda.yaml"}[variant]
    assert f"    image: gradwire:{project['version']}-{variant}\n" in compose.read_text()


def test_the_tests_of_dependencies_stay_behind(stages: list[list[Instruction]]) -> None:
    (install,) = [value for value in values(stages[1], "RUN") if "requirements.txt" in value]
    assert "&& find numpy numba llvmlite -type d -name tests -prune -exec rm -r {} +" in install, "in the same layer"


def test_bytecode_does_not_depend_on_the_times_of_files(stages: list[list[Instruction]]) -> None:
    """Copies between stages may change them: then each health check compiled all that it imported."""
    installs = [value for value in values(stages[1], "RUN") if " install " in value]
    assert len(installs) == 2
    for install in installs:
        assert "--no-compile" in install
        assert "compileall -q --invalidation-mode unchecked-hash" in install


def test_runs_as_a_numbered_user_that_is_not_root(stages: list[list[Instruction]]) -> None:
    assert values(stages[-1], "USER") == ["10001:10001"]
    after = [i.name for i in stages[-1][[i.name for i in stages[-1]].index("USER") :]]
    assert "RUN" not in after
    assert "COPY" not in after


def test_starts_and_is_asked_for_its_health_without_a_shell(stages: list[list[Instruction]]) -> None:
    (entrypoint,) = values(stages[-1], "ENTRYPOINT")
    (command,) = values(stages[-1], "CMD")
    (health,) = values(stages[-1], "HEALTHCHECK")
    assert [*json.loads(entrypoint), *json.loads(command)] == ["gradwire", "serve"]
    assert json.loads(health.split("CMD ", 1)[1]) == HEALTH
    assert "--interval=30s" in health
    assert "--start-interval=1s" in health, "who waits for a healthy server need not wait half a minute"
    assert values(stages[-1], "STOPSIGNAL") == ["SIGTERM"]


def test_image_alone_stays_closed(stages: list[list[Instruction]], variant: str) -> None:
    """Promise 6: only the compose file, which publishes on loopback, says --insecure."""
    assert "insecure" not in FILES[variant].read_text().lower()
    assert "GRADWIRE_LISTEN" not in environment(stages[-1])


def test_the_folders_that_it_writes_to_belong_to_the_user(stages: list[list[Instruction]], variant: str) -> None:
    found = environment(stages[-1])
    assert found["GRADWIRE_DEVICE"] == variant
    (create,) = values(stages[-1], "RUN")
    assert found["GRADWIRE_CACHE_DIR"] == "/var/cache/gradwire"
    assert re.search(r"install .*--owner gradwire .* /var/lib/gradwire /var/cache/gradwire$", create)


def test_dependencies_are_pinned_and_installed_before_the_sources(stages: list[list[Instruction]]) -> None:
    order = [i.value for stage in stages for i in stage]
    dependencies = next(n for n, value in enumerate(order) if "--requirement requirements.txt" in value)
    assert "--constraint constraints.txt" in order[dependencies]
    assert dependencies < order.index("server server")


def test_cpu_image_installs_no_torch() -> None:
    runs = [value for stage in parse(FILES["cpu"].read_text()) for value in values(stage, "RUN")]
    assert sum("requirements.py server " in value for value in runs) == 1
    assert not any(word in value for value in runs for word in GPU_PACKAGES)
    names = [package_name(line) for line in printed_requirements("server")]
    assert {"grpcio", "numba", "click"} <= set(names)
    assert not any(name.startswith(GPU_PACKAGES) for name in names)


def test_cuda_image_installs_torch_numba_cuda_and_the_server() -> None:
    runs = [value for stage in parse(FILES["cuda"].read_text()) for value in values(stage, "RUN")]
    assert sum("requirements.py cuda " in value and "numba-cuda[cu13]" in value for value in runs) == 1
    names = [package_name(line) for line in printed_requirements("cuda")]
    assert {"grpcio", "numba", "click", "torch", "numba-cuda"} <= set(names)
    assert "gradwire" not in names


def test_variants_differ_only_where_they_must() -> None:
    cpu, cuda = (parse(path.read_text()) for path in FILES.values())
    differing = [
        one.name
        for first, second in zip(cpu, cuda, strict=True)
        for one, other in zip(first, second, strict=True)
        if one != other
    ]
    assert differing == ["RUN", "ENV", "HEALTHCHECK"]


def test_what_is_copied_exists_and_is_let_through(stages: list[list[Instruction]]) -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignore[0] == "*", "an allow-list: nothing gets in by accident"
    allowed = [line[1:] for line in ignore if line.startswith("!")]
    denied = [line for line in ignore[1:] if not line.startswith("!")]
    sources = [
        source
        for stage in stages
        for value in values(stage, "COPY")
        if not value.startswith("--from")
        for source in value.split()[:-1]
    ]
    assert sources
    assert sorted(allowed) == sorted(set(sources))
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not any(fnmatch(source, pattern) for pattern in denied)
