"""Baseline: the original's design, a FastAPI application around the torch module.

Reads what a training left, the module's state and its vocabulary, from the folder
``MODEL_URI`` of Cloud Storage, and answers as predict does.
"""

import io
import os
import time
from typing import Any

import torch
from fastapi import FastAPI
from google.cloud import storage
from pydantic import BaseModel
from torch import nn
from torchtext.data.utils import get_tokenizer, ngrams_iterator

from benchmarks.predict import EMBEDDING_DIM, ORDER, TORCH_STATE, TORCH_VOCABULARY


class Question(BaseModel):
    """Body of ``POST /predict``."""

    text: str


class Module(nn.Module):
    """EmbeddingBag, Linear, sigmoid."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(size, EMBEDDING_DIM, mode="mean")
        self.linear = nn.Linear(EMBEDDING_DIM, 1)

    def forward(self, indices: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Return the probability of the positive label for each bag, float32[B, 1]."""
        result: torch.Tensor = torch.sigmoid(self.linear(self.embedding(indices, offsets)))
        return result


def _read() -> tuple[Module, dict[str, int]]:
    bucket_name, _, folder = os.environ["MODEL_URI"].removeprefix("gs://").partition("/")
    bucket = storage.Client().bucket(bucket_name)
    vocabulary = bucket.blob(f"{folder}/{TORCH_VOCABULARY}").download_as_bytes().decode()
    state = bucket.blob(f"{folder}/{TORCH_STATE}").download_as_bytes()
    index = {term: row for row, term in enumerate(vocabulary.split("\n"))}
    module = Module(len(index))
    module.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
    return module.eval(), index


torch.set_num_threads(1)
_module, _index = _read()
_tokenize = get_tokenizer("basic_english")
_first = torch.tensor([0])

app = FastAPI()


@app.post("/predict")
async def predict(question: Question) -> dict[str, Any]:
    """Answer one text."""
    start = time.perf_counter()
    get = _index.get
    rows = [get(term, 0) for term in ngrams_iterator(_tokenize(question.text), ORDER)]
    with torch.inference_mode():
        score = _module(torch.tensor(rows, dtype=torch.int64), _first).item()
    elapsed = time.perf_counter() - start
    return {
        "text": question.text,
        "is_positive_review": int(score >= 0.5),
        "details": {"mlflow_run_id": "0" * 32, "inference_elapsed": elapsed},
        "score": score,
        "model_version": "1",
        "revision": "",
    }
