"""The application in this process: what can't be seen, or not made to happen, from outside."""

import asyncio

import httpx
import msgspec
import pytest

from functions.predict.app import create_app
from functions.predict.bundle import Bundle, read_bundle
from functions.predict.scorer import Assessment, Scorer
from tests.bundles import make_bundle
from tests.predict.conftest import REVISION


class BrokenScorer(Scorer):
    """A mistake of ours that no test has found yet."""

    def assess(self, text: str) -> Assessment:
        """Fail, with the text in the message as libraries do."""
        raise ZeroDivisionError(text)


@pytest.fixture
def bundle() -> Bundle:
    return read_bundle(make_bundle())


def client_of(bundle: Bundle | None, *, revision: str = REVISION) -> httpx.AsyncClient:
    app = create_app(bundle, model_version="10", revision=revision)
    # An exception that leaves the application is raised here.
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://predict")


async def test_an_unexpected_error_is_a_problem_too(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against text/plain, and a second response begun by functions-framework."""
    broken = bundle._replace(scorer=BrokenScorer({}, bias=0.0, unknown=0.0, order=1))
    async with client_of(broken) as client:
        response = await client.post("/predict", json={"text": "a secret"})
        assert (await client.get("/health")).status_code == 200

    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == 500
    assert response.headers["x-greenroom-revision"] == REVISION
    assert "secret" not in response.text
    assert "Unexpected error" in caplog.messages


async def test_the_revision_is_named_with_no_model_too() -> None:
    async with client_of(None) as client:
        response = await client.get("/ready")
    assert response.status_code == 503
    assert response.headers["x-greenroom-revision"] == REVISION


async def test_without_a_revision_no_header_is_empty(bundle: Bundle) -> None:
    async with client_of(bundle, revision="") as client:
        assert "x-greenroom-revision" not in (await client.get("/ping")).headers


@pytest.mark.parametrize(
    ("git_commit", "named"),
    [
        ("0ea995f", "0ea995f"),
        (None, None),
        ("", None),
        ("x" * 129, None),
        ("caf\xe9\r\nA: b", None),
    ],
)
async def test_answers_name_commit_and_data_of_the_model(
    bundle: Bundle, git_commit: str | None, named: str | None
) -> None:
    manifest = msgspec.structs.replace(bundle.manifest, git_commit=git_commit)
    async with client_of(bundle._replace(manifest=manifest)) as client:
        for response in (
            await client.post("/predict", json={"text": "good"}),
            await client.post("/predict", json={}),
        ):
            assert response.headers.get("x-greenroom-git-commit") == named
            assert response.headers["x-greenroom-data-digest"] == "0" * 64
            assert response.headers["x-greenroom-revision"] == REVISION


@pytest.mark.parametrize("query", ["", "?explain=true"])
@pytest.mark.parametrize("count", [0, 1, 7])
async def test_a_batch_holds_the_answers_of_its_texts(
    bundle: Bundle, query: str, count: int
) -> None:
    texts = [f'not "good" {number} \\ cool' for number in range(count)]
    async with client_of(bundle) as client:
        batch = await client.post(f"/predict:batch{query}", json={"texts": texts})
        singles = [await client.post(f"/predict{query}", json={"text": text}) for text in texts]
    answers = [response.json() for response in singles]
    found = batch.json()
    assert found.keys() == {"predictions"}
    for answer in (*answers, *found["predictions"]):
        del answer["details"]["inference_elapsed"]
    assert found["predictions"] == answers


async def test_others_are_answered_during_a_large_batch(bundle: Bundle) -> None:
    """Guards against a batch that blocks the event loop for seconds, health checks included."""
    texts = ["not good, but cool! " * 200] * 500
    async with client_of(bundle) as client:
        batch = asyncio.create_task(client.post("/predict:batch", json={"texts": texts}))
        answered = 0
        while not batch.done():
            assert (await client.get("/health")).status_code == 200
            answered += 1
            await asyncio.sleep(0)  # the transport in this process never waits

    assert len((await batch).json()["predictions"]) == 500
    # A turn for every 20,000 characters.
    assert answered >= 50
