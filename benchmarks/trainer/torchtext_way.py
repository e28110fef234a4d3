"""From a file of reviews to tensors as the torchtext tutorials do it, in one process.

``get_tokenizer("basic_english")``, ``ngrams_iterator``, a counter, torchtext's vocabulary,
one tensor a review. The tutorials tokenize twice, for the vocabulary and for the tensors;
here once, which is kinder to them.
"""

import csv
import gzip
import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchtext.data.utils import get_tokenizer, ngrams_iterator
from torchtext.vocab import Vocab


class Prepared(NamedTuple):
    """What a training starts from."""

    vocabulary: Vocab
    reviews: list[tuple[Tensor, bool]]
    """Rows of the vocabulary, and whether the review is positive."""


def prepare(path: Path, *, order: int, min_frequency: int, max_size: int) -> Prepared:
    """Read a CSV file with the columns ``stars`` and ``text``, plain or gzip."""
    tokenize = get_tokenizer("basic_english")
    counter: Counter[str] = Counter()
    documents = []
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        content = gzip.GzipFile(fileobj=raw) if is_gzip else raw
        for row in csv.DictReader(io.TextIOWrapper(content, "utf-8", newline="")):
            terms = list(ngrams_iterator(tokenize(row["text"]), order))
            counter.update(terms)
            documents.append((terms, float(row["stars"]) >= 3))
    vocabulary = Vocab(counter, max_size=max_size, min_freq=min_frequency, specials=["<unk>"])
    index = dict(vocabulary.stoi)
    return Prepared(
        vocabulary,
        [
            (torch.tensor([index.get(term, 0) for term in terms], dtype=torch.int64), label)
            for terms, label in documents
        ],
    )
