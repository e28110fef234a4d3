"""Metrics, threshold, calibration and slices, against scikit-learn and known truths."""

import io
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from trainer.evaluation import (
    BOOTSTRAP_SAMPLES,
    Floats,
    Integers,
    Labels,
    Ranking,
    calibrate,
    calibration_error,
    choose_threshold,
    evaluate,
    plot_calibration,
    resamples,
    slices,
    wilson,
)

# Few different scores: ties are the rule.
SCORES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
PAIRS = st.lists(st.tuples(st.booleans(), SCORES), min_size=2, max_size=40).filter(
    lambda pairs: len({label for label, _ in pairs}) == 2
)


def arrays(pairs: list[tuple[bool, float]]) -> tuple[Labels, Floats]:
    labels, scores = zip(*pairs, strict=True)
    return np.array(labels, np.bool_), np.array(scores, np.float64)


def sigmoid(logits: Floats) -> Floats:
    result: Floats = 1 / (1 + np.exp(-logits))
    return result


def two_kinds(count: int, *, positive: float, seed: int = 0) -> tuple[Labels, Floats]:
    """Return labels and logits, normal around 1 and -1: the best threshold is a logit of 0."""
    generator = np.random.default_rng(seed)
    labels = generator.random(count) < positive
    labels[:2] = [True, False]
    return labels, generator.normal(np.where(labels, 1.0, -1.0))


class TestEvaluate:
    @settings(max_examples=40)
    @given(pairs=PAIRS, threshold=st.floats(0, 1))
    def test_values_are_those_of_scikit_learn(
        self, pairs: list[tuple[bool, float]], threshold: float
    ) -> None:
        labels, scores = arrays(pairs)
        called = scores >= threshold
        values = {
            name: metric.value
            for name, metric in evaluate(labels, scores, threshold=threshold, seed=0).items()
        }
        assert values == pytest.approx(
            {
                "accuracy": reference.accuracy_score(labels, called),
                "balanced_accuracy": reference.balanced_accuracy_score(labels, called),
                "auroc": reference.roc_auc_score(labels, scores),
                "f1": reference.f1_score(labels, called),
                "brier": reference.brier_score_loss(labels, scores),
                "log_loss": reference.log_loss(labels, scores),
            }
        )

    @given(pairs=PAIRS, data=st.data())
    def test_auroc_of_a_resample(
        self, pairs: list[tuple[bool, float]], data: st.DataObject
    ) -> None:
        labels, scores = arrays(pairs)
        counts = np.array(
            data.draw(st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs))),
            np.int64,
        )
        counts[[int(np.argmax(labels)), int(np.argmin(labels))]] += 1
        expected = reference.roc_auc_score(labels, scores, sample_weight=counts)
        assert Ranking(labels, scores).auroc(counts) == pytest.approx(expected)

    def test_the_interval_of_the_accuracy_is_about_wilsons(self) -> None:
        labels, logits = two_kinds(3000, positive=0.3)
        metric = evaluate(labels, sigmoid(logits), threshold=0.5, seed=0)["accuracy"]
        expected = wilson(round(metric.value * len(labels)), len(labels))
        assert (metric.low, metric.high) == pytest.approx(expected, abs=0.004)

    def test_the_seed_decides(self) -> None:
        labels, logits = two_kinds(50, positive=0.5)

        def low(seed: int) -> float | None:
            return evaluate(labels, sigmoid(logits), threshold=0.5, seed=seed)["auroc"].low

        assert low(1) == low(1) != low(2)

    def test_one_kind_is_refused(self) -> None:
        with pytest.raises(ValueError, match="one kind"):
            evaluate(np.ones(5, np.bool_), np.full(5, 0.5), threshold=0.5, seed=0)

    def test_resamples_have_both_kinds(self) -> None:
        labels = np.array([True] + 4 * [False])
        drawn: list[Integers] = list(resamples(labels, BOOTSTRAP_SAMPLES, seed=0))
        assert len(drawn) == BOOTSTRAP_SAMPLES
        for counts in drawn:
            assert counts.sum() == 5
            assert 0 < counts[0] < 5
        # A third of all samples lack the only positive text: they are drawn again.
        assert len({tuple(counts) for counts in drawn}) > 20


class TestThreshold:
    @given(pairs=PAIRS)
    def test_it_lies_among_the_scores(self, pairs: list[tuple[bool, float]]) -> None:
        labels, scores = arrays(pairs)
        threshold = choose_threshold(labels, scores)
        assert 0 < threshold < 1
        assert scores.min() - 1e-9 <= threshold <= scores.max() + 1e-9

    @given(pairs=PAIRS, order=st.randoms())
    def test_the_order_of_the_texts_does_not_matter(
        self, pairs: list[tuple[bool, float]], order: Random
    ) -> None:
        shuffled = list(pairs)
        order.shuffle(shuffled)
        assert choose_threshold(*arrays(pairs)) == pytest.approx(
            choose_threshold(*arrays(shuffled)), abs=1e-6
        )

    @pytest.mark.parametrize("positive", [0.1, 0.5, 0.9])
    def test_for_calibrated_scores_it_is_a_half(self, positive: float) -> None:
        labels, logits = two_kinds(20_000, positive=positive)
        calibrated = sigmoid(2 * logits + np.log(positive / (1 - positive)))
        assert choose_threshold(labels, calibrated) == pytest.approx(0.5, abs=0.05)

    def test_kinds_apart_are_parted_in_the_middle(self) -> None:
        logits = np.array([-5.0, -4.5, -4.0, 4.0, 4.5, 5.0])
        assert choose_threshold(logits > 0, sigmoid(logits)) == pytest.approx(0.5, abs=0.01)

    def test_it_varies_less_than_the_best_observed(self) -> None:
        """On small splits the observed best jumps with single texts."""
        chosen, observed = [], []
        for seed in range(60):
            labels, logits = two_kinds(100, positive=0.6, seed=seed)
            chosen.append(choose_threshold(labels, sigmoid(logits)))
            false, true, thresholds = reference.roc_curve(labels, sigmoid(logits))
            observed.append(thresholds[np.argmax(labels.mean() * true - (~labels).mean() * false)])
        assert np.std(chosen) < 0.75 * np.std(observed)

    def test_certain_scores(self) -> None:
        assert 0 < choose_threshold(np.array([True, False]), np.array([1.0, 0.0])) < 1

    def test_one_score_for_all(self) -> None:
        assert choose_threshold(np.array([True, False]), np.array([0.3, 0.3])) == 0.3

    def test_one_kind_is_refused(self) -> None:
        with pytest.raises(ValueError, match="one kind"):
            choose_threshold(np.zeros(5, np.bool_), np.linspace(0, 1, 5))


class TestCalibration:
    @pytest.mark.parametrize(("scale", "shift"), [(0.3, 0.5), (1.0, 0.0), (3.0, -2.0)])
    def test_it_finds_what_the_logits_were_bent_by(self, scale: float, shift: float) -> None:
        generator = np.random.default_rng(0)
        logits = generator.normal(0, 2, 40_000)
        labels = generator.random(40_000) < sigmoid(scale * logits + shift)
        found = calibrate(labels, logits)
        assert found.reason is None
        assert found[:2] == pytest.approx((scale, shift), rel=0.05, abs=0.05)

    def test_the_overconfident_become_calibrated(self) -> None:
        labels, logits = two_kinds(20_000, positive=0.7)
        overconfident = 6 * logits
        scale, shift, _ = calibrate(labels[::2], overconfident[::2])
        rest = labels[1::2]
        before = sigmoid(overconfident[1::2])
        after = sigmoid(scale * overconfident[1::2] + shift)
        assert calibration_error(rest, after) < 0.02 < 0.1 < calibration_error(rest, before)
        assert reference.log_loss(rest, after) < reference.log_loss(rest, before)
        assert Ranking(rest, after).auroc(np.ones(10_000, np.int64)) == pytest.approx(
            reference.roc_auc_score(rest, before)
        )

    @given(pairs=st.lists(st.tuples(st.booleans(), st.floats(-30, 30)), min_size=1, max_size=30))
    def test_the_order_always_stays(self, pairs: list[tuple[bool, float]]) -> None:
        labels, logits = arrays(pairs)
        scale, shift, reason = calibrate(labels, logits)
        assert scale > 0
        assert np.isfinite([scale, shift]).all()
        if reason is not None:
            assert (scale, shift) == (1, 0)

    def test_kinds_apart_give_no_certainty(self) -> None:
        """Without Platt's targets the scale has no bound."""
        logits = np.array([-2.0, -1.0, 1.0, 2.0])
        scale, shift, reason = calibrate(logits > 0, logits)
        assert reason is None
        assert shift == pytest.approx(0, abs=1e-6)
        # The targets of two and two texts: 3/4 and 1/4.
        assert 0.5 < sigmoid(np.array([scale]))[0] < 0.75 < sigmoid(np.array([2 * scale]))[0] < 0.9

    @pytest.mark.parametrize(
        ("labels", "logits", "reason"),
        [
            ([True, True, True], [-1.0, 0.0, 1.0], "one kind"),
            ([True, False, False], [-1.0, 0.0, 1.0], "higher logits"),
            ([True, False, True], [0.1, 0.1, 0.1], "the same"),
        ],
    )
    def test_what_can_not_be_fitted_stays_with_a_reason(
        self, labels: list[bool], logits: list[float], reason: str
    ) -> None:
        found = calibrate(np.array(labels), np.array(logits))
        assert found[:2] == (1, 0)
        assert found.reason is not None
        assert reason in found.reason

    @given(pairs=PAIRS, order=st.randoms())
    def test_the_error_is_a_share_whatever_the_order(
        self, pairs: list[tuple[bool, float]], order: Random
    ) -> None:
        error = calibration_error(*arrays(pairs))
        assert 0 <= error <= 1
        shuffled = list(pairs)
        order.shuffle(shuffled)
        assert calibration_error(*arrays(shuffled)) == pytest.approx(error)

    def test_known_errors(self) -> None:
        labels = np.array([True, False, True, True])
        assert calibration_error(labels, np.full(4, 0.75)) == pytest.approx(0)
        assert calibration_error(labels, np.full(4, 0.25)) == pytest.approx(0.5)
        # Of two bins, one is right and one is a tenth off.
        scores = np.array([0.5, 0.5, 0.9, 0.9])
        assert calibration_error(labels, scores) == pytest.approx(0.05)

    def test_plot(self) -> None:
        labels, logits = two_kinds(1000, positive=0.5)
        figure = plot_calibration(labels, sigmoid(2 * logits))
        curve, counts = figure.axes
        means, shares = np.asarray(curve.lines[1].get_data())
        assert len(means) == 15
        assert shares == pytest.approx(means, abs=0.2)
        assert sum(bar.get_height() for bar in counts.containers[0]) == (~labels).sum()
        content = io.BytesIO()
        figure.savefig(content)
        assert content.getvalue().startswith(b"\x89PNG")


@given(data=st.data(), count=st.integers(1, 500))
def test_wilson_bounds_are_shares_just_in_reach(data: st.DataObject, count: int) -> None:
    """What defines them: the share seen is 1.96 standard errors away, by their own error."""
    successes = data.draw(st.integers(0, count))
    low, high = wilson(successes, count)
    assert 0 <= low <= successes / count <= high <= 1
    for bound in (low, high):
        error = np.sqrt(bound * (1 - bound) / count)
        assert abs(successes / count - bound) == pytest.approx(1.96 * error, rel=1e-3, abs=1e-7)


class TestSlices:
    LABELS = np.array([False, False, True, True, True, True, False, True])
    SCORES = np.array([0.1, 0.7, 0.4, 0.9, 0.9, 0.8, 0.2, 0.6])
    STARS = (1.0, 1.0, 3.0, 3.5, 5.0, 5.0, 1.5, None)

    def table(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = slices(
            self.LABELS,
            self.SCORES,
            threshold=0.5,
            lengths=[3, 3, 3, 3, 50, 60, 70, 80],
            unknown_shares=[0.0] * 8,
            stars=self.STARS,
            seed=0,
        ).to_dict("records")
        return rows

    def test_every_text_is_in_one_part_of_each_slice(self) -> None:
        rows = self.table()
        for name, total in (("all", 8), ("stars", 7), ("length", 8), ("unknown words", 8)):
            assert sum(row["n"] for row in rows if row["slice"] == name) == total

    def test_parts(self) -> None:
        ranges = [(row["slice"], row["value"]) for row in self.table()]
        assert ranges == [
            ("all", ""),
            *(("stars", value) for value in ("1", "3", "5")),
            *(("length", value) for value in ("3", "50", "60 to 70", "80")),
            ("unknown words", "0"),
        ]

    def test_figures(self) -> None:
        rows = {(row["slice"], row["value"]): row for row in self.table()}
        everything = rows["all", ""]
        assert everything["accuracy"] == 0.75
        assert (everything["accuracy_low"], everything["accuracy_high"]) == wilson(6, 8)
        assert everything["auroc"] == pytest.approx(
            reference.roc_auc_score(self.LABELS, self.SCORES)
        )
        one_star = rows["stars", "1"]
        assert (one_star["n"], one_star["positive"]) == (3, 0)
        assert one_star["accuracy"] == pytest.approx(2 / 3)
        for name in ("auroc", "balanced_accuracy_low"):
            assert np.isnan(one_star[name])

    def test_data_without_stars(self) -> None:
        table = slices(
            self.LABELS,
            self.SCORES,
            threshold=0.5,
            lengths=[3] * 8,
            unknown_shares=[0.5] * 8,
            stars=[None] * 8,
            seed=0,
        )
        assert set(table["slice"]) == {"all", "length", "unknown words"}

    def test_missing_figures_survive_as_json(self) -> None:
        """As `mlflow.log_table` writes it."""
        table = pd.DataFrame(self.table())
        back = pd.read_json(io.StringIO(table.to_json(orient="split")), orient="split")
        assert back["n"].tolist() == table["n"].tolist()
        assert back["auroc"].isna().tolist() == table["auroc"].isna().tolist()
