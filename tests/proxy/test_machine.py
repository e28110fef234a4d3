"""The proxy beside a model in plain Python, through any sequence of requests."""

from dataclasses import dataclass

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

from tests.proxy.conftest import FakePredict

USERS = st.sampled_from([None, True, False])
TEXTS = st.sampled_from(["good cafe", "bad cafe"])
KEYS = st.sampled_from(["one", "two"])


@dataclass
class Stored:
    text: str
    user: bool | None
    version: str

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

        @rule(target=ids, text=TEXTS, user=USERS, version=st.sampled_from(["9", "10"]))
        def create(self, text: str, user: bool | None, version: str) -> str:
            predict.model_version = version
            body = {"text": text, "is_positive_user_answered": user}
            name = str(proxy.post("/predictions", json=body).json()["id"])
            self.listed[name] = Stored(text, user, version)
            return name

        @rule(target=ids, text=TEXTS, user=USERS, key=KEYS)
        def create_with_key(self, text: str, user: bool | None, key: str) -> object:
            body = {"text": text, "is_positive_user_answered": user}
            response = proxy.post("/predictions", json=body, headers={"Idempotency-Key": key})
            earlier = self.keys.get(key)
            if earlier is None or earlier[2] not in self.listed:
                assert response.status_code == 201
                name = str(response.json()["id"])
                self.keys[key] = (text, user, name)
                self.listed[name] = Stored(text, user, predict.model_version)
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
            for version in [None, "9", "10"]:
                group = [one for one in everything if version in (None, one.version)]
                answered = [one for one in group if one.user is not None]
                measures = found
                if version is not None:
                    versions = {item["model_version"]: item for item in found["by_model_version"]}
                    assert (version in versions) == bool(group)
                    if not group:
                        continue
                    measures = versions[version]
                assert measures["predictions"] == len(group)
                assert measures["answered"] == len(answered)
                assert measures["correct"] == sum(one.user is one.model for one in answered)
                assert sum(measures["confusion"].values()) == len(answered)
                if group:
                    positive = sum(one.model for one in group)
                    score = sum(0.75 if one.model else 0.25 for one in group)
                    assert measures["positive_rate"] == positive / len(group)
                    assert measures["mean_score"] == pytest.approx(score / len(group))

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


@pytest.mark.parametrize("examples", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_any_sequence_of_requests_is_counted_exactly(
    proxy: httpx.Client, predict: FakePredict, database: firestore.Client, examples: int
) -> None:
    run_state_machine_as_test(
        machine(proxy, predict, database),
        settings=settings(
            max_examples=examples,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
