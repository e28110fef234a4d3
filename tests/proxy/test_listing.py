"""Filters of the list, and predictions as a file."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from google.cloud import firestore
from hypothesis import given
from hypothesis import strategies as st

from functions.proxy.export import write_file
from functions.proxy.prediction import Prediction
from tests.proxy.conftest import FakePredict

PREDICTION = Prediction(
    id="0" * 32,
    text="a text",
    is_positive_user_answered=None,
    is_positive_model_answered=True,
    mlflow_run_id="run",
    inference_elapsed=0.001,
    timestamp=datetime(2026, 11, 20, tzinfo=UTC),
    score=0.5,
    model_version="9",
    revision=None,
    request_digest="",
)
NEWEST = datetime(2026, 11, 20, 0, 30, tzinfo=UTC)
# Text -> its cell in a CSV file.
CELLS = {
    "very good": "very good",
    "good - or bad = not + so @ all": "good - or bad = not + so @ all",
    "good; bad, -1; or\nso": "good; bad, -1; or\nso",
    '"good" as they say': '"good" as they say',
    "'tis good": "'tis good",
    " good": " good",
    '=HYPERLINK("http://x")': '\'=HYPERLINK("http://x")',
    "+1 good": "'+1 good",
    "-1 bad": "'-1 bad",
    "@SUM(A1)": "'@SUM(A1)",
    "\uff1d1+1": "'\uff1d1+1",
    "\uff0b1+1": "'\uff0b1+1",
    "\uff0d1+1": "'\uff0d1+1",
    "\uff20SUM(A1)": "'\uff20SUM(A1)",
    "\tgood one": "'\tgood one",
    "\rgood one": "'\rgood one",
    "\ngood one": "'\ngood one",
    " =1+1": " '=1+1",
    '"=1+1"': '"\'=1+1"',
    "\t=1+1": "'\t'=1+1",
    "\0=1+1": "\0'=1+1",
    "\ufeff=1+1": "\ufeff'=1+1",
    "\u200b@SUM(A1)": "\u200b'@SUM(A1)",
    "good;\u2060-1": "good;\u2060'-1",
    "\u200bgood": "\u200bgood",
    "good;=1+1": "good;'=1+1",
    "good;-1": "good;'-1",
    "good;@SUM(A1)": "good;'@SUM(A1)",
    "good;\uff0b1": "good;'\uff0b1",
    "good\t=1+1": "good\t'=1+1",
    "good\n+1 more": "good\n'+1 more",
    "good\r=1+1": "good\r'=1+1",
    'good; "=1+1"; "" +1': 'good; "\'=1+1"; "" \'+1',
    "good;;;=1": "good;;;'=1",
}
TEXTS = [*CELLS]
TAIL = ' of "them",\nwith 👍'


@pytest.fixture
def stored(database: firestore.Client) -> list[dict[str, Any]]:
    """60 predictions, an hour apart, newest first."""
    documents = []
    batch = database.batch()
    for number in range(60):
        user, model = (None, True, False)[number % 3], number % 2 == 0
        document: dict[str, Any] = {
            "text": TEXTS[number % len(TEXTS)] + TAIL,
            "is_positive_user_answered": user,
            "is_positive_model_answered": model,
            "disagrees": user is not None and user is not model,
            "mlflow_run_id": "run",
            "inference_elapsed": 0.001,
            "timestamp": NEWEST - timedelta(hours=number),
            "score": 0.5,
            "model_version": str(9 + number % 2),
            "revision": None,
            "request_digest": "",
            "schema_version": 2,
        }
        name = f"{number:032x}"
        batch.create(database.collection("predictions").document(name), document)
        documents.append(document | {"id": name})
    batch.commit()
    return documents


FILTERS = [
    ("", lambda _: True),
    ("model_version=10", lambda item: item["model_version"] == "10"),
    ("model_version=404", lambda _: False),
    ("day=2026-11-19", lambda item: item["timestamp"].day == 19),
    ("day=2026-11-20", lambda item: item["timestamp"].day == 20),
    ("day=9999-12-31", lambda _: False),
    ("disagreements=true", lambda item: item["disagrees"]),
    ("disagreements=false", lambda _: True),
    ("disagreements=true&day=2026-11-19", lambda i: i["disagrees"] and i["timestamp"].day == 19),
    (
        "disagreements=true&day=2026-11-18&model_version=9",
        lambda i: i["disagrees"] and i["timestamp"].day == 18 and i["model_version"] == "9",
    ),
]


@pytest.mark.parametrize(("query", "is_wanted"), FILTERS)
def test_filters_hold_on_every_page_and_in_files(
    proxy: httpx.Client, stored: list[dict[str, Any]], query: str, is_wanted: Any
) -> None:
    wanted = [item["id"] for item in stored if is_wanted(item)]
    found: list[str] = []
    url = f"/predictions?limit=7&{query}"
    while url:
        response = proxy.get(url)
        assert response.status_code == 200
        found += [item["id"] for item in response.json()]
        url = response.links.get("next", {}).get("url", "")
    assert found == wanted

    lines = proxy.get(f"/predictions/export?format=jsonl&{query}").text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == wanted


def test_a_file_is_safe_in_a_spreadsheet(proxy: httpx.Client, stored: list[dict[str, Any]]) -> None:
    response = proxy.get("/predictions/export")

    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="predictions.csv"'
    header, *rows = csv.reader(io.StringIO(response.text, newline=""))
    assert header == list(proxy.get("/predictions?limit=1").json()[0])
    assert len(rows) == len(stored)
    for row, item in zip(rows, stored, strict=True):
        cells = dict(zip(header, row, strict=True))
        assert cells["id"] == item["id"]
        assert cells["text"] == CELLS[item["text"].removesuffix(TAIL)] + TAIL
        user = item["is_positive_user_answered"]
        assert cells["is_positive_user_answered"] == {None: "", True: "true", False: "false"}[user]


@given(st.text(st.sampled_from("=+-@\uff1d;\t\r\n\" ,'a"), max_size=30))
def test_no_separator_makes_a_formula(text: str) -> None:
    async def file() -> bytes:
        pages = _pages([replace(PREDICTION, text=text)])
        return b"".join([part async for part in write_file("csv", pages)])

    content = asyncio.run(file()).decode()
    _, row = csv.reader(io.StringIO(content, newline=""))
    for separator in ";\t":
        cells = [cell for line in content.splitlines() for cell in line.split(separator)]
        assert not any(
            cell.lstrip(' "').startswith(("=", "+", "-", "@", "\uff1d")) for cell in cells
        )
    assert not row[1].startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))
    assert row[1].replace("'", "") == text.replace("'", "")


async def _pages(page: list[Prediction]) -> AsyncIterator[list[Prediction]]:
    yield page


def test_a_long_file_comes_whole(proxy: httpx.Client, database: firestore.Client) -> None:
    """Longer than what is read at once, with equal times at the seams."""
    batch = database.batch()
    for number in range(1100):
        batch.create(
            database.collection("predictions").document(f"{number:032x}"),
            {
                "text": "a text",
                "is_positive_user_answered": None,
                "is_positive_model_answered": True,
                "mlflow_run_id": "run",
                "inference_elapsed": 0.001,
                "timestamp": NEWEST - timedelta(seconds=number // 300),
                "score": 0.5,
                "model_version": "9",
                "revision": None,
                "request_digest": "",
            },
        )
        if number % 400 == 399:
            batch.commit()
            batch = database.batch()
    batch.commit()

    lines = proxy.get("/predictions/export?format=jsonl").text.splitlines()

    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 1100


@pytest.mark.parametrize("expired", [range(50, 60), range(5, 45), range(60), range(0, 60, 2)])
def test_what_has_expired_is_not_shown(
    proxy: httpx.Client, database: firestore.Client, stored: list[dict[str, Any]], expired: range
) -> None:
    """Firestore's TTL comes later, and the emulator has none."""
    now = datetime.now(UTC)
    batch = database.batch()
    for number, item in enumerate(stored):
        expire_at = now + timedelta(seconds=-1 if number in expired else 3600)
        reference = database.collection("predictions").document(item["id"])
        batch.update(reference, {"expire_at": expire_at})
    batch.commit()

    kept = [item["id"] for number, item in enumerate(stored) if number not in expired]
    pages, url = [], "/predictions?limit=6"
    while url:
        response = proxy.get(url)
        pages.append([item["id"] for item in response.json()])
        url = response.links.get("next", {}).get("url", "")
    assert pages == ([kept[start : start + 6] for start in range(0, len(kept), 6)] or [[]])
    lines = proxy.get("/predictions/export?format=jsonl").text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == kept
    for number, item in enumerate(stored):
        status = 404 if number in expired else 200
        assert proxy.get(f"/predictions/{item['id']}").status_code == status


def test_a_retry_gets_its_expired_prediction(
    proxy: httpx.Client, database: firestore.Client
) -> None:
    headers = {"Idempotency-Key": "the same"}
    first = proxy.post("/predictions", json={"text": "good cafe"}, headers=headers).json()
    reference = database.collection("predictions").document(first["id"])
    reference.update({"expire_at": datetime.now(UTC) - timedelta(seconds=1)})

    again = proxy.post("/predictions", json={"text": "good cafe"}, headers=headers)

    assert again.status_code == 201
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first
    assert proxy.get("/statistics").json()["statistics"]["predictions"] == 1

    answer = {"is_positive_user_answered": True}
    assert proxy.put(f"/predictions/{first['id']}/answer", json=answer).status_code == 404
    assert proxy.get("/statistics").json()["statistics"]["answered"] == 0
    assert proxy.delete(f"/predictions/{first['id']}").status_code == 204


def test_an_empty_file(proxy: httpx.Client, predict: FakePredict) -> None:
    assert proxy.get("/predictions/export?format=jsonl").content == b""
    assert proxy.get("/predictions/export").text.count("\n") == 1


@pytest.mark.parametrize(
    "query",
    [
        "day=2026-13-01",
        "day=20261101",
        "day=0",
        "day=",
        "model_version=",
        f"model_version={'1' * 64}",
        "disagreements=maybe",
    ],
)
@pytest.mark.parametrize("path", ["/predictions", "/predictions/export"])
def test_bad_filters_are_refused(proxy: httpx.Client, path: str, query: str) -> None:
    assert proxy.get(f"{path}?{query}").status_code == 422


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("since=2026-11-02&until=2026-11-01", 422),
        ("since=2024-11-01&until=2026-11-01", 422),
        ("until=0001-01-01", 200),
        ("since=9999-12-31", 200),
        ("since=2026-11-31", 422),
        ("until=1700000000", 422),
        ("since=2025-11-02&until=2026-11-01", 200),
    ],
)
def test_ranges(proxy: httpx.Client, query: str, status: int) -> None:
    assert proxy.get(f"/statistics?{query}").status_code == status
