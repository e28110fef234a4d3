"""The behavioural tests themselves: sound, and able to tell models apart."""

import zlib
from collections import Counter
from collections.abc import Callable

import pytest

from functions.predict.bundle import Bundle, read_bundle
from functions.predict.scorer import Scorer
from tests.trainer.conftest import Trained
from trainer.behaviour import CASES, KINDS, TOLERANCE, Case, Expected, run
from trainer.comparison import BEHAVIOUR_FLOOR


class TestCases:
    def test_there_are_a_few_hundred_of_every_kind(self) -> None:
        counts = Counter(case.kind for case in CASES)
        assert set(counts) == set(KINDS)
        assert min(counts.values()) >= 100

    def test_none_is_there_twice(self) -> None:
        assert len(set(CASES)) == len(CASES)

    def test_changes_change_something(self) -> None:
        for case in CASES:
            assert len(case.texts) == (1 if case.kind == "minimum" else 2)
            assert len(set(case.texts)) == len(case.texts)

    def test_they_do_not_contradict_each_other(self) -> None:
        verdicts = {case.texts[0]: case.expected for case in CASES if case.kind == "minimum"}
        for case in CASES:
            if case.kind == "minimum":
                assert verdicts[case.texts[0]] == case.expected
        moves = {case.texts: case.expected for case in CASES if case.kind != "minimum"}
        for case in CASES:
            if case.kind != "minimum":
                assert moves[case.texts] == case.expected
                assert case.texts[::-1] not in moves

    @pytest.mark.parametrize(
        ("expected", "scores", "passes"),
        [
            ("stays", (0.8, 0.8 + TOLERANCE / 2), True),
            ("stays", (0.7, 0.9), False),
            # Near, but another verdict.
            ("stays", (0.49, 0.51), False),
            ("rises", (0.2, 0.3), True),
            ("rises", (0.2, 0.2), False),
            ("falls", (0.3, 0.2), True),
            ("falls", (0.3, 0.3), False),
            ("does not fall", (0.3, 0.3 - TOLERANCE / 2), True),
            ("does not fall", (0.3, 0.1), False),
            ("does not rise", (0.3, 0.3 + TOLERANCE / 2), True),
            ("does not rise", (0.3, 0.5), False),
            ("positive", (0.5,), True),
            ("positive", (0.49,), False),
            ("negative", (0.49,), True),
            ("negative", (0.5,), False),
        ],
    )
    def test_what_passes(self, expected: Expected, scores: tuple[float, ...], passes: bool) -> None:
        case = Case("any", expected, ("one", "two")[: len(scores)])
        assert case.passes(scores, 0.5) is passes


@pytest.fixture(scope="module")
def bundle(trained: Trained) -> Bundle:
    return read_bundle(trained.bundle())


def _noise(text: str) -> float:
    return zlib.crc32(text.encode()) / 2**32


class TestRun:
    def test_the_sample_teaches_enough(self, bundle: Bundle) -> None:
        report = run(bundle.scorer.score, bundle.manifest.threshold)
        assert report.share >= BEHAVIOUR_FLOOR, report.summary().to_string()

    @pytest.mark.parametrize(
        "score",
        [lambda _: 0.0, lambda _: 0.5, lambda _: 1.0, _noise],
        ids=["0", "0.5", "1", "noise"],
    )
    def test_who_knows_nothing_fails(self, score: Callable[[str], float]) -> None:
        assert run(score, 0.5).share < BEHAVIOUR_FLOOR

    def test_who_has_it_the_wrong_way_round_fails(self, bundle: Bundle) -> None:
        report = run(lambda text: 1 - bundle.scorer.score(text), 1 - bundle.manifest.threshold)
        assert report.share < BEHAVIOUR_FLOOR
        assert report.metrics()["behaviour_minimum"] < 0.5

    def test_who_minds_names_and_numbers_is_found_out(self) -> None:
        words = {"Maria": 9.0, "4": 9.0, "phoenix": 9.0, "great": 3.0, "terrible": -3.0}
        scorer = Scorer(
            {word.lower(): value for word, value in words.items()}, bias=0.1, unknown=0.0, order=1
        )
        found = run(scorer.score, 0.5).table().query("kind == 'invariance' and not passed")
        assert {"names", "places", "digits"} <= set(found["name"])

    def test_who_overlooks_not_is_found_out(self) -> None:
        scorer = Scorer({"good": 9.0, "bad": -9.0}, bias=0.1, unknown=0.0, order=1)
        summary = run(scorer.score, 0.5).summary().set_index("name")
        # A word more weakens "bad", which a mean over words can't help.
        assert summary.loc["negated praise", "passed"].iloc[1] < 8
        assert run(scorer.score, 0.5).metrics()["behaviour_minimum"] < BEHAVIOUR_FLOOR

    def test_metrics_follow_from_the_table(self, bundle: Bundle) -> None:
        report = run(bundle.scorer.score, 0.5)
        table, metrics = report.table(), report.metrics()
        assert len(table) == len(CASES)
        shares = table.groupby("kind")["passed"].mean()
        for kind in KINDS:
            assert metrics[f"behaviour_{kind}"] == pytest.approx(shares[kind])
        assert metrics["behaviour"] == report.share == pytest.approx(shares.mean())
        summary = report.summary()
        assert summary["n"].sum() == len(CASES)
        assert summary["passed"].sum() == table["passed"].sum()

    def test_the_table_shows_each_text_with_its_score(self, bundle: Bundle) -> None:
        for row in run(bundle.scorer.score, 0.5).table().to_dict("records"):
            assert row["score"] == bundle.scorer.score(row["text"])
            if row["kind"] != "minimum":
                assert row["changed_score"] == bundle.scorer.score(row["changed"])
