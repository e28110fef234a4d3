"""Who may call whom: every pair of the table, and every way not to come in."""

import time
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest

from local.cloud_run.identity import Issuer
from local.services import SERVICES, account, read_callers, service_url
from tests.end_to_end.conftest import Loop

CALLERS = read_callers()
ACCOUNTS = [*SERVICES, "scheduler", "trainer", "stranger"]
# A path that each answers without side effects, once the caller is in.
PATHS = {
    "predict": "/ping",
    "proxy": "/ping",
    "promote": "/health",
    "mlflow-api": "/health",
    "mlflow": "/health",
    "ui": "/_stcore/health",
}


@pytest.fixture(scope="module")
def issuer(loop: Loop) -> Issuer:
    """The one that the stack's metadata servers use."""
    return Issuer(loop.settings.data_dir / "cloud_run")


def call(loop: Loop, service: str, headers: Mapping[str, str]) -> int:
    """Return the status of a call through the front end, where callers are checked."""
    url = service_url(loop.settings, service) + PATHS[service]
    proxy = loop.url("cloud_run_front")
    return httpx.get(url, headers=headers, timeout=60, trust_env=False, proxy=proxy).status_code


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("caller", ACCOUNTS)
def test_every_pair(loop: Loop, issuer: Issuer, caller: str, service: str) -> None:
    token = issuer.issue(account(caller), service_url(loop.settings, service))
    status = call(loop, service, bearer(token))
    if service in CALLERS.people:
        # IAP knows people: a service's token for the service's URL is nothing to it.
        assert status == 401
    elif caller in CALLERS.invokers[service]:
        assert status == 200
    else:
        assert status == 403


@pytest.mark.parametrize("service", SERVICES)
def test_every_door_without_a_good_token(
    loop: Loop, issuer: Issuer, tmp_path: Path, service: str
) -> None:
    url = service_url(loop.settings, service)
    invoker = account((*CALLERS.invokers[service], "promote")[0])
    good = issuer.issue(invoker, url)
    tag_url = url.replace("http://", "http://candidate---")
    two_hours_ago = time.time() - 2 * 3600
    with patch("local.cloud_run.identity.time.time", lambda: two_hours_ago):
        old = issuer.issue(invoker, url)
    for name, headers in {
        "none": {},
        "no bearer": {"Authorization": good},
        "garbage": bearer("x.y.z"),
        "other service": bearer(issuer.issue(invoker, f"{url}x")),
        "the tag's URL": bearer(issuer.issue(invoker, tag_url)),
        "a path": bearer(issuer.issue(invoker, f"{url}/predict")),
        "expired": bearer(old),
        "another key": bearer(Issuer(tmp_path).issue(invoker, url)),
        "tampered": bearer(good[:-8] + ("A" * 8 if good[-8:] != "A" * 8 else "B" * 8)),
    }.items():
        assert call(loop, service, headers) == 401, name


def test_the_table_names_every_service_and_nothing_else() -> None:
    assert set(CALLERS.invokers) == set(SERVICES)
    assert set(CALLERS.people) <= set(SERVICES)
    assert {name for names in CALLERS.invokers.values() for name in names} <= set(ACCOUNTS)


def test_a_person_at_this_machine_may_enter_by_the_services_own_port(loop: Loop) -> None:
    for service, path in PATHS.items():
        if service in loop.settings.ports:
            assert loop.http.get(f"{loop.url(service)}{path}").status_code == 200, service
