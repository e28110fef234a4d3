"""The served version beside the new one: found as promote finds it, compared, judged."""

import json
import uuid
from collections.abc import Iterator

import mlflow
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from functions.predict.bundle import MANIFEST, SCORES, Metric, read_bundle
from tests.bundles import make_bundle
from tests.emulators import StorageEmulator
from tests.trainer.tracking.conftest import TrackingServer
from trainer.comparison import (
    MAX_REASON,
    Comparison,
    NotComparable,
    Validation,
    compare,
    load_served,
    tags,
    verdict,
)
from trainer.evaluation import Floats, Labels

MODEL = "yelp-model"
BUCKET = "comparison-registry"


def scores(seed: int, count: int, noise: float) -> tuple[Labels, Floats]:
    """Return labels and scores; the labels are those of any other seed."""
    labels = np.random.default_rng(0).random(count) < 0.6
    hardness = np.random.default_rng(1).normal(size=count)
    own = np.random.default_rng(seed).normal(size=count)
    logits = np.where(labels, 1.5, -1.5) + hardness + noise * own
    return labels, 1 / (1 + np.exp(-logits))


def comparison(value: float, low: float, high: float, *, texts: int = 5000) -> Comparison:
    return Comparison(
        version="7",
        texts=texts,
        auroc=0.9 + value,
        served_auroc=0.9,
        served_balanced_accuracy=0.8,
        auroc_difference=Metric(value, low, high),
        balanced_accuracy_difference=Metric(0.0, -0.1, 0.1),
    )


class TestCompare:
    def test_values_are_those_of_scikit_learn(self) -> None:
        labels, new = scores(2, 300, noise=0.5)
        served = scores(3, 300, noise=2.0)[1]
        found = compare(
            labels, new, served, threshold=0.4, served_threshold=0.7, version="7", seed=0
        )
        assert found.auroc == pytest.approx(roc_auc_score(labels, new))
        assert found.served_auroc == pytest.approx(roc_auc_score(labels, served))
        assert found.auroc_difference.value == pytest.approx(found.auroc - found.served_auroc)
        balanced = balanced_accuracy_score(labels, served >= 0.7)
        assert found.served_balanced_accuracy == pytest.approx(balanced)
        assert found.balanced_accuracy_difference.value == pytest.approx(
            balanced_accuracy_score(labels, new >= 0.4) - balanced
        )
        metrics = found.metrics()
        assert metrics["served_auroc"] == found.served_auroc
        assert metrics["difference_auroc_low"] == found.auroc_difference.low
        assert metrics["difference_balanced_accuracy_high"] == (
            found.balanced_accuracy_difference.high
        )

    def test_the_same_scores_are_not_different(self) -> None:
        labels, same = scores(2, 60, noise=1.0)
        found = compare(
            labels, same, same, threshold=0.5, served_threshold=0.5, version="7", seed=0
        )
        assert found.auroc_difference == Metric(0.0, 0.0, 0.0)
        assert found.balanced_accuracy_difference == Metric(0.0, 0.0, 0.0)

    @settings(max_examples=10)
    @given(seed=st.integers(2, 1000), count=st.integers(20, 60))
    def test_the_other_way_round_is_the_opposite(self, seed: int, count: int) -> None:
        labels, new = scores(seed, count, noise=1.0)
        served = scores(seed + 1, count, noise=1.0)[1]

        def difference(first: Floats, second: Floats) -> list[float | None]:
            metric = compare(
                labels, first, second, threshold=0.5, served_threshold=0.5, version="7", seed=0
            ).auroc_difference
            return [metric.value, metric.low, metric.high]

        value, low, high = difference(new, served)
        assert low is not None
        assert high is not None
        assert low <= high
        assert difference(served, new) == pytest.approx([-(value or 0), -high, -low])

    def test_a_difference_is_seen_through_what_is_hard_for_both(self) -> None:
        """Unpaired, the intervals of these two overlap widely."""
        labels, new = scores(2, 1000, noise=0.0)
        served = scores(3, 1000, noise=0.7)[1]
        metric = compare(
            labels, new, served, threshold=0.5, served_threshold=0.5, version="7", seed=0
        ).auroc_difference
        assert metric.low is not None
        assert 0 < metric.low < metric.value < 0.05

    def test_one_kind_is_refused(self) -> None:
        labels, same = np.ones(5, np.bool_), np.full(5, 0.5)
        with pytest.raises(ValueError, match="one kind"):
            compare(labels, same, same, threshold=0.5, served_threshold=0.5, version="7", seed=0)


class TestVerdict:
    @pytest.mark.parametrize(
        ("compared", "passed", "words"),
        [
            (comparison(0.02, 0.01, 0.03), True, "not worse than version 7"),
            (comparison(-0.004, -0.009, 0.001), True, "not worse than version 7"),
            (comparison(-0.03, -0.04, -0.02), False, "worse than version 7 by more than 0.01"),
            # Better, if anything, but this split can't show it.
            (comparison(0.01, -0.05, 0.06, texts=90), False, "on 90 texts; more texts"),
            (comparison(-0.005, -0.01, 0.0), False, "not shown to be within 0.01 of version 7"),
            ("no version is in production", True, "not compared: no version is in production"),
        ],
    )
    def test_the_served_version_is_the_measure(
        self, compared: Comparison | str, passed: bool, words: str
    ) -> None:
        found = verdict(auroc=0.95, behaviour=0.9, comparison=compared)
        assert found.passed is passed
        assert words in "; ".join(found.reasons)
        assert found.against == (None if isinstance(compared, str) else "7")

    @pytest.mark.parametrize(
        ("auroc", "behaviour", "words"),
        [
            (0.79, 0.9, "AUROC 0.7900 is below 0.8"),
            (0.9, 0.6, "behavioural tests passed 0.6000 is below 0.7"),
            (float("nan"), 0.9, "AUROC nan is below 0.8"),
        ],
    )
    def test_floors(self, auroc: float, behaviour: float, words: str) -> None:
        found = verdict(auroc=auroc, behaviour=behaviour, comparison=comparison(0.0, 0.0, 0.0))
        assert not found.passed
        assert words in found.reasons[0]
        assert len(found.reasons) == 3

    def test_floors_and_margin_can_be_set(self) -> None:
        found = verdict(
            auroc=0.7,
            behaviour=0.5,
            comparison=comparison(-0.03, -0.04, -0.02),
            auroc_floor=0.7,
            behaviour_floor=0.5,
            margin=0.05,
        )
        assert found.passed, found.reasons


class TestTags:
    def test_passed(self) -> None:
        assert tags(Validation(True, ["good", "very good"], "7")) == {
            "validation": "passed",
            "validation_reason": "good; very good",
            "validation_against": "7",
        }

    def test_failed_with_nothing_served(self) -> None:
        assert tags(Validation(False, ["bad"], None)) == {
            "validation": "failed",
            "validation_reason": "bad",
        }

    @given(reasons=st.lists(st.text(max_size=300), max_size=5))
    def test_the_reason_is_short_enough(self, reasons: list[str]) -> None:
        assert len(tags(Validation(False, reasons, None))["validation_reason"]) <= MAX_REASON


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    server = TrackingServer(tmp_path_factory.mktemp("comparison"))
    server.launch()
    server.wait()
    yield server
    server.kill()


class Registry:
    """Versions of one model in a real registry, with artifacts in a storage emulator."""

    def __init__(self, client: mlflow.MlflowClient, storage: StorageEmulator, name: str) -> None:
        self.client = client
        self.name = name
        self._storage = storage
        client.create_registered_model(name)

    def add(self, files: dict[str, bytes], *, alias: str = "", stage: str = "") -> str:
        """Register a version with these files in ``serving/``, and return its number."""
        folder = f"{self.name}/{uuid.uuid4()}"
        self._storage.upload(BUCKET, f"{folder}/serving", {"README": b"", **files})
        source = f"gs://{BUCKET}/{folder}"
        version = str(self.client.create_model_version(self.name, source).version)
        if alias:
            self.client.set_registered_model_alias(self.name, alias, version)
        if stage:
            self.client.transition_model_version_stage(self.name, version, stage)
        return version


@pytest.fixture
def registry(
    server: TrackingServer,
    storage_emulator: StorageEmulator,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Registry:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_emulator.url)
    return Registry(server.client, storage_emulator, request.node.originalname)


class TestLoadServed:
    def test_the_alias_comes_first(self, registry: Registry) -> None:
        files = make_bundle(bias=0.5)
        version = registry.add(files, alias="production")
        registry.add(make_bundle(), stage="Production")
        served = load_served(registry.client, registry.name)
        assert (served.version, served.because) == (version, "alias:production")
        bundle = read_bundle(files)
        assert served.threshold == bundle.manifest.threshold
        for text in ("", "good food", "not good"):
            assert served.scorer.score(text) == bundle.scorer.score(text)

    def test_then_the_newest_change_in_the_stage(self, registry: Registry) -> None:
        first = registry.add(make_bundle(), stage="Production")
        registry.add(make_bundle(), stage="Production")
        registry.client.update_model_version(registry.name, first, "looked at again")
        registry.add(make_bundle(), stage="Staging")
        registry.add(make_bundle(), alias="challenger")
        served = load_served(registry.client, registry.name)
        assert (served.version, served.because) == (first, "stage:Production")

    def test_the_sources_can_be_others(self, registry: Registry) -> None:
        registry.add(make_bundle(), alias="production")
        version = registry.add(make_bundle(), alias="live")
        assert (
            load_served(registry.client, registry.name, sources=["alias:live"]).version == version
        )

    def test_no_such_model(self, server: TrackingServer) -> None:
        with pytest.raises(NotComparable, match="no version of missing is in production"):
            load_served(server.client, "missing")

    def test_nothing_in_production(self, registry: Registry) -> None:
        registry.add(make_bundle())
        with pytest.raises(NotComparable, match=f"no version of {registry.name} is in production"):
            load_served(registry.client, registry.name)

    def test_artifacts_that_are_gone(self, registry: Registry) -> None:
        version = registry.add({}, alias="production")
        with pytest.raises(
            NotComparable, match=rf"version {version} \(alias:production\) can't be read: .*missing"
        ):
            load_served(registry.client, registry.name)

    def test_artifacts_that_are_damaged(self, registry: Registry) -> None:
        files = make_bundle()
        registry.add({**files, SCORES: files[SCORES][:-1]}, alias="production")
        with pytest.raises(NotComparable, match=SCORES):
            load_served(registry.client, registry.name)

    def test_a_format_of_later_days(self, registry: Registry) -> None:
        files = make_bundle()
        manifest = {**json.loads(files[MANIFEST]), "format_version": 99}
        registry.add({**files, MANIFEST: json.dumps(manifest).encode()}, alias="production")
        with pytest.raises(NotComparable, match="format_version"):
            load_served(registry.client, registry.name)

    def test_a_bucket_that_is_gone(self, registry: Registry) -> None:
        version = registry.client.create_model_version(registry.name, "gs://no-such-bucket/folder")
        registry.client.set_registered_model_alias(registry.name, "production", version.version)
        with pytest.raises(NotComparable, match="can't be read"):
            load_served(registry.client, registry.name)

    def test_the_verdict_is_noted_on_the_version(self, registry: Registry) -> None:
        version = registry.add(make_bundle())
        noted = tags(verdict(auroc=0.9, behaviour=0.9, comparison="nothing is served"))
        for key, value in noted.items():
            registry.client.set_model_version_tag(registry.name, version, key, value)
        assert registry.client.get_model_version(registry.name, version).tags == noted
