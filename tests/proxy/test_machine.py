"""The proxy beside a model in plain Python, through any sequence of requests."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.cloud import firestore
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.emulators import FirestoreEmulator
from tests.proxy.conftest import PROJECT, FakePredict, Reply, running_proxy

USERS = st.sampled_from([None, True, False])
TEXTS = st.sampled_from(["good cafe", "bad cafe"])
KEYS = st.sampled_from(["one", "two"])
VERSIONS = st.sampled_from(["9", "10"])
UNKNOWN = "unknown"


def revision_of(version: str) -> str:
    return f"predict-{version:0>5}-abc"


@dataclass
class Stored:
    text: str
    user: bool | None
    version: str
    day: str

    @property
    def model(self) -> bool:
        return "good" in self.text


def machine(
    proxy: httpx.Client, predict: FakePredict, database: firestore.Client
) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        ids = Bundle("ids")

        @initialize()
        def begin(self) -> None:
            for collection in ("predictions", "statistics", "statistics_months", "callers"):
                for snapshot in database.collection(collection).list_documents():
                    snapshot.delete()
            self.listed: dict[str, Stored] = {}
            self.expired: list[Stored] = []
            self.keys: dict[str, tuple[str, bool | None, str]] = {}
            self.failed: Counter[str] = Counter()
            self.version_of: dict[str, str] = {}
            predict.model_version, predict.revision = "10", revision_of("10")

        def keep(self, created: dict[str, Any], user: bool | None) -> str:
            name, version = str(created["id"]), str(created["model_version"])
            day = created["details"]["timestamp"][:10]
            self.listed[name] = Stored(created["text"], user, version, day)
            self.version_of[revision_of(version)] = version
            return name

        @rule(target=ids, text=TEXTS, user=USERS, version=VERSIONS)
        def create(self, text: str, user: bool | None, version: str) -> str:
            predict.model_version, predict.revision = version, revision_of(version)
            body = {"text": text, "is_positive_user_answered": user}
            return self.keep(proxy.post("/predictions", json=body).json(), user)

        @rule(revision=VERSIONS.map(revision_of) | st.just(UNKNOWN))
        def predict_fails(self, revision: str) -> None:
            named = {} if revision == UNKNOWN else {"X-Greenroom-Revision": revision}
            predict.replies = [Reply(status=500, headers=named)]
            assert proxy.post("/predictions", json={"text": "good cafe"}).status_code == 502
            self.failed[revision] += 1

        @rule(target=ids, text=TEXTS, user=USERS, key=KEYS)
        def create_with_key(self, text: str, user: bool | None, key: str) -> object:
            body = {"text": text, "is_positive_user_answered": user}
            response = proxy.post("/predictions", json=body, headers={"Idempotency-Key": key})
            earlier = self.keys.get(key)
            if earlier is None or earlier[2] not in self.listed:
                assert response.status_code == 201
                name = self.keep(response.json(), user)
                self.keys[key] = (text, user, name)
                return name
            assert response.status_code == (201 if earlier[:2] == (text, user) else 422)
            return multiple()

        @rule(name=ids, user=USERS)
        def answer(self, name: str, user: bool | None) -> None:
            body = {"is_positive_user_answered": user}
            response = proxy.put(f"/predictions/{name}/answer", json=body)
            assert response.status_code == (200 if name in self.listed else 404)
            if name in self.listed:
                self.listed[name].user = user

        @rule(name=ids)
        def delete(self, name: str) -> None:
            response = proxy.delete(f"/predictions/{name}")
            assert response.status_code == (204 if name in self.listed else 404)
            self.listed.pop(name, None)

        @rule(name=consumes(ids))
        def expire(self, name: str) -> None:
            """As Firestore's TTL does it, which the emulator lacks."""
            if name in self.listed:
                database.collection("predictions").document(name).delete()
                self.expired.append(self.listed.pop(name))

        @invariant()
        def statistics_are_exact(self) -> None:
            found = proxy.get("/statistics").json()["statistics"]
            everything = [*self.listed.values(), *self.expired]
            self.compare(found, everything)
            for day in {one.day for one in everything}:
                query = f"/statistics?since={day}&until={day}"
                those = [one for one in everything if one.day == day]
                self.compare(proxy.get(query).json()["statistics"], those)

        def compare(self, found: dict[str, Any], group: Sequence[Stored]) -> None:
            compare_measures(found, group)
            compare_versions(found["by_model_version"], group)
            days = {item["day"]: item for item in found["by_day"]}
            assert set(days) == {one.day for one in group}
            for day, item in days.items():
                those = [one for one in group if one.day == day]
                compare_measures(item, those)
                compare_versions(item["by_model_version"], those)

        @invariant()
        def revisions_are_exact(self) -> None:
            assert self.revisions() == self.expected_revisions()

        def revisions(self) -> dict[str, tuple[str | None, int, int]]:
            found = proxy.get("/statistics").json()["statistics"]["by_revision"]
            return {
                item["revision"]: (item["model_version"], item["predictions"], item["failed"])
                for item in found
            }

        def expected_revisions(self) -> dict[str, tuple[str | None, int, int]]:
            made = Counter(
                revision_of(one.version) for one in (*self.listed.values(), *self.expired)
            )
            return {
                name: (self.version_of.get(name), made[name], self.failed[name])
                for name in made | self.failed
            }

        @invariant()
        def lists_are_exact(self) -> None:
            items = proxy.get("/predictions").json()
            assert {item["id"] for item in items} == set(self.listed)
            wrong = proxy.get("/predictions?disagreements=true").json()
            assert {item["id"] for item in wrong} == {
                name
                for name, one in self.listed.items()
                if one.user is not None and one.user is not one.model
            }

    return Machine


def compare_measures(found: dict[str, Any], group: Sequence[Stored]) -> None:
    answered = [one for one in group if one.user is not None]
    assert found["predictions"] == len(group)
    assert found["answered"] == len(answered)
    assert found["correct"] == sum(one.user is one.model for one in answered)
    assert sum(found["confusion"].values()) == len(answered)
    if group:
        positive = sum(one.model for one in group)
        score = sum(0.75 if one.model else 0.25 for one in group)
        assert found["positive_rate"] == positive / len(group)
        assert found["mean_score"] == pytest.approx(score / len(group))


def compare_versions(found: Sequence[dict[str, Any]], group: Sequence[Stored]) -> None:
    versions = {item["model_version"]: item for item in found}
    assert set(versions) == {one.version for one in group}
    for version, item in versions.items():
        compare_measures(item, [one for one in group if one.version == version])


@pytest.fixture(params=[1, pytest.param(10, marks=pytest.mark.slow)])
def proxy_with_shards(
    request: pytest.FixtureRequest,
    predict: FakePredict,
    emulator: FirestoreEmulator,
    tmp_path: Path,
) -> Iterator[httpx.Client]:
    """With one shard every commit meets what all others wrote."""
    with (
        running_proxy(
            tmp_path / "proxy.log",
            f"--predict-url={predict.url}",
            f"--statistics-shards={request.param}",
            FIRESTORE_EMULATOR_HOST=emulator.host,
            GOOGLE_CLOUD_PROJECT=PROJECT,
        ) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        yield client


@pytest.mark.parametrize("examples", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_any_sequence_of_requests_is_counted_exactly(
    proxy_with_shards: httpx.Client,
    predict: FakePredict,
    database: firestore.Client,
    examples: int,
) -> None:
    run_state_machine_as_test(
        machine(proxy_with_shards, predict, database),
        settings=settings(
            max_examples=examples,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
