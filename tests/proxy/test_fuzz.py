"""Requests made from the API's own description: no failure of the server, nothing undescribed."""

import secrets
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from functions.proxy.api import create_app
from functions.proxy.settings import Settings
from tests.proxy.conftest import FakePredict

api = schemathesis.openapi.from_dict(create_app(Settings()).openapi())

# What their description says in words: a cursor comes from the page before, a range has at
# most 366 days, an Idempotency-Key stands for one request.
IN_WORDS = {"/predictions", "/statistics"}


@pytest.fixture
def described(proxy: httpx.Client, predict: FakePredict) -> str:
    return str(proxy.base_url)


@api.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_requests_are_answered_as_described(case: Case[Any], described: str) -> None:
    response = case.call(base_url=described, timeout=20)

    is_in_words = case.path in IN_WORDS and response.status_code == 422
    case.validate_response(
        response, excluded_checks=[positive_data_acceptance] if is_in_words else []
    )


@api.include(path_regex=r"prediction_id").parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_requests_for_a_prediction_that_exists(case: Case[Any], described: str) -> None:
    """Drawn ids are never those of a prediction: only errors would be compared."""
    created = httpx.post(f"{described}/predictions", json={"text": "very good cafe"}, timeout=20)
    case.path_parameters["prediction_id"] = created.json()["id"]
    response = case.call(base_url=described, timeout=20)

    assert response.status_code != 404
    # The id that is wrong by intention was replaced.
    case.validate_response(response, excluded_checks=[negative_data_rejection])


@api.include(path="/predictions", method="POST").parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_retries_are_answered_as_described(case: Case[Any], described: str) -> None:
    case.headers["Idempotency-Key"] = secrets.token_hex(8)
    first = case.call(base_url=described, timeout=20)
    again = case.call(base_url=described, timeout=20)

    assert again.status_code == first.status_code
    if again.status_code == 201:
        assert again.headers["idempotent-replayed"] == ["true"]
        assert again.json()["id"] == first.json()["id"]
    case.validate_response(
        again, excluded_checks=[negative_data_rejection, positive_data_acceptance]
    )
