"""The model as MLflow's python_function: texts in, scores out.

A logged model carries a copy of this module and of the scorer, and MLflow puts that
copy first on the path: in a process that has not imported this project yet, a model
scores as it did on the day it was logged. Where the project is imported already,
Python keeps to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from functions.predict.bundle import FILES, MANIFEST, read_bundle

if TYPE_CHECKING:
    import pandas as pd

    from functions.predict.scorer import Scorer


class TextScorer:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def predict(
        self, model_input: pd.DataFrame | Sequence[str], params: dict[str, Any] | None = None
    ) -> list[float]:
        """Return the probability of the positive label for each text.

        Args:
            model_input: a frame whose column ``text`` holds the texts, or the texts.
            params: none are known.
        """
        texts = model_input if isinstance(model_input, Sequence) else model_input["text"]
        return [self._scorer.score(text) for text in texts]


def _load_pyfunc(path: str) -> TextScorer:
    """Return the model in the folder `path` of the logged model, for MLflow."""
    files = {name: (Path(path) / name).read_bytes() for name in (MANIFEST, *FILES)}
    return TextScorer(read_bundle(files).scorer)
