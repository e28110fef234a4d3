"""Requests made from the API's own description: no failure of the server, nothing undescribed."""

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance

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
