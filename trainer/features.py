"""Texts as tensors: torchtext's vocabulary over n-grams, and batches for EmbeddingBag."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from torchtext.vocab import Vocab

from functions.predict.bundle import UNKNOWN_TOKEN
from functions.predict.tokenizer import ngrams, tokenize


class Bags(NamedTuple):
    """Bags of n-grams, flat, with the label of each."""

    indices: Tensor
    """int64[N]: the n-grams of all bags, one bag after the other."""
    lengths: Tensor
    """int64[B]: n-grams in each bag."""
    labels: Tensor
    """float32[B]: 1 for positive, 0 for negative."""


class Batch(NamedTuple):
    """Some bags, as ``torch.nn.EmbeddingBag`` takes them."""

    indices: Tensor
    """int64[N]"""
    offsets: Tensor
    """int64[B]: where each bag starts in `indices`."""
    labels: Tensor
    """float32[B]"""


def extract(text: str, order: int) -> list[str]:
    """Return the n-grams of `text`, up to `order` tokens long."""
    return ngrams(tokenize(text), order)


def build_vocabulary(documents: Iterable[list[str]], *, min_frequency: int, max_size: int) -> Vocab:
    """Return torchtext's vocabulary of the n-grams in `documents`.

    Args:
        documents: the n-grams of each text.
        min_frequency: least number of occurrences.
        max_size: most n-grams, the most frequent first.
    """
    counter: Counter[str] = Counter()
    for document in documents:
        counter.update(document)
    return Vocab(counter, max_size=max_size, min_freq=min_frequency, specials=[UNKNOWN_TOKEN])


def to_bags(documents: Sequence[list[str]], labels: Sequence[bool], vocabulary: Vocab) -> Bags:
    """Return `documents` as indices into `vocabulary`; unknown n-grams are index 0."""
    # A plain dict: torchtext's defaultdict would grow with every unknown n-gram.
    index = dict(vocabulary.stoi)
    flat = [index.get(term, 0) for document in documents for term in document]
    return Bags(
        torch.tensor(flat, dtype=torch.int64),
        torch.tensor([len(document) for document in documents], dtype=torch.int64),
        torch.tensor(labels, dtype=torch.float32),
    )


class BagBatches(IterableDataset[Batch]):
    """Batches of bags, shuffled anew in each epoch or in order.

    Args:
        bags: what to batch.
        batch_size: bags in a batch.
        shuffle_seed: seed of the shuffling; None: keep the order.
    """

    def __init__(self, bags: Bags, batch_size: int, *, shuffle_seed: int | None = None) -> None:
        self._bags = bags
        self._batch_size = batch_size
        self._starts = torch.cumsum(bags.lengths, 0) - bags.lengths
        self._generator = None
        if shuffle_seed is not None:
            self._generator = torch.Generator().manual_seed(shuffle_seed)

    def __len__(self) -> int:
        return -(-len(self._bags.labels) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        count = len(self._bags.labels)
        order = (
            torch.arange(count)
            if self._generator is None
            else torch.randperm(count, generator=self._generator)
        )
        for chosen in order.split(self._batch_size):
            lengths = self._bags.lengths[chosen]
            offsets = torch.cumsum(lengths, 0) - lengths
            # The position of each n-gram: its bag's start, plus its place in the bag.
            shift = torch.repeat_interleave(self._starts[chosen] - offsets, lengths)
            positions = torch.arange(int(lengths.sum())) + shift
            yield Batch(self._bags.indices[positions], offsets, self._bags.labels[chosen])
