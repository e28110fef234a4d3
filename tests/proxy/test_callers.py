"""Who calls, from headers of any form."""

import base64

from hypothesis import given
from hypothesis import strategies as st

from functions.proxy.callers import ANONYMOUS, caller_digest, caller_name, capped_by
from tests.proxy.conftest import token

FRONTS = ("ui@example.com",)


def name(authorization: str, named: str | None = None) -> str:
    return caller_name({"authorization": authorization}, named, FRONTS)


def test_the_account_is_the_caller() -> None:
    assert name(f"Bearer {token(email='a@example.com', sub='7')}", "bob") == "a@example.com"
    assert name(f"bearer {token(sub='7')}") == "7"
    assert caller_name({}, "bob", FRONTS) == ANONYMOUS
    assert caller_name({}, "bob", ()) == ANONYMOUS


def test_of_two_tokens_the_one_that_cloud_run_checks_counts() -> None:
    headers = {
        "authorization": f"Bearer {token(email='forged@example.com')}",
        "x-serverless-authorization": f"Bearer {token(email='a@example.com')}",
    }
    assert caller_name(headers, None, FRONTS) == "a@example.com"


def test_a_trusted_front_names_another() -> None:
    front = f"Bearer {token(email='ui@example.com')}"
    assert len({name(front), name(front, "bob"), name(front, "eve")}) == 3


def test_what_is_kept_tells_neither_name_nor_relation() -> None:
    assert "bob" not in caller_digest("bob")
    assert capped_by("bob", "1") == capped_by("bob", "1")
    assert len({capped_by("bob", "1"), capped_by("bob", "2"), capped_by("eve", "1")}) == 3


@given(st.text(), st.binary(), st.none() | st.text())
def test_any_header_has_a_name(text: str, payload: bytes, named: str | None) -> None:
    encoded = base64.urlsafe_b64encode(payload).decode()
    for header in (text, f"Bearer {text}", f"Bearer a.{encoded}.b", "Bearer a.bnVsbA.b"):
        assert name(header, named)


def test_a_nested_payload_has_no_name() -> None:
    """Guards against the parser's own limit on depth."""
    deep = base64.urlsafe_b64encode(b"[" * 12_000).decode()
    assert name(f"Bearer a.{deep}.b") == ANONYMOUS
