"""A place for runs that needs no training, shared by the tests of what is logged."""

from pathlib import Path

import mlflow
import pytest

EXPERIMENT = "records"


@pytest.fixture(scope="session")
def _store(tmp_path_factory: pytest.TempPathFactory) -> str:
    # One for all modules that import this: its tables take seconds to make.
    folder = tmp_path_factory.getbasetemp() / "records"
    tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
    if not folder.exists():
        folder.mkdir()
        mlflow.MlflowClient(tracking_uri).create_experiment(
            EXPERIMENT, artifact_location=str(folder / "artifacts")
        )
    return tracking_uri


@pytest.fixture
def mlflow_store(_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of MLflow's own store on files, chosen with its experiment."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _store)
    mlflow.set_experiment(EXPERIMENT)
    return _store


def artifacts(run_id: str) -> Path:
    """Return the folder with a run's artifacts."""
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id))
