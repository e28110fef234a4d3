"""Small serving bundles for tests that need one but no training."""

import math
from collections.abc import Mapping

from functions.predict.bundle import (
    UNKNOWN_TOKEN,
    GoldenText,
    Histogram,
    Lineage,
    Metric,
    Reference,
    build_bundle,
)
from functions.predict.scorer import Scorer

SCORES = {"good": 4.0, "bad": -4.0, "not good": -6.0, "cool": 5.0, "!": 0.5}


def make_bundle(
    scores: Mapping[str, float] = SCORES,
    *,
    bias: float = 0.0,
    run_id: str = "a" * 32,
    auroc: float = 0.9,
    golden_shift: float = 0.0,
) -> dict[str, bytes]:
    """Return the files of a bundle with bigrams.

    `golden_shift` moves the golden texts' scores away from what the bundle gives.
    """
    scorer = Scorer(scores, bias=bias, unknown=0.0, order=2)
    texts = [f"the {word} cafe number {number}" for number in range(5) for word in scores]
    histogram = Histogram([0.0, 0.5, 1.0], [10, 10])
    return build_bundle(
        lineage=Lineage("yelp-model", run_id, None, None, "0" * 64),
        vocabulary=[UNKNOWN_TOKEN, *scores],
        scores=[0.0, *scores.values()],
        bias=bias,
        ngrams=2,
        threshold=0.5,
        metrics={"auroc": Metric(auroc, auroc - 0.02, auroc + 0.02)},
        reference=Reference(histogram, histogram, histogram),
        golden=[
            GoldenText(text, math.fabs(min(1.0, scorer.score(text) + golden_shift)))
            for text in texts
        ],
    )
