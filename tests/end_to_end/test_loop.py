"""The whole path: train, register, promote, predict, store, look."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import mlflow
import pandas as pd
import pytest
from google.cloud import storage

from functions.predict.bundle import SCORES
from local import demo, services
from local.demo import Stream, send_steadily
from local.settings import ARTIFACTS_BUCKET, MODEL, ROOT, free_port
from tests.end_to_end.conftest import Loop
from tests.end_to_end.test_operators import greenroom
from tests.end_to_end.versions import (
    Damage,
    change_golden_texts,
    claim_another_format,
    flip_a_bit,
    register_copy,
)

TEXTS = [
    "very cool restaurant!",
    'The food was good, but the "service" wasn\'t; never again...',
    "",
    "😀👍🏽 loved it",
    "good bad " * 568 + "goodness",
    "このレストランはとても美味しかったです。",
    "Очень вкусно! İyi Σ",
    "x",
]


def curl(loop: Loop, command: str) -> object:
    """Run one of the article's commands, word for word but for the host."""
    command = command.replace("http://model-proxy.lab1-team3.neu.ro", loop.url("proxy"))
    result = subprocess.run(command, shell=True, check=True, capture_output=True, text=True)
    return json.loads(result.stdout)


def test_the_articles_calls_give_the_articles_shapes(loop: Loop) -> None:
    created = curl(
        loop,
        'curl -s -X POST -H "Content-Type: application/json" -d \''
        '{"text": "very good cafe", "is_positive_user_answered": true}'
        "' http://model-proxy.lab1-team3.neu.ro/predictions",
    )
    assert isinstance(created, dict)
    assert isinstance(created["id"], str)
    assert created["text"] == "very good cafe"
    assert created["is_positive"] == {"user_answered": True, "model_answered": True}
    details = created["details"]
    assert re.fullmatch("[0-9a-f]{32}", details["mlflow_run_id"])
    assert 0 < details["inference_elapsed"] < 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", details["timestamp"])

    listed = curl(loop, "curl -s http://model-proxy.lab1-team3.neu.ro/predictions")
    assert isinstance(listed, list)
    article = {
        "id": created["id"],
        "text": "very good cafe",
        "is_positive_user_answered": True,
        "is_positive_model_answered": True,
        **details,
    }
    assert article.items() <= listed[0].items()

    statistics = curl(loop, "curl -s http://model-proxy.lab1-team3.neu.ro/statistics")
    assert isinstance(statistics, dict)
    assert 0 <= statistics["statistics"]["correctness_rate"] <= 1


def test_one_text_three_scores(loop: Loop) -> None:
    """By torch alone, by predict, and by the text model."""
    version = loop.served()
    assert version is not None
    folder = mlflow.artifacts.download_artifacts(f"models:/{MODEL}/{version}")
    assert len(TEXTS[4]) == 5120
    reference = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("reference.py")), folder],
        input=json.dumps(TEXTS),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    scores = json.loads(reference.stdout)
    assert scores_of_predict(loop) == pytest.approx(scores, abs=1e-6)
    pyfunc = mlflow.pyfunc.load_model(f"models:/{MODEL}/{version}")
    assert pyfunc.predict(pd.DataFrame({"text": TEXTS})) == pytest.approx(scores, abs=1e-6)


def scores_of_predict(loop: Loop) -> list[float]:
    url = f"{loop.url('predict')}/predict"
    return [loop.http.post(url, json={"text": text}).json()["score"] for text in TEXTS]


@pytest.mark.slow
def test_mlflow_models_serve_gives_the_same_scores(loop: Loop) -> None:
    version, port = loop.served(), free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    server = subprocess.Popen(
        [*command, "-m", f"models:/{MODEL}/{version}", "--host", "127.0.0.1", "--port", str(port)],
        # It starts uvicorn by name, as from an activated environment.
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        loop.wait(lambda: answers(f"http://127.0.0.1:{port}/ping"), "mlflow models serve")
        response = loop.http.post(
            f"http://127.0.0.1:{port}/invocations", json={"inputs": {"text": TEXTS}}
        )
        served = response.json()["predictions"]
        assert served == pytest.approx(scores_of_predict(loop), abs=1e-6)
    finally:
        server.terminate()
        server.wait(20)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


async def under_load(loop: Loop, promote: Callable[[], None], version: str) -> Stream:
    """Promote while requests flow, each on a fresh connection, none retried."""
    stream, stopping = Stream(), asyncio.Event()
    url = f"{loop.url('predict')}/predict"
    clients = [asyncio.create_task(send_steadily(url, stream, stopping)) for _ in range(4)]
    try:
        await asyncio.sleep(0.5)
        await asyncio.to_thread(promote)
        await asyncio.to_thread(loop.wait_until_served, version)
        await asyncio.sleep(1.5)
    finally:
        stopping.set()
        await asyncio.gather(*clients)
    return stream


def test_a_stage_and_then_an_alias_lead_to_the_version_and_no_request_fails(loop: Loop) -> None:
    before = loop.served()
    assert before is not None
    second = loop.register(ngrams=1, seed=1)
    # The old one stays in Production too, as MLflow's dialog leaves it unless told otherwise.
    stream = asyncio.run(under_load(loop, lambda: loop.set_stage(second, archive=False), second))
    assert not stream.failures
    assert set(stream.versions) == {before, second}
    tags = loop.registry.get_model_version(MODEL, second).tags
    served = loop.http.get(f"{loop.url('predict')}/model").json()
    assert tags["serving_revision"] == served["revision"]

    # The alias comes before the stage, and the way back needs no new revision.
    stream = asyncio.run(
        under_load(
            loop,
            lambda: loop.registry.set_registered_model_alias(MODEL, "production", before),
            before,
        )
    )
    assert not stream.failures
    assert set(stream.versions) == {before, second}
    status = loop.status()
    assert status["desired"] == {**status["desired"], "because": "alias:production"}  # type: ignore[dict-item]  # JSON
    loop.registry.delete_registered_model_alias(MODEL, "production")
    loop.wait_until_served(second)

    # The ledger names all three, the newest first, and no more.
    def promotions() -> list[str]:
        ledger = loop.http.get(f"{loop.url('proxy')}/rollouts").json()["ledger"]
        return [entry["version"] for entry in ledger if entry["event"] == "promoted"]

    loop.wait(lambda: promotions()[:3] == [second, before, second], "the ledger is not complete")


@pytest.mark.parametrize(
    ("damage", "gate", "reason"),
    [
        (flip_a_bit, "bundle", f"{SCORES}: SHA-256 .* the manifest says"),
        (change_golden_texts, "golden", "training gave"),
        (claim_another_format, "start", "."),
    ],
)
def test_a_bad_bundle_never_gets_traffic_and_says_why(
    loop: Loop, damage: Damage, gate: str, reason: str
) -> None:
    before = loop.served()
    assert before is not None
    version = register_copy(loop, before, damage)

    def blocked() -> dict[str, str] | None:
        items = loop.status().get("blocked", [])
        assert isinstance(items, list)
        return next((item for item in items if item["version"] == version), None)

    def promote() -> None:
        loop.set_stage(version)
        loop.wait(lambda: blocked() is not None, "the version is not blocked")

    stream = asyncio.run(under_load_until(loop, promote))
    assert not stream.failures
    assert set(stream.versions) == {before}
    item = blocked()
    assert item is not None
    assert item["gate"] == gate
    assert re.search(reason, item["reason"])
    loop.wait(
        lambda: (
            loop.registry.get_model_version(MODEL, version)
            .tags.get("rollout_blocked", "")
            .startswith(f"{gate}: ")
        ),
        "MLflow does not say why",
    )
    loop.set_stage(before)
    loop.wait(
        lambda: loop.status()["action"] == {"kind": "idle", "detail": ready_detail(loop, before)},
        "promote does not come to rest",
    )


def ready_detail(loop: Loop, version: str) -> str:
    revision = loop.http.get(f"{loop.url('predict')}/model").json()["revision"]
    return f"version {version} is served by {revision}"


async def under_load_until(loop: Loop, action: Callable[[], None]) -> Stream:
    stream, stopping = Stream(), asyncio.Event()
    client = asyncio.create_task(send_steadily(f"{loop.url('predict')}/predict", stream, stopping))
    try:
        await asyncio.to_thread(action)
        await asyncio.sleep(1)
    finally:
        stopping.set()
        await client
    return stream


def test_what_is_served_outlives_its_stage_and_its_artifacts(loop: Loop) -> None:
    """Also after scaling to zero and back."""
    version = loop.served()
    assert version is not None
    uri = loop.registry.get_model_version_download_uri(MODEL, version)
    bucket = storage.Client().bucket(ARTIFACTS_BUCKET)
    prefix = uri.removeprefix(f"gs://{ARTIFACTS_BUCKET}/") + "/"
    saved = {blob.name: blob.download_as_bytes() for blob in bucket.list_blobs(prefix=prefix)}
    assert saved
    try:
        for name in saved:
            bucket.blob(name).delete()
        loop.http.post(f"{loop.url('promote')}/").raise_for_status()
        assert greenroom(loop, "status").exit_code == 0
        loop.registry.transition_model_version_stage(MODEL, version, "None")
        loop.wait(lambda: loop.status()["desired"] is None, "it is not seen")
        loop.http.post(f"{loop.url('promote')}/").raise_for_status()

        loop.stop_instances("predict")
        loop.wait(lambda: loop.served() == version, "it is not served any more")
        response = loop.http.post(f"{loop.url('predict')}/predict", json={"text": "good food"})
        assert response.json()["model_version"] == version
        status = greenroom(loop, "status")
        assert status.exit_code == 1
        assert "names no version" in status.stdout
        assert f"version {version}, revision" in status.stdout
        assert "what is served stays served" in " ".join(status.stdout.split())
    finally:
        for name, content in saved.items():
            bucket.blob(name).upload_from_string(content)
        loop.set_stage(version)


def test_what_is_served_outlives_the_registry(loop: Loop) -> None:
    version = loop.served()
    stopped = loop.instances("mlflow-api")
    assert stopped
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        response = loop.http.post(f"{loop.url('promote')}/")
        assert response.status_code == 503
        assert response.headers["content-type"] == "application/problem+json"
        assert "MLflow" in response.json()["detail"]
        assert loop.served() == version
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    loop.wait(lambda: "action" in loop.status(), "promote does not recover")
    assert loop.served() == version


def test_new_code_is_checked_and_served_with_the_same_model(loop: Loop) -> None:
    """Cloud Build or Terraform writes another image; promote carries the model over."""
    version = loop.served()
    before = loop.http.get(f"{loop.url('predict')}/model").json()["revision"]
    client = services.client(loop.settings)

    def deploy() -> None:
        # Whole body, no mask, no etag, as Terraform's PATCH is.
        service = client.get_service(name=services.service_name("predict"))
        service.template.containers[0].image = services.image("predict:2")
        service.template.revision = service.etag = ""
        client.update_service(service=service).result(timeout=60)
        loop.wait(lambda: served_by() not in ("", before), "the new code is not served")

    def served_by() -> str:
        revision: str = loop.http.get(f"{loop.url('predict')}/model").json()["revision"]
        return revision

    stream = asyncio.run(under_load_until(loop, deploy))
    assert not stream.failures
    assert set(stream.versions) == {version}
    service = client.get_service(name=services.service_name("predict"))
    names = [target.revision for target in service.traffic if target.percent]
    assert names == [served_by()]


def test_two_ticks_at_once_do_no_harm(loop: Loop) -> None:
    before = loop.served()
    assert before is not None
    version = register_copy(loop, before)
    loop.set_stage(version)
    url = f"{loop.url('promote')}/"

    async def tick_in_parallel() -> list[int]:
        async with httpx.AsyncClient(timeout=60) as client:
            rounds = [await asyncio.gather(*(client.post(url) for _ in range(3))) for _ in range(8)]
        return [response.status_code for answers in rounds for response in answers]

    assert set(asyncio.run(tick_in_parallel())) == {200}
    loop.wait_until_served(version)
    ledger = loop.http.get(f"{loop.url('proxy')}/rollouts").json()["ledger"]
    assert [entry["version"] for entry in ledger].count(version) == 1


def test_the_demo_says_that_promote_is_paused_and_how_to_resume(
    loop: Loop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited in vain, and did not say for what."""
    monkeypatch.setattr(demo, "PROMOTION_SECONDS", 0.5)
    assert greenroom(loop, "pause").exit_code == 0
    try:
        with pytest.raises(demo.DemoFailed, match="promote is paused") as failed:
            demo.await_version(loop.settings, "999")
        said = capsys.readouterr().out
        assert "promote is paused" in said
        (command,) = re.findall(r"eval .* resume$", str(failed.value))
        assert command in said
        subprocess.run(command, shell=True, check=True, cwd=ROOT, capture_output=True)
        assert not services.is_paused(loop.settings)
    finally:
        assert greenroom(loop, "resume").exit_code == 0
    with pytest.raises(demo.DemoFailed, match="is not served after") as failed:
        demo.await_version(loop.settings, "999")
    assert "paused" not in str(failed.value)


def test_the_page_is_up(loop: Loop) -> None:
    assert "<title>Streamlit</title>" in loop.http.get(loop.url("ui")).text


def test_endpoints_are_written(loop: Loop) -> None:
    written = json.loads((loop.settings.data_dir / "endpoints.json").read_text())
    assert set(written) == {
        "mlflow",
        "predict",
        "proxy",
        "promote",
        "ui",
        "storage",
        "firestore",
        "cloud_run",
        "scheduler",
    }
