"""The typed client against the real proxy: whatever it answers can be read."""

import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from google.cloud import firestore

from functions.client import Client, ClientError
from tests.proxy.conftest import FakePredict, Reply


@pytest.fixture
def client(proxy: httpx.Client) -> Iterator[Client]:
    with Client(str(proxy.base_url), timeout=20, caller=secrets.token_hex(8)) as client:
        yield client


def test_a_predictions_life(client: Client, predict: FakePredict) -> None:
    created = client.predict("very good cafe", explain=True, key="a key", caller="somebody")

    assert created == client.predict("very good cafe", explain=True, key="a key")
    assert len(predict.requests) == 1
    assert created.score == 0.75
    assert (created.git_commit, created.data_digest) == ("0ea995f", "9f86d08")
    assert created.details.timestamp.tzinfo is UTC
    assert created.explanation is not None
    assert created.explanation[0].token == "very"
    assert client.predict("very bad cafe").score == 0.25

    item = client.answer(created.id, False)
    assert item.is_positive_user_answered is False
    assert client.get(created.id) == item
    client.delete(created.id)
    with pytest.raises(ClientError) as raised:
        client.get(created.id)
    assert (raised.value.kind, raised.value.status) == ("invalid", 404)
    with pytest.raises(ClientError, match="There is no prediction"):
        client.delete(created.id)


def test_pages_and_files(client: Client, predict: FakePredict) -> None:
    today = datetime.now(UTC).date()
    for number in range(7):
        predict.model_version = str(10 + number % 2)
        client.predict("very good cafe", is_positive=number % 3 == 0)

    items, cursor = [], None
    while True:
        page = client.predictions(limit=2, cursor=cursor, model_version="10", day=today)
        items += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(items) == 4
    assert {item.model_version for item in items} == {"10"}
    wrong = client.predictions(disagreements=True)
    assert len(wrong.items) == 4
    assert client.predictions(day=today - timedelta(days=1)).items == []

    lines = b"".join(client.export("jsonl", disagreements=True)).splitlines()
    assert [json.loads(line)["id"] for line in lines] == [item.id for item in wrong.items]
    assert b"".join(client.export(model_version="11", day=today)).count(b"very good") == 3


def test_statistics_with_and_without_predictions(client: Client, predict: FakePredict) -> None:
    nothing = client.statistics()
    assert (nothing.predictions, nothing.correctness_rate, nothing.latency) == (0, None, None)

    client.predict("very good cafe", is_positive=True)
    client.predict("very good cafe", is_positive=False)
    predict.reply = Reply(status=500)
    with pytest.raises(ClientError) as raised:
        client.predict("very good cafe")
    assert (raised.value.kind, raised.value.status) == ("unavailable", 502)
    assert raised.value.retry_after

    today = datetime.now(UTC).date()
    for statistics in (client.statistics(), client.statistics(since=today, until=today)):
        assert (statistics.predictions, statistics.correct) == (2, 1)
        assert statistics.correctness_interval is not None
        low, high = statistics.correctness_interval
        assert low < 0.5 < high
        assert statistics.confusion.false_positive == 1
        [version] = statistics.by_model_version
        assert (version.model_version, version.capped.answered) == ("10", 2)
        [day] = statistics.by_day
        assert day.by_model_version[0].predictions == 2
    assert client.statistics(until=today - timedelta(days=1)).predictions == 0


def test_rollouts(client: Client, database: firestore.Client) -> None:
    database.collection("rollouts").document("status").set({"phase": "stable"})
    database.collection("rollouts").document("1").set({"at": datetime.now(UTC), "what": "served"})

    rollouts = client.rollouts(limit=1)

    assert rollouts.status == {"phase": "stable"}
    assert rollouts.ledger[0]["what"] == "served"


@pytest.mark.parametrize("text", ["four", "lone \ud800 surrogate", "a" * 5121])
def test_texts_that_are_not_taken(client: Client, text: str) -> None:
    with pytest.raises(ClientError) as raised:
        client.predict(text)
    assert raised.value.kind == "invalid"


@pytest.mark.parametrize("name", ["", "../statistics", "a/b", "é", "0" * 32])
def test_ids_that_are_not_there(client: Client, name: str) -> None:
    for call in (client.get, client.delete):
        with pytest.raises(ClientError) as raised:
            call(name)
        assert raised.value.kind == "invalid"
