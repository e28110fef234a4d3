"""One training on the sample, for all tests that look at what comes out of it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import mlflow
import pytest
from hypothesis import settings

from trainer import training
from trainer.parameters import Parameters
from trainer.reviews import SAMPLE

# A busy machine is no fault: an example once took 288 ms where 87 ms is usual.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

EXPERIMENT = "reviews"
MODEL = "yelp-model"


class Trained(NamedTuple):
    """A finished training."""

    outcome: training.Outcome
    tracking_uri: str
    model: Path
    """Folder of the registered model's artifacts."""

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.tracking_uri)

    def bundle(self) -> dict[str, bytes]:
        """Return the files in ``serving/``."""
        return {path.name: path.read_bytes() for path in (self.model / "serving").iterdir()}


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """MLflow and Lightning leave variables for child processes: not for those of other tests."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The outcome of training on the sample with the defaults, registered as `MODEL`."""
    folder = tmp_path_factory.mktemp("mlflow")
    tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri)
    client.create_experiment(EXPERIMENT, artifact_location=str(folder / "artifacts"))
    with patch.dict(os.environ, MLFLOW_TRACKING_URI=tracking_uri):
        outcome = training.train(
            SAMPLE,
            Parameters(),
            experiment=EXPERIMENT,
            run_name="sample",
            register=MODEL,
            progress=False,
        )
    assert outcome.model_version is not None
    source = client.get_model_version_download_uri(MODEL, outcome.model_version)
    return Trained(outcome, tracking_uri, Path(source))
