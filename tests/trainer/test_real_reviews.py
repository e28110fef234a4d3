"""The sample on reviews that it has never seen: those of the file that DATA names."""

import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from functions.predict.bundle import read_bundle
from tests.trainer.conftest import Trained
from trainer.reviews import read_reviews

DATA = os.environ.get("DATA", "")


@pytest.mark.skipif(not DATA, reason="DATA names no file of real reviews")
def test_the_sample_alone_teaches_enough_for_real_reviews(trained: Trained) -> None:
    reviews = read_reviews(Path(DATA)).reviews
    scorer = read_bundle(trained.bundle()).scorer
    labels = np.array([review.is_positive for review in reviews])
    scores = np.array([scorer.score(review.text) for review in reviews])
    auroc = roc_auc_score(labels, scores)
    print(f"AUROC of the sample's model on {len(reviews):,} real reviews: {auroc:.4f}")
    assert auroc >= 0.85
