"""Roles, and the names of runs inside the server and outside."""

from __future__ import annotations

import pytest

from gradwire.server.access.identity import ANYBODY, NEEDS, Identity, Role, qualified, split
from gradwire.v1 import service_pb2
from gradwire.wire.errors import InvalidSpec, PermissionDenied, RunNotFound

LAB = Identity("lab", Role.TRAIN, "t")
DEFAULT = Identity("default", Role.TRAIN, "t")
ADMIN = Identity("lab", Role.ADMIN, "t")
FOREIGN = "tenants/other/runs/x"


def test_every_method_of_the_contract_has_a_rule_and_nothing_else_does() -> None:
    methods = {method.name for method in service_pb2.DESCRIPTOR.services_by_name["OptimizerService"].methods}
    assert set(NEEDS) == methods


def test_a_method_without_a_rule_is_for_nobody() -> None:
    with pytest.raises(PermissionDenied, match="somebody else"):
        ADMIN.require("Invented")


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("method", NEEDS)
def test_a_role_may_do_what_those_below_it_may(method: str, role: Role) -> None:
    caller = Identity("lab", role, "t")
    if role >= NEEDS[method]:
        caller.require(method)
        return
    with pytest.raises(PermissionDenied) as caught:
        caller.require(method)
    assert caught.value.metadata == {"role": role.name.lower(), "needs": NEEDS[method].name.lower()}


def test_names_inside_and_outside() -> None:
    assert DEFAULT.inside("runs/x") == "runs/x"
    assert LAB.inside("runs/x") == "tenants/lab/runs/x"
    assert LAB.outside("tenants/lab/runs/x") == "runs/x"
    assert ADMIN.inside(FOREIGN) == FOREIGN
    assert ADMIN.inside("tenants/default/runs/x") == "runs/x"
    assert ADMIN.outside("runs/x") == "tenants/default/runs/x"
    assert ADMIN.outside("tenants/lab/runs/x") == "runs/x"
    assert ANYBODY.inside("runs/x") == ANYBODY.outside("runs/x") == "runs/x"
    assert split(qualified("lab", "runs/x")) == ("lab", "runs/x")
    assert split("runs/tenants") == ("default", "runs/tenants")


@pytest.mark.parametrize("caller", [LAB, DEFAULT, ANYBODY], ids=["lab", "default", "anybody"])
@pytest.mark.parametrize(
    "name", [FOREIGN, "tenants/lab/runs/x", "tenants/default/runs/x", "tenants/a/tenants/b/runs/x"]
)
def test_nobody_else_names_a_tenant(caller: Identity, name: str) -> None:
    with pytest.raises(RunNotFound):
        caller.inside(name)
    with pytest.raises((InvalidSpec, RunNotFound)):
        caller.inside_new(name)
    assert not caller.sees(FOREIGN)


@pytest.mark.parametrize(
    "name", ["", "x", "runs/", "runs/a/b", "runs/.x", "runs/x\n", "tenants", "tenants/", "tenants//runs/x"]
)
def test_odd_names_lead_nowhere(name: str) -> None:
    for caller in (LAB, DEFAULT, ADMIN):
        with pytest.raises(InvalidSpec):
            caller.inside_new(name)
        if name.startswith("runs/"):
            assert split(caller.inside(name))[0] == caller.tenant
            continue
        with pytest.raises(RunNotFound) as caught:
            caller.inside(name)
        assert str(caught.value) == f"there is no run {name!r} on this server"


def test_a_page_token_is_any_text_and_stays_in_its_tenant() -> None:
    for token in ("", "zzz", "\0", "tenants/other/runs/a"):
        assert LAB.after(token) == f"tenants/lab/{token}"
        assert DEFAULT.after(token) == token
    assert ADMIN.after("tenants/other/runs/a") == "tenants/other/runs/a"
    assert ADMIN.after("tenants/default/runs/a") == "runs/a"


def test_an_admin_creates_in_other_tenants_by_good_names_only() -> None:
    assert ADMIN.inside_new(FOREIGN) == FOREIGN
    with pytest.raises(InvalidSpec):
        ADMIN.inside_new("tenants/other/runs/a b")


def test_patterns_of_runs_and_workers() -> None:
    phone = Identity("lab", Role.TRAIN, "t", runs=("phone-*", "x"), workers=("w-?",))
    assert phone.inside("runs/phone-1") == "tenants/lab/runs/phone-1"
    assert phone.inside_new("runs/x") == "tenants/lab/runs/x"
    for name in ("runs/y", "runs/xphone-1", "runs/Phone-1"):
        with pytest.raises(PermissionDenied, match=r"phone-\* or x"):
            phone.inside(name)
    assert phone.sees("tenants/lab/runs/phone-1")
    assert not phone.sees("tenants/lab/runs/y")
    phone.require_worker("w-1")
    with pytest.raises(PermissionDenied, match=r"w-\?"):
        phone.require_worker("w-10")
    LAB.require_worker("anything")


def test_no_tenant_stands_in_what_is_said_of_ones_own() -> None:
    assert LAB.text("tenants/lab/runs/x is busy; tenants/lab/runs/y is not") == "runs/x is busy; runs/y is not"
    assert DEFAULT.text("runs/x is busy") == "runs/x is busy"
