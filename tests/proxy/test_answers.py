"""Answers that come later, change or go, and what counts of one caller."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from google.cloud import firestore

from tests.proxy.conftest import (
    ANSWERS_PER_CALLER,
    PROJECT,
    TRUSTED_FRONT,
    FakePredict,
    running_proxy,
    token,
)
from tests.proxy.relay import FirestoreRelay

GOOD: dict[str, object] = {"text": "very good cafe"}
YES: dict[str, object] = {"is_positive_user_answered": True}
NO: dict[str, object] = {"is_positive_user_answered": False}
NOTHING: dict[str, object] = {"is_positive_user_answered": None}


def post(proxy: httpx.Client, body: Mapping[str, object] = GOOD, **headers: str) -> str:
    response = proxy.post("/predictions", json=body, headers=headers)
    assert response.status_code == 201
    return str(response.json()["id"])


def answers(proxy: httpx.Client) -> tuple[int, int, int, int]:
    """Return what is answered and correct, of all answers and of the capped ones."""
    statistics = proxy.get("/statistics").json()["statistics"]
    versions = statistics["by_model_version"]
    return (
        statistics["answered"],
        statistics["correct"],
        sum(version["capped"]["answered"] for version in versions),
        sum(version["capped"]["correct"] for version in versions),
    )


def test_an_answer_comes_later_changes_and_goes(proxy: httpx.Client) -> None:
    name = post(proxy)
    assert answers(proxy) == (0, 0, 0, 0)

    for body, expected in [
        (YES, (1, 1, 1, 1)),
        (YES, (1, 1, 1, 1)),
        (NO, (1, 0, 1, 0)),
        (NOTHING, (0, 0, 0, 0)),
        (NO, (1, 0, 1, 0)),
    ]:
        item = proxy.put(f"/predictions/{name}/answer", json=body)
        assert item.status_code == 200
        assert item.json()["is_positive_user_answered"] == body["is_positive_user_answered"]
        assert proxy.get(f"/predictions/{name}").json() == item.json()
        assert answers(proxy) == expected
    [day] = proxy.get("/statistics").json()["statistics"]["by_day"]
    assert day["confusion"]["false_positive"] == 1


def test_a_retry_still_gets_the_first_answer(proxy: httpx.Client) -> None:
    key = {"Idempotency-Key": "answered since"}
    first = proxy.post("/predictions", json=GOOD, headers=key).json()
    proxy.put(f"/predictions/{first['id']}/answer", json=NO)

    assert proxy.post("/predictions", json=GOOD, headers=key).json() == first


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"null", b'{"is_positive_user_answered": "true"}', b"[", b"\xff"]
)
def test_other_answers_are_refused(proxy: httpx.Client, body: bytes) -> None:
    name = post(proxy)
    headers = {"Content-Type": "application/json"}

    response = proxy.put(f"/predictions/{name}/answer", content=body, headers=headers)

    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"
    assert answers(proxy) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", ["0" * 32, "unknown", "..%2Fstatistics", "%00"])
def test_what_is_not_there_can_not_be_changed(proxy: httpx.Client, name: str) -> None:
    assert proxy.put(f"/predictions/{name}/answer", json=YES).status_code == 404
    assert proxy.delete(f"/predictions/{name}").status_code == 404


def test_what_is_deleted_counts_no_more(proxy: httpx.Client, database: firestore.Client) -> None:
    kept = post(proxy, GOOD | NO)
    gone = post(proxy, GOOD | YES)

    assert proxy.delete(f"/predictions/{gone}").status_code == 204

    assert proxy.delete(f"/predictions/{gone}").status_code == 404
    assert proxy.get(f"/predictions/{gone}").status_code == 404
    assert [item["id"] for item in proxy.get("/predictions").json()] == [kept]
    statistics = proxy.get("/statistics").json()["statistics"]
    assert (statistics["predictions"], statistics["answered"], statistics["correct"]) == (1, 1, 0)
    assert statistics["by_revision"][0]["predictions"] == 1
    assert database.collection("predictions").document(gone).get().to_dict() is None
    proxy.delete(f"/predictions/{kept}")
    statistics = proxy.get("/statistics").json()["statistics"]
    assert (statistics["by_model_version"], statistics["by_day"]) == ([], [])


def test_what_firestore_deletes_for_its_age_counts_on(
    proxy: httpx.Client, database: firestore.Client
) -> None:
    name = post(proxy, GOOD | YES)
    database.collection("predictions").document(name).delete()

    assert proxy.put(f"/predictions/{name}/answer", json=NO).status_code == 404
    assert proxy.delete(f"/predictions/{name}").status_code == 404
    assert proxy.get("/statistics").json()["statistics"]["predictions"] == 1
    assert answers(proxy) == (1, 1, 1, 1)


def test_changes_at_once_leave_the_last_one_counted(proxy: httpx.Client) -> None:
    name = post(proxy)

    def change(number: int) -> int:
        path, body = f"/predictions/{name}/answer", (YES, NO, NOTHING)[number % 3]
        return httpx.put(f"{proxy.base_url}{path}", json=body, timeout=30).status_code

    with ThreadPoolExecutor(12) as threads:
        statuses = set(threads.map(change, range(24)))

    # One that lost too often may be told to come again.
    assert statuses <= {200, 503}
    user = proxy.get(f"/predictions/{name}").json()["is_positive_user_answered"]
    expected = {True: (1, 1), False: (1, 0), None: (0, 0)}[user]
    assert answers(proxy)[:2] == expected


def test_only_a_callers_first_answers_are_capped(proxy: httpx.Client, predict: FakePredict) -> None:
    ids = [post(proxy, GOOD | YES) for _ in range(ANSWERS_PER_CALLER + 3)]
    assert answers(proxy) == (len(ids), len(ids), ANSWERS_PER_CALLER, ANSWERS_PER_CALLER)

    # Another version has slots of its own, and so has another caller.
    predict.model_version = "11"
    post(proxy, GOOD | NO)
    other = {"Authorization": f"Bearer {token(email='another@example.com')}"}
    post(proxy, GOOD | NO, **other)
    assert answers(proxy) == (10, 8, ANSWERS_PER_CALLER + 2, ANSWERS_PER_CALLER)

    # Changed by its caller, an answer stays what it was; by another one it takes its slot.
    proxy.put(f"/predictions/{ids[0]}/answer", json=NO)
    proxy.put(f"/predictions/{ids[-1]}/answer", json=NO)
    assert answers(proxy) == (10, 6, ANSWERS_PER_CALLER + 2, ANSWERS_PER_CALLER - 1)
    proxy.put(f"/predictions/{ids[-1]}/answer", json=YES, headers=other)
    assert answers(proxy) == (10, 7, ANSWERS_PER_CALLER + 3, ANSWERS_PER_CALLER)


def test_who_is_full_changes_nothing_of_what_counts(proxy: httpx.Client) -> None:
    headers = {"Authorization": f"Bearer {token(email='owner-of-one@example.com')}"}
    name = post(proxy, GOOD | YES, **headers)
    for _ in range(ANSWERS_PER_CALLER):
        post(proxy, GOOD | YES)
    assert answers(proxy)[2:] == (ANSWERS_PER_CALLER + 1, ANSWERS_PER_CALLER + 1)

    proxy.put(f"/predictions/{name}/answer", json=NO)

    every = ANSWERS_PER_CALLER + 1
    assert answers(proxy) == (every, ANSWERS_PER_CALLER, every, every)

    proxy.put(f"/predictions/{name}/answer", json=NOTHING)
    assert answers(proxy) == (ANSWERS_PER_CALLER, ANSWERS_PER_CALLER, every, every)

    # Who gave it may change it.
    proxy.put(f"/predictions/{name}/answer", json=NO, headers=headers)
    assert answers(proxy) == (every, ANSWERS_PER_CALLER, every, ANSWERS_PER_CALLER)


def test_a_trusted_front_names_its_users(proxy: httpx.Client, database: firestore.Client) -> None:
    front = {"Authorization": f"Bearer {token(email=TRUSTED_FRONT)}"}
    for user in ("one", "two"):
        for _ in range(ANSWERS_PER_CALLER + 1):
            post(proxy, GOOD | YES, **front, **{"X-Greenroom-Caller": f"{user} of {PROJECT}"})
    assert answers(proxy)[2] == 2 * ANSWERS_PER_CALLER

    # Anybody else is one caller, whatever it says.
    for number in range(ANSWERS_PER_CALLER + 1):
        post(proxy, GOOD | YES, **{"X-Greenroom-Caller": f"user {number}"})
    assert answers(proxy)[2] == 3 * ANSWERS_PER_CALLER

    # No caller's name is kept.
    for collection in ("predictions", "callers"):
        for snapshot in database.collection(collection).stream():
            assert TRUSTED_FRONT not in f"{snapshot.id} {snapshot.to_dict()}"
            assert "one of" not in f"{snapshot.id} {snapshot.to_dict()}"
    kept = [snapshot.to_dict() or {} for snapshot in database.collection("callers").stream()]
    assert all(document["expire_at"] > datetime.now(UTC) for document in kept)


@pytest.mark.parametrize("name", ["", "x" * 129, "tab\tin it"])
def test_malformed_callers_are_refused(proxy: httpx.Client, name: str) -> None:
    headers = {"X-Greenroom-Caller": name}
    assert proxy.post("/predictions", json=GOOD, headers=headers).status_code == 422


def test_the_cap_holds_across_processes(
    proxy: httpx.Client,
    predict: FakePredict,
    watched_firestore: FirestoreRelay,
    tmp_path: Path,
) -> None:
    with running_proxy(
        tmp_path / "proxy.log",
        f"--predict-url={predict.url}",
        f"--answers-per-caller={ANSWERS_PER_CALLER}",
        FIRESTORE_EMULATOR_HOST=watched_firestore.host,
        GOOGLE_CLOUD_PROJECT=PROJECT,
    ) as other:
        urls = [str(proxy.base_url), other] * (2 * ANSWERS_PER_CALLER)

        def ask(url: str) -> int:
            return httpx.post(
                f"{url}/predictions", json=GOOD | YES, headers=proxy.headers, timeout=30
            ).status_code

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(ask, urls)) == {201}
    count = len(urls)
    assert answers(proxy) == (count, count, ANSWERS_PER_CALLER, ANSWERS_PER_CALLER)
