"""Requests beyond the limit, failures by revision, and lineage."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.emulators import FirestoreEmulator
from tests.proxy.conftest import PROJECT, FakePredict, Reply, running_proxy

CAFE = {"text": "very good cafe", "is_positive_user_answered": True}


@contextmanager
def own_proxy(
    predict: FakePredict, emulator: FirestoreEmulator, folder: Path, *arguments: str
) -> Iterator[httpx.Client]:
    with (
        running_proxy(
            folder / "proxy.log",
            f"--predict-url={predict.url}",
            *arguments,
            FIRESTORE_EMULATOR_HOST=emulator.host,
            GOOGLE_CLOUD_PROJECT=PROJECT,
        ) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def test_more_requests_at_once_than_allowed(
    predict: FakePredict, emulator: FirestoreEmulator, tmp_path: Path
) -> None:
    predict.reply.delay = 2
    with (
        own_proxy(predict, emulator, tmp_path, "--max-in-flight=2") as proxy,
        ThreadPoolExecutor(2) as threads,
    ):
        under_way = [threads.submit(proxy.post, "/predictions", json=CAFE) for _ in range(2)]
        while len(predict.requests) < 2:
            time.sleep(0.01)

        for method, path in [("POST", "/predictions"), ("GET", "/statistics"), ("GET", "/nothing")]:
            refused = proxy.request(method, path, json=CAFE if method == "POST" else None)
            assert refused.status_code == 429
            assert refused.headers["content-type"] == "application/problem+json"
            assert int(refused.headers["retry-after"]) > 0
        assert proxy.get("/health").status_code == 200
        assert proxy.get("/ping").status_code == 200

        assert [request.result().status_code for request in under_way] == [201, 201]
        assert proxy.get("/statistics").json()["statistics"]["predictions"] == 2


def revisions(proxy: httpx.Client) -> dict[str, tuple[int, int]]:
    found = proxy.get("/statistics").json()["statistics"]["by_revision"]
    return {item["revision"]: (item["predictions"], item["failed"]) for item in found}


def test_failures_are_counted_by_the_revision_that_failed(
    proxy: httpx.Client, predict: FakePredict
) -> None:
    assert proxy.post("/predictions", json=CAFE).status_code == 201
    named = {"X-Greenroom-Revision": "predict-00002-abc"}
    for reply in (
        Reply(status=500, headers=named),
        Reply(body=b"{}", headers=named),
        Reply(status=500, headers={"X-Greenroom-Revision": "__no__ `revision`"}),
        Reply(status=500),
    ):
        predict.reply = reply
        assert proxy.post("/predictions", json=CAFE).status_code == 502

    expected = {"predict-00001-abc": (1, 0), "predict-00002-abc": (0, 2), "unknown": (0, 2)}
    # Counted before they were answered: an idle instance has no time for it later.
    assert revisions(proxy) == expected
    statistics = proxy.get("/statistics").json()["statistics"]
    assert [item["model_version"] for item in statistics["by_revision"]] == ["10", None, None]
    assert statistics["predictions"] == 1


@pytest.mark.parametrize(
    ("status", "headers"), [(503, {}), (429, {"Retry-After": "0"}), (503, {"Retry-After": "soon"})]
)
def test_predict_is_asked_again_when_it_was_busy(
    proxy: httpx.Client, predict: FakePredict, status: int, headers: dict[str, str]
) -> None:
    predict.replies = [Reply(status=status, headers=headers)]

    assert proxy.post("/predictions", json=CAFE).status_code == 201
    assert len(predict.requests) == 2
    assert revisions(proxy) == {"predict-00001-abc": (1, 0)}


def test_a_wait_beyond_the_time_out_is_passed_on(proxy: httpx.Client, predict: FakePredict) -> None:
    predict.reply = Reply(status=503, headers={"Retry-After": "60"})

    response = proxy.post("/predictions", json=CAFE)

    assert response.status_code == 503
    assert response.headers["retry-after"] == "60"
    assert len(predict.requests) == 1


def lineage(answer: Any) -> tuple[str | None, str | None]:
    return answer["git_commit"], answer["data_digest"]


def test_lineage_is_that_of_the_answer(proxy: httpx.Client, predict: FakePredict) -> None:
    """From the first answer of a new revision on, whichever one answered before."""
    for commit, digest in [("0ea995f", "9f86d08"), ("8884456", "e3b0c44"), ("0ea995f", "9f86d08")]:
        predict.lineage = {"X-Greenroom-Git-Commit": commit, "X-Greenroom-Data-Digest": digest}
        answer = proxy.post("/predictions", json=CAFE).json()
        assert lineage(answer) == (commit, digest)
        assert lineage(proxy.get(f"/predictions/{answer['id']}").json()) == (commit, digest)


@pytest.mark.parametrize("value", [None, "", "x" * 129, "two words", "caf\xe9"])
def test_answers_come_without_lineage_too(
    proxy: httpx.Client, predict: FakePredict, value: str | None
) -> None:
    known = {"X-Greenroom-Data-Digest": "9f86d08"}
    predict.lineage = known | ({} if value is None else {"X-Greenroom-Git-Commit": value})

    response = proxy.post("/predictions", json=CAFE)

    assert response.status_code == 201
    assert lineage(response.json()) == (None, "9f86d08")
