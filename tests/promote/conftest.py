"""What whole rollouts are made of, each part running."""

from collections.abc import Iterator

import pytest
from google.cloud import run_v2

from functions.identity import IdTokenAuth
from local import monitoring as stand_in_monitoring
from local.settings import ROOT, free_port
from tests.emulators import FirestoreEmulator, StorageEmulator
from tests.local.conftest import CALLER, PARENT, PROJECT, REGION, StandIn
from tests.promote.rollouts import FAILING, MODEL, SERVICE, SERVING, Places, Rollouts
from tests.trainer.tracking.conftest import TrackingServer


@pytest.fixture(scope="module")
def rollouts(
    tmp_path_factory: pytest.TempPathFactory,
    storage_emulator: StorageEmulator,
    firestore_emulator: FirestoreEmulator,
) -> Iterator[Rollouts]:
    """A service that promote has never seen, and an empty registry."""
    folder = tmp_path_factory.mktemp("rollout")
    mlflow = TrackingServer(folder)
    mlflow.launch()
    failing = folder / "failing.py"
    failing.write_text(FAILING)
    python = ROOT / ".venvs" / "predict" / "bin" / "python"
    image = {
        "entrypoint": [str(python), "-m", "functions.predict"],
        "working_directory": str(ROOT),
    }
    cloud_run = StandIn(
        folder,
        images={
            "predict:1": image,
            "predict:failing": {**image, "entrypoint": [str(python), str(failing)]},
        },
        environment={"STORAGE_EMULATOR_HOST": storage_emulator.url, "PYTHONPATH": str(ROOT)},
        check_callers=False,
        startup_timeout_seconds=60,
    )
    port = free_port()
    monitoring = stand_in_monitoring.create_server(
        stand_in_monitoring.Monitoring(
            folder / "data" / "requests.jsonl",
            project=PROJECT,
            region=REGION,
            period_seconds=0.5,
            delay_seconds=(0.5, 1.0),
        ),
        port,
    )
    places = Places(
        cloud_run=f"http://127.0.0.1:{cloud_run.api_port}",
        monitoring=f"http://127.0.0.1:{port}",
        mlflow=mlflow.url,
        environment={
            "STORAGE_EMULATOR_HOST": storage_emulator.url,
            "FIRESTORE_EMULATOR_HOST": firestore_emulator.host,
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "HTTP_PROXY": f"http://127.0.0.1:{cloud_run.port}",
            "NO_PROXY": "127.0.0.1",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
        },
    )
    storage_emulator.upload(SERVING, "made", {"empty": b""})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in places.environment.items():
            patch.setenv(name, value)
        # Where tokens come from has tests of its own, and Google's library looks once a process.
        patch.setattr(IdTokenAuth, "token", lambda _: "token")
        firestore_emulator.clear(PROJECT)
        cloud_run.start()
        monitoring.start()
        try:
            container = run_v2.Container(image="predict:1")
            cloud_run.services.create_service(
                parent=PARENT,
                service=run_v2.Service(
                    template=run_v2.RevisionTemplate(containers=[container], service_account=CALLER)
                ),
                service_id=SERVICE,
            ).result(timeout=90)
            mlflow.wait()
            mlflow.client.create_registered_model(MODEL)
            yield Rollouts(places, cloud_run, storage_emulator)
        finally:
            monitoring.stop(None)
            cloud_run.terminate()
            mlflow.kill()
