"""A model and reviews of made-up words, distributed as words of a language are."""

import io
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch

from benchmarks.predict import EMBEDDING_DIM, ORDER, TORCH_STATE, TORCH_VOCABULARY
from functions.predict.bundle import (
    UNKNOWN_TOKEN,
    Bundle,
    Histogram,
    Lineage,
    Metric,
    Reference,
    build_bundle,
    read_bundle,
)
from functions.predict.tokenizer import ngrams, tokenize
from trainer.golden import golden_texts
from trainer.model import BagLinear

WORDS_IN_A_REVIEW = 130

_SYLLABLES = [
    "".join(parts) for parts in itertools.product("bdfgklmnprstvw", "aeiou", ("", "n", "r", "s"))
]
_WORDS = 40_000
# Enough of them that their n-grams are many more than the vocabulary takes.
_REVIEWS_READ = 6_000


class Model(NamedTuple):
    """One model in each of the forms that it is served from."""

    module: BagLinear
    bundle_files: dict[str, bytes]
    torch_files: dict[str, bytes]
    bundle: Bundle
    """The bundle, read: its scorer gives the right answers."""


class Language:
    """Reviews of made-up words: few are frequent, most are rare (Zipf's law).

    Args:
        seed: of the random numbers; equal seeds give equal reviews.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311
        words: dict[str, None] = {}
        while len(words) < _WORDS:
            words["".join(self._random.choices(_SYLLABLES, k=self._random.randint(1, 4)))] = None
        self.words = list(words)
        self._weights = list(itertools.accumulate(1 / rank for rank in range(1, _WORDS + 1)))

    def review(self) -> str:
        """Return a review of `WORDS_IN_A_REVIEW` words, with capitals and punctuation."""
        words = self._random.choices(self.words, cum_weights=self._weights, k=WORDS_IN_A_REVIEW)
        start = 0
        while start < len(words):
            words[start] = words[start].capitalize()
            end = min(start + self._random.randint(4, 20), len(words)) - 1
            if end - start > 8:
                words[start + 4] += ","
            words[end] += self._random.choices((".", "!", "?", "..."), (20, 3, 1, 1))[0]
            start = end + 1
        return " ".join(words)


def make_model(language: Language, size: int) -> Model:
    """Return a model of the `size` most frequent n-grams of the language, untrained."""
    counts: Counter[str] = Counter()
    for _ in range(_REVIEWS_READ):
        counts.update(ngrams(tokenize(language.review()), ORDER))
    vocabulary = [UNKNOWN_TOKEN, *(term for term, _ in counts.most_common(size - 1))]
    torch.manual_seed(0)
    module = BagLinear(len(vocabulary), EMBEDDING_DIM).eval()
    state = io.BytesIO()
    torch.save(module.state_dict(), state)
    index = {term: row for row, term in enumerate(vocabulary)}
    scores = module.ngram_scores().tolist()
    files = build_bundle(
        lineage=Lineage("benchmark", "0" * 32, None, None, "0" * 64),
        vocabulary=vocabulary,
        scores=scores,
        bias=float(module.linear.bias.item()),
        ngrams=ORDER,
        threshold=0.5,
        metrics={"auroc": Metric(0.5)},
        reference=_reference(),
        golden=golden_texts(module, index, ORDER),
    )
    module.float()
    return Model(
        module,
        files,
        {TORCH_STATE: state.getvalue(), TORCH_VOCABULARY: "\n".join(vocabulary).encode()},
        read_bundle(files),
    )


def make_large_bundle(language: Language, model: Model, size: int) -> dict[str, bytes]:
    """Return a bundle of `size` n-grams, for the time and the memory that it takes."""
    values = random.Random(1)  # noqa: S311
    return build_bundle(
        lineage=Lineage("benchmark", "1" * 32, None, None, "0" * 64),
        vocabulary=[UNKNOWN_TOKEN, *itertools.islice(_pairs(language.words), size - 1)],
        scores=[values.uniform(-1, 1) for _ in range(size)],
        bias=0.0,
        ngrams=ORDER,
        threshold=0.5,
        metrics={"auroc": Metric(0.5)},
        reference=_reference(),
        golden=golden_texts(model.module, {}, ORDER),
    )


def _pairs(words: list[str]) -> Iterator[str]:
    """Yield each word, then pairs of words, none twice."""
    yield from words
    for shift in range(1, len(words)):
        yield from (
            f"{first} {second}"
            for first, second in zip(words, words[shift:] + words[:shift], strict=True)
        )


def _reference() -> Reference:
    histogram = Histogram([0.0, 1.0], [1])
    return Reference(histogram, histogram, histogram)
