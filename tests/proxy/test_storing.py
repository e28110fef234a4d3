"""What is stored and counted: exactness, retries, pages, rollouts."""

import asyncio
import hashlib
import itertools
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from google.cloud import firestore

from tests.proxy.conftest import ANSWERS_PER_CALLER, PROJECT, FakePredict, running_proxy, token
from tests.proxy.relay import FirestoreRelay

CONFUSION = ("true_positive", "true_negative", "false_positive", "false_negative")
CAFE = {"text": "very good cafe", "is_positive_user_answered": True}


def post_at_once(
    proxy: httpx.Client,
    bodies: Sequence[Mapping[str, object]],
    headers: Iterable[Mapping[str, str]] = itertools.repeat({}),
) -> list[httpx.Response]:
    """Post each body, with the headers in its place, and return the answers in order."""

    async def post() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            base_url=proxy.base_url, timeout=60, headers=proxy.headers
        ) as client:
            return await asyncio.gather(
                *(
                    client.post("/predictions", json=body, headers=own)
                    for body, own in zip(bodies, headers, strict=False)
                )
            )

    return asyncio.run(post())


def test_no_predictions_yet(proxy: httpx.Client) -> None:
    assert proxy.get("/predictions").json() == []
    nothing: dict[str, object] = {
        "correctness_rate": None,
        "correctness_interval": None,
        "predictions": 0,
        "answered": 0,
        "correct": 0,
        "positive_rate": None,
        "mean_score": None,
        "confusion": dict.fromkeys(CONFUSION, 0),
        "latency": None,
        "by_model_version": [],
        "by_day": [],
        "by_revision": [],
    }
    assert proxy.get("/statistics").json() == {"statistics": nothing}
    a_week = proxy.get("/statistics?since=2026-11-01&until=2026-11-07").json()
    assert a_week == {"statistics": nothing}
    assert proxy.get("/rollouts").json() == {"status": None, "ledger": []}


def test_the_list_has_the_articles_items(proxy: httpx.Client) -> None:
    created = proxy.post("/predictions", json=CAFE).json()

    [item] = proxy.get("/predictions").json()

    assert item == {
        "id": created["id"],
        "text": "very good cafe",
        "is_positive_user_answered": True,
        "is_positive_model_answered": True,
        "mlflow_run_id": "3acade02674549b1",
        "inference_elapsed": 0.00093,
        "timestamp": created["details"]["timestamp"],
        "score": 0.75,
        "model_version": "10",
        "revision": "predict-00001-abc",
        "git_commit": "0ea995f",
        "data_digest": "9f86d08",
        "predict_elapsed": created["predict_elapsed"],
        "elapsed": created["elapsed"],
    }
    assert 0 < item["predict_elapsed"] < item["elapsed"]
    assert proxy.get(f"/predictions/{created['id']}").json() == item


@pytest.mark.parametrize(
    "prediction_id",
    [
        "0" * 32,
        "unknown",
        "..%2F..%2Fstatistics",
        "%2E%2E",
        "__x__",
        "a%2Fb",
        "%00",
        "%FF%FE",
        "x" * 5000,
        "%F0%9F%91%8D",
    ],
)
def test_unknown_ids_are_not_found(proxy: httpx.Client, prediction_id: str) -> None:
    response = proxy.get(f"/predictions/{prediction_id}")

    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_concurrent_predictions_are_counted_exactly(
    proxy: httpx.Client, predict: FakePredict
) -> None:
    """25 answered (20 of them right) with version 10, then 25 unanswered with 11."""
    good: dict[str, object] = {"text": "good cafe"}
    bad: dict[str, object] = {"text": "bad cafe"}
    answered = [good | {"is_positive_user_answered": True}] * 12
    answered += [bad | {"is_positive_user_answered": False}] * 8
    answered += [bad | {"is_positive_user_answered": True}] * 5
    assert {r.status_code for r in post_at_once(proxy, answered)} == {201}
    predict.model_version = "11"
    assert {r.status_code for r in post_at_once(proxy, [good] * 25)} == {201}

    statistics = proxy.get("/statistics").json()["statistics"]

    # Two days when midnight passed meanwhile.
    assert sum(day["predictions"] for day in statistics["by_day"]) == 50
    assert (statistics["predictions"], statistics["answered"], statistics["correct"]) == (
        50,
        25,
        20,
    )
    assert statistics["correctness_rate"] == 0.8
    assert statistics["positive_rate"] == 37 / 50
    assert statistics["mean_score"] == (37 * 0.75 + 13 * 0.25) / 50
    assert statistics["confusion"] == dict(zip(CONFUSION, (12, 8, 0, 5), strict=True))
    assert statistics["latency"]["p50"] <= statistics["latency"]["p95"]
    ten, eleven = statistics["by_model_version"]
    assert (ten["model_version"], ten["predictions"], ten["answered"]) == ("10", 25, 25)
    assert ten["capped"]["answered"] == ANSWERS_PER_CALLER
    assert ten["mean_score"] == (12 * 0.75 + 13 * 0.25) / 25
    assert (eleven["model_version"], eleven["predictions"], eleven["answered"]) == ("11", 25, 0)
    assert eleven["correctness_rate"] is None
    assert eleven["capped"] == {"answered": 0, "correct": 0}
    [revision] = statistics["by_revision"]
    assert (revision["predictions"], revision["failed"]) == (50, 0)
    assert len({item["id"] for item in proxy.get("/predictions").json()}) == 50


def test_a_retry_gets_the_first_answer(proxy: httpx.Client, predict: FakePredict) -> None:
    headers = {"Idempotency-Key": "a retry"}
    first = proxy.post("/predictions?explain=true", json=CAFE, headers=headers)
    predict.model_version = "11"
    second = proxy.post("/predictions?explain=true", json=CAFE, headers=headers)

    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert len(predict.requests) == 1
    assert proxy.get("/statistics").json()["statistics"]["predictions"] == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predictions", CAFE | {"is_positive_user_answered": False}),
        ("/predictions", CAFE | {"text": "very bad cafe"}),
        ("/predictions?explain=true", CAFE),
    ],
)
def test_a_key_stands_for_one_request(
    proxy: httpx.Client, path: str, body: dict[str, object]
) -> None:
    headers = {"Idempotency-Key": "one request"}
    assert proxy.post("/predictions", json=CAFE, headers=headers).status_code == 201

    assert proxy.post(path, json=body, headers=headers).status_code == 422
    assert proxy.get("/statistics").json()["statistics"]["predictions"] == 1


def test_retries_at_once_count_once(proxy: httpx.Client, predict: FakePredict) -> None:
    predict.reply.delay = 0.2  # all have looked for a first answer before there is one

    responses = post_at_once(proxy, [CAFE] * 20, [{"Idempotency-Key": "at once"}] * 20)

    assert {response.status_code for response in responses} == {201}
    assert len({response.text for response in responses}) == 1
    replayed = [response for response in responses if "idempotent-replayed" in response.headers]
    assert len(replayed) == 19
    assert len(proxy.get("/predictions").json()) == 1
    assert proxy.get("/statistics").json()["statistics"]["predictions"] == 1


def test_retries_at_once_to_two_processes_count_once(
    proxy: httpx.Client, predict: FakePredict, watched_firestore: FirestoreRelay, tmp_path: Path
) -> None:
    predict.reply.delay = 0.3
    with (
        running_proxy(
            tmp_path / "proxy.log",
            f"--predict-url={predict.url}",
            FIRESTORE_EMULATOR_HOST=watched_firestore.host,
            GOOGLE_CLOUD_PROJECT=PROJECT,
        ) as url,
        httpx.Client(base_url=url, timeout=20, headers=proxy.headers) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        headers = {"Idempotency-Key": "two processes"}
        under_way = [
            threads.submit(client.post, "/predictions", json=CAFE, headers=headers)
            for client in (proxy, other)
        ]
        answers = [request.result() for request in under_way]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert len({answer.text for answer in answers}) == 1
    assert len(predict.requests) == 2
    assert proxy.get("/statistics").json()["statistics"]["predictions"] == 1


def test_many_retries_at_once_of_many_requests_count_once(
    proxy: httpx.Client, predict: FakePredict, watched_firestore: FirestoreRelay
) -> None:
    """Some of a commit's predictions are there already: the others are written all the same."""
    predict.reply.delay = 0.2
    keys = [f"request {number}" for number in range(30)] * 2
    before = len(watched_firestore.calls)

    responses = post_at_once(proxy, [CAFE] * len(keys), [{"Idempotency-Key": key} for key in keys])

    assert {response.status_code for response in responses} == {201}
    assert len({(key, answer.text) for key, answer in zip(keys, responses, strict=True)}) == 30
    assert len(proxy.get("/predictions").json()) == 30
    assert proxy.get("/statistics").json()["statistics"]["predictions"] == 30
    # One by one, each of the thirty doubles would have been a commit of its own.
    assert watched_firestore.calls[before:].count("Commit") < 30


def test_new_callers_share_reads_and_commits(
    proxy: httpx.Client, predict: FakePredict, watched_firestore: FirestoreRelay
) -> None:
    """Guards against a read for each caller, one after the other, before their commit."""
    predict.reply.delay = 0.2
    callers = [f"Bearer {token(email=f'{number}@{secrets.token_hex(8)}')}" for number in range(60)]
    before = len(watched_firestore.calls)

    responses = post_at_once(
        proxy, [CAFE] * len(callers), [{"Authorization": caller} for caller in callers]
    )

    assert {response.status_code for response in responses} == {201}
    calls = Counter(watched_firestore.calls[before:])
    assert calls["Commit"] < 30
    assert calls["BatchGetDocuments"] < 30
    [version] = proxy.get("/statistics").json()["statistics"]["by_model_version"]
    assert version["capped"] == {"answered": 60, "correct": 60}


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"tab\tin it", "café".encode("latin-1")])
def test_malformed_keys_are_refused(proxy: httpx.Client, key: bytes) -> None:
    response = proxy.post("/predictions", json=CAFE, headers=[(b"Idempotency-Key", key)])

    assert response.status_code == 422
    assert proxy.get("/predictions").json() == []


def test_pages_hold_each_prediction_once_with_equal_timestamps(
    proxy: httpx.Client, database: firestore.Client
) -> None:
    """250 predictions in groups of 60 with the same time, so pages end inside a group."""
    newest = datetime(2021, 2, 4, 20, 46, 49, tzinfo=UTC)
    expected = []
    batch = database.batch()
    for number in range(250):
        prediction_id = hashlib.sha256(str(number).encode()).hexdigest()[:32]
        moment = newest - timedelta(microseconds=number // 60)
        expected.append((moment, prediction_id))
        batch.create(
            database.collection("predictions").document(prediction_id),
            {
                "text": f"review {number}",
                "is_positive_user_answered": None,
                "is_positive_model_answered": True,
                "mlflow_run_id": "run",
                "inference_elapsed": 0.001,
                "timestamp": moment,
                "score": 0.9,
                "model_version": "1",
                "revision": None,
                "request_digest": "",
                "schema_version": 1,
                "a_field_of_a_later_version": 1,
            },
        )
    batch.commit()

    found = []
    pages = 0
    url = "/predictions?limit=40"
    while True:
        response = proxy.get(url)
        found += response.json()
        pages += 1
        # A newer prediction does not shift the pages that follow.
        proxy.post("/predictions", json=CAFE)
        if "link" not in response.headers:
            break
        url = response.links["next"]["url"]

    assert pages == 7
    expected.sort(reverse=True)
    assert [item["id"] for item in found] == [prediction_id for _, prediction_id in expected]
    # The article's form, also for a whole second.
    assert found[0]["timestamp"] == "2021-02-04T20:46:49.000000"


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "cursor=",
        "cursor=nonsense",
        "cursor=%F0%9F%91%8D",
        "cursor=Li4vLi5AMTIz",
        "cursor=" + "A" * 201,
        # A well-formed one beyond the year 9999.
        "cursor=MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDBAOTk5OTk5OTk5OTk5OTk5OTk5",
    ],
)
def test_bad_pages_are_refused(proxy: httpx.Client, query: str) -> None:
    response = proxy.get(f"/predictions?{query}")

    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


def test_rollouts_are_the_status_and_the_newest_entries(
    proxy: httpx.Client, database: firestore.Client
) -> None:
    rollouts = database.collection("rollouts")
    start = datetime(2021, 2, 4, 20, 46, 49, 484379, tzinfo=UTC)
    rollouts.document("status").set(
        {"phase": "stable", "at": start + timedelta(days=1), "steps": [{"since": start}]}
    )
    for number in range(5):
        rollouts.document(f"entry-{number}").set(
            {"at": start + timedelta(minutes=number), "ratio": float("nan"), "raw": b"\0"}
        )

    answer = proxy.get("/rollouts?limit=2").json()

    assert answer == {
        "status": {
            "phase": "stable",
            "at": "2021-02-05T20:46:49.484379Z",
            "steps": [{"since": "2021-02-04T20:46:49.484379Z"}],
        },
        "ledger": [
            {"id": "entry-4", "at": "2021-02-04T20:50:49.484379Z", "ratio": None, "raw": "AA=="},
            {"id": "entry-3", "at": "2021-02-04T20:49:49.484379Z", "ratio": None, "raw": "AA=="},
        ],
    }


def test_what_is_stored(proxy: httpx.Client, database: firestore.Client) -> None:
    created = proxy.post("/predictions", json=CAFE).json()

    document = database.collection("predictions").document(created["id"]).get().to_dict()
    assert document is not None
    assert isinstance(document["timestamp"], datetime)
    assert document["schema_version"] == 2
    assert document["disagrees"] is False
    assert document["expire_at"] - document["timestamp"] == timedelta(days=30)
    [total] = [
        snapshot.to_dict()
        for snapshot in database.collection("statistics").stream()
        if snapshot.id != "shards"
    ]
    [month] = [snapshot.to_dict() for snapshot in database.collection("statistics_months").stream()]
    assert total is not None
    assert month is not None
    day = created["details"]["timestamp"][:10]
    counts = total["versions"]["10"]
    assert month["days"] == {day: {"10": counts}}
    assert month["revisions"] == {
        day: {"predict-00001-abc": {"predictions": 1, "model_version": "10"}}
    }
    [bucket] = [name for name in counts if name.startswith("latency_")]
    assert counts == {
        "count": 1,
        "positive": 1,
        "score_nano": 750_000_000,
        "true_positive": 1,
        "capped_answered": 1,
        "capped_correct": 1,
        "elapsed_micros": round(created["elapsed"] * 1e6),
        bucket: 1,
    }


def test_fewer_shards_later_lose_nothing(
    proxy: httpx.Client,
    predict: FakePredict,
    watched_firestore: FirestoreRelay,
    tmp_path: Path,
) -> None:
    with running_proxy(
        tmp_path / "proxy.log",
        f"--predict-url={predict.url}",
        "--statistics-shards=40",
        FIRESTORE_EMULATOR_HOST=watched_firestore.host,
        GOOGLE_CLOUD_PROJECT=PROJECT,
    ) as url:
        for _ in range(12):
            assert httpx.post(f"{url}/predictions", json=CAFE, timeout=20).status_code == 201
    assert proxy.post("/predictions", json=CAFE).status_code == 201

    statistics = proxy.get("/statistics").json()["statistics"]
    assert statistics["predictions"] == 13
    assert sum(day["predictions"] for day in statistics["by_day"]) == 13


def test_statistics_cost_the_same_reads_however_many_predictions(
    proxy: httpx.Client, watched_firestore: FirestoreRelay
) -> None:
    def reads() -> int:
        before = watched_firestore.reads
        assert proxy.get("/statistics").status_code == 200
        return watched_firestore.reads - before

    proxy.post("/predictions", json=CAFE)
    first = reads()
    answers = post_at_once(proxy, [{"text": "good one"}] * 60)
    assert {answer.status_code for answer in answers} == {201}
    assert reads() == first > 0


def test_a_document_that_is_not_ours_is_an_error_of_the_server(
    proxy: httpx.Client, database: firestore.Client
) -> None:
    """Guards against functions-framework starting a second response for an exception."""
    database.collection("predictions").document("0" * 32).set({"text": "a secret"})

    response = proxy.get("/predictions/" + "0" * 32)

    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert "secret" not in response.text
    assert proxy.get("/health").status_code == 200
