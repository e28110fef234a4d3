"""Metrics on their way to a real MLflow server that is killed, refuses, or loses answers."""

import json
import math
import time
from itertools import repeat
from pathlib import Path
from typing import Any

import lightning as L
import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException
from torch.utils.data import DataLoader, TensorDataset

from tests.trainer.tracking.conftest import Door, TrackingServer
from trainer.tracking import MetricLogger, TrackingError, patiently

STEPS = 40


@pytest.fixture(autouse=True)
def impatient_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own retries would take four minutes before anybody else may try."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


class Task(L.LightningModule):
    """Logs the number of each step, and can't learn anything."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        self.log("batch", float(index))
        self.log("half", index / 2)
        return (self.weight * batch[0]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Outage(L.Callback):
    """Kills MLflow in the middle of the training and starts it when that has ended."""

    def __init__(self, server: TrackingServer) -> None:
        self._server = server

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *_: Any) -> None:
        # Long enough for the sender to have begun.
        time.sleep(0.05)
        if trainer.global_step == STEPS // 2:
            self._server.kill()

    def on_train_end(self, *_: object) -> None:
        self._server.launch()


def history(server: TrackingServer, run_id: str, key: str) -> list[tuple[int, float]]:
    """Return step and value of each point, in the order of time."""
    points = server.client.get_metric_history(run_id, key)
    return [(point.step, point.value) for point in sorted(points, key=lambda p: p.timestamp)]


def wait_until_sent(server: TrackingServer, run_id: str, key: str) -> None:
    deadline = time.monotonic() + 60
    while not server.client.get_metric_history(run_id, key):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_metric_is_lost_while_mlflow_is_away(
    mlflow_server: TrackingServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow is gone until the training has ended: had the training waited, it never would."""
    run_id = mlflow_server.create_run()
    unsent = tmp_path / "unsent.jsonl"
    try:
        with MetricLogger(run_id, unsent=unsent, tracking_uri=mlflow_server.url) as logger:
            L.Trainer(
                accelerator="cpu",
                max_steps=STEPS,
                log_every_n_steps=1,
                logger=logger,
                callbacks=[Outage(mlflow_server)],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(Task(), DataLoader(TensorDataset(torch.ones(STEPS, 1))))
            logger.log_metrics({"test_auroc": 0.95})
    finally:
        mlflow_server.wait()
    assert history(mlflow_server, run_id, "batch") == [(i, float(i)) for i in range(STEPS)]
    assert history(mlflow_server, run_id, "half") == [(i, i / 2) for i in range(STEPS)]
    assert history(mlflow_server, run_id, "test_auroc") == [(0, 0.95)]
    assert not unsent.exists()
    said = capsys.readouterr().err
    assert said.count(f"MLflow at {mlflow_server.url} takes no metrics now: ") >= 1


def test_metrics_whose_answer_is_lost_count_once(
    mlflow_server: TrackingServer, door: Door, tmp_path: Path
) -> None:
    """MLflow had written them when the connection broke: they are sent again, unchanged."""
    run_id = mlflow_server.create_run()
    with MetricLogger(run_id, unsent=tmp_path / "unsent", tracking_uri=door.url) as logger:
        door.faults.extend([None, 503])
        for step in range(3):
            logger.log_metrics({"loss": 1 / (step + 1), "bad": math.nan}, step)
        logger.flush()
    assert history(mlflow_server, run_id, "loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert [step for step, _ in history(mlflow_server, run_id, "bad")] == [0, 1, 2]
    assert not door.faults


def test_many_metrics_are_sent_in_few_requests(
    mlflow_server: TrackingServer, door: Door, tmp_path: Path
) -> None:
    run_id = mlflow_server.create_run()
    with MetricLogger(run_id, unsent=tmp_path / "unsent", tracking_uri=door.url) as logger:
        for step in range(2500):
            logger.log_metrics({"loss": float(step)}, step)
    points = mlflow_server.client.get_metric_history(run_id, "loss")
    assert sorted(point.step for point in points) == list(range(2500))
    # One for the run, three full ones, and one more where the first went before it was full.
    assert len(door.statuses) <= 5


def test_an_outage_that_lasts_leaves_the_metrics_in_a_file(
    mlflow_server: TrackingServer,
    door: Door,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_id = mlflow_server.create_run()
    unsent = tmp_path / "folder" / "unsent.jsonl"
    logger = MetricLogger(run_id, unsent=unsent, tracking_uri=door.url, patience_seconds=0.5)
    door.faults.extend(repeat(503, 1000))
    logger.log_metrics({"loss": 0.5, "bad": math.nan}, 7)
    with pytest.raises(TrackingError) as caught:
        logger.close()
    assert f"2 metrics of run {run_id} could not be sent to MLflow at {door.url} (" in str(
        caught.value
    )
    assert "503" in str(caught.value)
    assert str(caught.value).endswith(f"; they are in {unsent}")
    # Should MLflow's own error, when the run is to be ended, come in between.
    assert f"2 metrics that MLflow did not take are in {unsent}" in capsys.readouterr().err
    loss, bad = map(json.loads, unsent.read_text().splitlines())
    timestamp = loss.pop("timestamp")
    assert abs(timestamp / 1000 - time.time()) < 300
    assert loss == {"run_id": run_id, "key": "loss", "value": 0.5, "step": 7}
    assert bad["timestamp"] == timestamp
    assert math.isnan(bad["value"])


def test_a_refusal_is_reported_without_patience(
    mlflow_server: TrackingServer, tmp_path: Path
) -> None:
    """Nobody waits ten minutes for a run that has been deleted."""
    run_id = mlflow_server.create_run()
    logger = MetricLogger(
        run_id,
        unsent=tmp_path / "unsent.jsonl",
        tracking_uri=mlflow_server.url,
        patience_seconds=10**6,
    )
    logger.log_metrics({"early": 1.0})
    logger.flush()
    mlflow_server.client.delete_run(run_id)
    logger.log_metrics({"late": 1.0})
    with pytest.raises(TrackingError, match="must be in the 'active' state"):
        logger.close()
    # What was refused once may be taken later.
    mlflow_server.client.restore_run(run_id)
    assert history(mlflow_server, run_id, "early") == [(0, 1.0)]


def test_what_was_refused_is_sent_by_a_later_flush(
    mlflow_server: TrackingServer, tmp_path: Path
) -> None:
    run_id = mlflow_server.create_run()
    with MetricLogger(
        run_id, unsent=tmp_path / "unsent.jsonl", tracking_uri=mlflow_server.url
    ) as logger:
        mlflow_server.client.delete_run(run_id)
        logger.log_metrics({"loss": 1.0})
        with pytest.raises(TrackingError):
            logger.flush()
        mlflow_server.client.restore_run(run_id)
        logger.flush()
    assert history(mlflow_server, run_id, "loss") == [(0, 1.0)]


def test_an_error_of_the_training_is_not_replaced(
    mlflow_server: TrackingServer,
    door: Door,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_id = mlflow_server.create_run()
    unsent = tmp_path / "unsent.jsonl"
    logger = MetricLogger(run_id, unsent=unsent, tracking_uri=door.url, patience_seconds=0.5)

    def train() -> None:
        with logger:
            door.faults.extend(repeat(503, 1000))
            logger.log_metrics({"loss": 1.0})
            logger.finalize("failed")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert f"they are in {unsent}" in capsys.readouterr().err
    assert json.loads(unsent.read_text())["key"] == "loss"


def test_a_run_that_does_not_exist_is_known_at_once(
    mlflow_server: TrackingServer, tmp_path: Path
) -> None:
    with pytest.raises(MlflowException, match="Run with id=0123 not found"):
        MetricLogger("0123", unsent=tmp_path / "unsent", tracking_uri=mlflow_server.url)


def test_the_machine_is_measured_through_an_outage(
    mlflow_server: TrackingServer, door: Door, tmp_path: Path
) -> None:
    """MLflow's own monitor gives up for good when the server is away."""
    run_id = mlflow_server.create_run()
    with MetricLogger(
        run_id, unsent=tmp_path / "unsent", tracking_uri=door.url, system_seconds=0.1
    ):
        wait_until_sent(mlflow_server, run_id, "system/cpu_utilization_percentage")
        door.faults.extend(repeat(503, 1))
        before = len(history(mlflow_server, run_id, "system/cpu_utilization_percentage"))
        while len(history(mlflow_server, run_id, "system/cpu_utilization_percentage")) == before:
            time.sleep(0.05)
    points = history(mlflow_server, run_id, "system/system_memory_usage_megabytes")
    assert all(value > 0 for _, value in points)
    steps = [step for step, _ in points]
    assert steps == sorted(steps)
    assert 503 in door.statuses


def test_a_short_run_has_one_sample_of_the_machine(
    mlflow_server: TrackingServer, tmp_path: Path
) -> None:
    run_id = mlflow_server.create_run()
    with MetricLogger(
        run_id, unsent=tmp_path / "unsent", tracking_uri=mlflow_server.url, system_seconds=3600
    ):
        pass
    assert len(history(mlflow_server, run_id, "system/cpu_utilization_percentage")) == 1


class TestPatiently:
    def test_waits_for_mlflow(
        self, door: Door, mlflow_server: TrackingServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_id = mlflow_server.create_run()
        client = mlflow.MlflowClient(door.url)
        door.faults.extend([503, None])
        patiently(lambda: client.log_param(run_id, "seed", 0))
        assert mlflow_server.client.get_run(run_id).data.params == {"seed": "0"}
        assert capsys.readouterr().err.count("trying again: API request to") == 2

    def test_waits_for_nothing_that_waiting_does_not_help(self, door: Door) -> None:
        client = mlflow.MlflowClient(door.url)
        with pytest.raises(MlflowException, match="not found"):
            patiently(lambda: client.get_run("0123"))
        assert door.statuses == [404]

    def test_the_last_error_is_raised_in_the_end(self, door: Door) -> None:
        client = mlflow.MlflowClient(door.url)
        door.faults.extend(repeat(503, 1000))
        with pytest.raises(MlflowException, match="503"):
            patiently(lambda: client.get_run("0123"), patience_seconds=0)
