"""POST /predictions: its shape, its limits, and what it refuses."""

import json
import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.proxy.conftest import FakePredict

CAFE = {"text": "very good cafe", "is_positive_user_answered": True}


def is_problem(response: httpx.Response) -> bool:
    return (
        response.headers["content-type"] == "application/problem+json"
        and response.json()["status"] == response.status_code
    )


def test_the_articles_call_gives_the_articles_answer(proxy: httpx.Client) -> None:
    response = proxy.post("/predictions", json=CAFE)

    assert response.status_code == 201
    answer = response.json()
    assert isinstance(answer.pop("id"), str)
    timestamp = answer["details"].pop("timestamp")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", timestamp)
    assert 0 < answer.pop("predict_elapsed") < answer.pop("elapsed")
    assert answer == {
        "text": "very good cafe",
        "is_positive": {"user_answered": True, "model_answered": True},
        "details": {"mlflow_run_id": "3acade02674549b1", "inference_elapsed": 0.00093},
        "score": 0.75,
        "model_version": "10",
        "revision": "predict-00001-abc",
        "git_commit": "0ea995f",
        "data_digest": "9f86d08",
    }


@pytest.mark.parametrize("body", [{}, {"is_positive_user_answered": None}])
def test_the_users_answer_may_be_missing(proxy: httpx.Client, body: dict[str, None]) -> None:
    response = proxy.post("/predictions", json={"text": "bad cafe"} | body)

    assert response.status_code == 201
    assert response.json()["is_positive"] == {"user_answered": None, "model_answered": False}


def test_the_explanation_passes_through(proxy: httpx.Client) -> None:
    answer = proxy.post("/predictions?explain=true", json=CAFE).json()

    assert answer["bias"] == 0.25
    assert answer["explanation"] == [{"token": "very", "start": 0, "end": 4, "contribution": 0.5}]


@pytest.mark.parametrize(
    "text", ["five!", "ééééé", "👍👍👍👍👍", "a" * 5120, "👍" * 5120, "nul\0nul"]
)
def test_texts_at_the_limits_are_taken(proxy: httpx.Client, text: str) -> None:
    created = proxy.post("/predictions", json={"text": text})

    assert created.status_code == 201
    assert proxy.get(f"/predictions/{created.json()['id']}").json()["text"] == text


@pytest.mark.parametrize(
    "body",
    [
        '{"text": "four"}',
        '{"text": "👍👍👍👍"}',
        json.dumps({"text": "a" * 5121}),
        '{"text": "lone \\ud800 surrogate"}',
        '{"text": 12345}',
        '{"text": null}',
        '{"text": ["very good cafe"]}',
        '{"text": "very good cafe", "is_positive_user_answered": "true"}',
        '{"text": "very good cafe", "is_positive_user_answered": 1}',
        '{"text": "very good cafe", "unknown": 1}',
        '{"text": "very good cafe", "\\ud800": 1}',
        '{"is_positive_user_answered": true}',
        "[]",
        "null",
        '"very good cafe"',
        "",
        "{",
        "not json",
        "NaN",
        '{"text": "very good cafe"} {}',
        json.dumps(dict.fromkeys(map(str, range(10_000)))),
    ],
)
def test_other_bodies_are_refused(proxy: httpx.Client, predict: FakePredict, body: str) -> None:
    response = proxy.post(
        "/predictions", content=body, headers={"Content-Type": "application/json"}
    )

    assert response.status_code == 422
    assert is_problem(response)
    assert len(response.content) < 10_000
    assert not predict.requests


@pytest.mark.parametrize("body", [b"\xff\xfe", b'{"text": "caf\xe9 caf\xe9"}', b"[" * 500_000])
def test_bytes_that_are_not_json_are_refused(proxy: httpx.Client, body: bytes) -> None:
    response = proxy.post(
        "/predictions", content=body, headers={"Content-Type": "application/json"}
    )

    assert response.status_code in (400, 422)
    assert is_problem(response)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_above_a_mebibyte_is_refused(proxy: httpx.Client, chunked: bool) -> None:
    size = 3 * 1024 * 1024

    def chunks() -> Iterator[bytes]:
        for _ in range(size // 65536):
            yield b" " * 65536

    response = proxy.post("/predictions", content=chunks() if chunked else b" " * size)

    assert response.status_code == 413
    assert is_problem(response)


def test_an_endless_body_is_refused_before_its_end(proxy: httpx.Client) -> None:
    address = urlsplit(str(proxy.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(b"POST /predictions HTTP/1.1\r\nHost: x\r\n")
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")

        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_exactly_a_mebibyte_is_read(proxy: httpx.Client) -> None:
    body = json.dumps(CAFE).encode().ljust(1024 * 1024)
    headers = {"Content-Type": "application/json"}

    assert proxy.post("/predictions", content=body, headers=headers).status_code == 201
    assert proxy.post("/predictions", content=body + b" ", headers=headers).status_code == 413


def test_the_trace_goes_on_to_predict(proxy: httpx.Client, predict: FakePredict) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    proxy.post("/predictions", json=CAFE, headers={"X-Cloud-Trace-Context": f"{trace}/7;o=1"})

    assert predict.requests[-1]["traceparent"] == f"00-{trace}-0000000000000007-01"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/", 404),
        ("GET", "/predictions/", 404),
        ("DELETE", "/predictions", 405),
        ("POST", "/statistics", 405),
        ("PUT", "/ping", 405),
    ],
)
def test_unknown_paths_and_methods_are_problems(
    proxy: httpx.Client, method: str, path: str, status: int
) -> None:
    response = proxy.request(method, path)

    assert response.status_code == status
    assert is_problem(response)
    assert (status == 405) == ("allow" in response.headers)


def test_the_process_answers(proxy: httpx.Client) -> None:
    assert proxy.get("/ping").json() == {"ping": "pong"}
    assert proxy.get("/health").status_code == 200
