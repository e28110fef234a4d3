"""What a training leaves behind: the run, the registered model, and how it judges."""

import io
import json
import pickletools
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import mlflow.pytorch
import pandas as pd
import pytest
import torch
from mlflow.models import Model
from torchtext.data.utils import get_tokenizer, ngrams_iterator

from functions.predict.bundle import (
    FILES,
    GOLDEN,
    MANIFEST,
    Bundle,
    GoldenText,
    read_bundle,
    read_golden,
)
from functions.predict.scorer import Scorer
from tests.trainer.conftest import MODEL, Trained
from trainer import training
from trainer.golden import TEXTS
from trainer.parameters import Parameters
from trainer.reviews import SAMPLE, DataError, read_reviews

ROOT = Path(__file__).resolve().parents[2]
METRICS = {"accuracy", "balanced_accuracy", "auroc", "f1", "brier", "log_loss"}


@pytest.fixture(scope="module")
def bundle(trained: Trained) -> Bundle:
    return read_bundle(trained.bundle())


@pytest.fixture(scope="module")
def golden(trained: Trained) -> list[GoldenText]:
    return read_golden(trained.bundle()[GOLDEN])


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> Scorer:
    return bundle.scorer


class TestRun:
    def test_metrics(self, trained: Trained) -> None:
        metrics = dict(trained.outcome.metrics)
        logged = trained.client.get_run(trained.outcome.run_id).data.metrics
        behaviour = metrics.pop("behaviour")
        assert logged["behaviour"] == behaviour.value > 0.7
        assert 0 <= logged["test_calibration_error"] < 0.2
        assert metrics.keys() == METRICS
        assert metrics["auroc"].value > 0.8
        for metric in metrics.values():
            assert metric.low is not None
            assert metric.high is not None
            assert 0 <= metric.low <= metric.value <= metric.high <= 1
        assert {f"test_{name}": metric.value for name, metric in metrics.items()}.items() <= (
            logged.items()
        )

    def test_the_course_of_the_training(self, trained: Trained) -> None:
        run_id = trained.outcome.run_id
        losses = trained.client.get_metric_history(run_id, "validation_loss")
        assert len(losses) >= 2
        assert losses[-1].value < losses[0].value
        assert trained.client.get_metric_history(run_id, "train_loss")

    def test_parameters_and_lineage(self, trained: Trained, bundle: Bundle) -> None:
        run = trained.client.get_run(trained.outcome.run_id)
        reviews = read_reviews(SAMPLE)
        expected = {
            **asdict(Parameters()),
            # A fiftieth of what is trained on.
            "batch_size": int(run.data.params["rows_train"]) // 50,
            "data": SAMPLE.name,
            "data_digest": reviews.digest,
            "rows": len(reviews.reviews),
            "rows_skipped": 0,
            "rows_repeated": 0,
        }
        assert {name: str(value) for name, value in expected.items()}.items() <= (
            run.data.params.items()
        )
        rows = [int(run.data.params[f"rows_{name}"]) for name in ("train", "validation", "test")]
        assert sum(rows) == len(reviews.reviews)
        assert run.info.run_name == "sample"
        assert run.info.status == "FINISHED"
        # Both are None outside a repository.
        assert run.data.tags.get("git_commit") == bundle.manifest.git_commit

    def test_plots(self, trained: Trained) -> None:
        run = trained.client.get_run(trained.outcome.run_id)
        folder = Path(run.info.artifact_uri) / "plots"
        assert {path.stem for path in folder.iterdir()} == {
            *("roc", "confusion", "calibration", "data_lengths", "data_balance")
        }
        for path in folder.iterdir():
            assert path.read_bytes().startswith(b"\x89PNG")

    def test_tables(self, trained: Trained) -> None:
        run = trained.client.get_run(trained.outcome.run_id)
        folder = Path(run.info.artifact_uri) / "tables"
        slices = pd.read_csv(folder / "slices.csv")
        assert set(slices["slice"]) == {"all", "stars", "length", "unknown words"}
        [whole] = slices[slices["slice"] == "all"].to_dict("records")
        assert whole["n"] == int(run.data.params["rows_test"])
        assert whole["accuracy"] == pytest.approx(trained.outcome.metrics["accuracy"].value)
        cases = pd.read_csv(folder / "behaviour_cases.csv")
        assert len(cases) == pd.read_csv(folder / "behaviour.csv")["n"].sum() > 300

    def test_the_machine_was_watched(self, trained: Trained) -> None:
        logged = trained.client.get_run(trained.outcome.run_id).data.metrics
        names = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
        assert names <= logged.keys()

    def test_calibration_and_threshold(self, trained: Trained, bundle: Bundle) -> None:
        logged = trained.client.get_run(trained.outcome.run_id).data.metrics
        assert logged["calibration_scale"] > 0
        assert logged["threshold"] == bundle.manifest.threshold
        assert 0 < bundle.manifest.threshold < 1

    def test_validation(self, trained: Trained) -> None:
        assert trained.outcome.model_version is not None
        version = trained.client.get_model_version(MODEL, trained.outcome.model_version)
        run = trained.client.get_run(trained.outcome.run_id)
        assert version.tags["validation"] == run.data.tags["validation"] == "passed"
        assert "not compared: no version of" in version.tags["validation_reason"]

    def test_data_that_is_refused_makes_no_run(
        self, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.tracking_uri)
        data = tmp_path / "empty.csv"
        data.touch()
        with pytest.raises(DataError):
            training.train(data, Parameters(), experiment="never-made", progress=False)
        assert trained.client.get_experiment_by_name("never-made") is None


class TestRegisteredModel:
    def test_the_version(self, trained: Trained) -> None:
        assert trained.outcome.model_version == "1"
        version = trained.client.get_model_version(MODEL, "1")
        assert version.run_id == trained.outcome.run_id
        assert version.source is not None
        assert version.source.startswith("models:/m-")

    def test_flavors(self, trained: Trained) -> None:
        model = Model.load(str(trained.model))
        assert model.flavors.keys() == {"pytorch", "python_function"}
        assert model.signature is not None
        assert model.signature.inputs.input_names() == ["text"]
        # torch's local version, such as +cpu, is not one that an index knows.
        requirements = (trained.model / "requirements.txt").read_text().splitlines()
        assert f"torch=={torch.__version__.split('+')[0]}" in requirements

    def test_the_bundle_is_whole_and_says_where_it_came_from(
        self, trained: Trained, bundle: Bundle
    ) -> None:
        assert trained.bundle().keys() == {MANIFEST, *FILES}
        manifest = bundle.manifest
        assert manifest.model_name == MODEL
        assert manifest.mlflow_run_id == trained.outcome.run_id
        assert manifest.data_digest == read_reviews(SAMPLE).digest
        assert manifest.metrics == trained.outcome.metrics
        rows = trained.client.get_run(trained.outcome.run_id).data.params["rows_test"]
        reference = manifest.reference
        for histogram in (reference.score, reference.length, reference.unknown_share):
            assert sum(histogram.counts) == int(rows)

    def test_nothing_of_the_data_is_in_the_bundles_texts(self, golden: list[GoldenText]) -> None:
        reviews = {review.text for review in read_reviews(SAMPLE).reviews}
        assert not reviews & {item.text for item in golden}

    def test_golden_texts_are_reproduced(self, bundle: Bundle, golden: list[GoldenText]) -> None:
        assert [item.text for item in golden] == list(TEXTS)
        for item in golden:
            assert bundle.scorer.score(item.text) == pytest.approx(item.score, abs=1e-6)
        # They can show a mistake: they are not all of a few scores.
        assert len({round(item.score, 3) for item in golden}) >= 10

    def test_no_file_is_a_pickle(self, trained: Trained) -> None:
        suffixes = {path.suffix for path in trained.model.rglob("*") if path.is_file()}
        assert suffixes <= {
            *("", ".json", ".jsonl", ".pt2", ".py", ".safetensors", ".txt", ".yaml")
        }
        with zipfile.ZipFile(trained.model / "data/model.pt2") as archive:
            weights = json.loads(archive.read("model/data/weights/model_weights_config.json"))
            assert not any(entry["use_pickle"] for entry in weights["config"].values())
            pickled = [
                name for name in archive.namelist() if archive.read(name).startswith(b"PK\3\4")
            ]
            # torch.export writes the example's two tensors with torch.save, whatever one asks;
            # MLflow accepts just that where it allows no pickle (see the next test).
            assert pickled == ["model/data/sample_inputs/model.pt"]
            content = io.BytesIO(archive.read(pickled[0]))
        with zipfile.ZipFile(content) as checkpoint:
            [name] = [name for name in checkpoint.namelist() if name.endswith(".pkl")]
            operations = list(pickletools.genops(checkpoint.read(name)))
        assert {argument for code, argument, _ in operations if code.name == "GLOBAL"} == {
            "torch._utils _rebuild_tensor_v2",
            "torch LongStorage",
            "collections OrderedDict",
        }
        assert not any(code.name == "STACK_GLOBAL" for code, *_ in operations)

    def test_the_torch_module_scores_as_the_bundle(
        self, trained: Trained, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        module = mlflow.pytorch.load_model(str(trained.model)).double()
        lines = trained.bundle()["vocabulary.txt"].decode().split("\n")[:-1]
        index = {term: row for row, term in enumerate(lines)}
        tokenize = get_tokenizer("basic_english")
        # An example of one document, at the export, would fix the batch at one.
        for texts in (TEXTS[:1], TEXTS[:3], TEXTS):
            bags = [
                [index.get(term, 0) for term in ngrams_iterator(tokenize(text), 2)]
                for text in texts
            ]
            lengths = torch.tensor([len(bag) for bag in bags])
            rows = torch.tensor([row for bag in bags for row in bag], dtype=torch.int64)
            scores = module(rows, torch.cumsum(lengths, 0) - lengths).tolist()
            assert scores == pytest.approx([bundle.scorer.score(text) for text in texts], abs=1e-6)

    def test_the_text_model_runs_elsewhere(
        self, trained: Trained, scorer: Scorer, tmp_path: Path
    ) -> None:
        """In a process that has only the copy of our code that the model carries.

        Guards against a test that passes with the project's own code, which is installed here.
        """
        program = f"""
import importlib.util, json, sys
sys.path = [folder for folder in sys.path if folder != {str(ROOT)!r}]
for name in ("functions", "trainer"):
    assert importlib.util.find_spec(name) is None, name
import mlflow.pyfunc, pandas
texts = json.loads(sys.argv[2])
model = mlflow.pyfunc.load_model(sys.argv[1])
scores = list(model.predict(pandas.DataFrame(dict(text=texts))))
assert list(model.predict(pandas.DataFrame(dict(text=[]), dtype=str))) == []
from trainer import pyfunc
from functions.predict import scorer
print(json.dumps([scores, pyfunc.__file__, scorer.__file__, "torch" in sys.modules]))
"""
        done = subprocess.run(
            [sys.executable, "-c", program, str(trained.model), json.dumps(TEXTS)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        scores, *sources, has_torch = json.loads(done.stdout.splitlines()[-1])
        assert scores == [scorer.score(text) for text in TEXTS]
        for source in sources:
            assert Path(source).is_relative_to(trained.model)
        assert not has_torch


def test_case_and_blanks_do_not_matter(scorer: Scorer) -> None:
    assert scorer.score("  GREAT\tfood ") == scorer.score("great food")
