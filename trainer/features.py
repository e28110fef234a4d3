"""Reviews as tensors: torchtext's vocabulary over n-grams, and batches of bags."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchtext.vocab import Vocab

from functions.predict.bundle import UNKNOWN_TOKEN
from trainer.corpus import Corpus
from trainer.reviews import Split

# Reviews that are laid out at a time, so that the positions take little memory.
_REVIEWS_A_BLOCK = 2**14


class Bags(NamedTuple):
    """The bags of n-grams of D reviews, flat."""

    indices: Tensor
    """int32[N]: rows of the embedding, one bag after the other; in each bag the single
    tokens come first, then the pairs, and so on, as torchtext's ``ngrams_iterator`` has them."""
    starts: Tensor
    """int64[D]: where each bag starts in `indices`."""
    lengths: Tensor
    """int64[D]: n-grams in each bag."""
    labels: Tensor
    """float32[D]: 1 for positive, 0 for negative."""


class Batch(NamedTuple):
    """Some bags."""

    indices: Tensor
    """int64[N]: rows of the embedding, one bag after the other."""
    lengths: Tensor
    """int64[B]: n-grams in each bag."""
    labels: Tensor
    """float32[B]"""


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length, in the whole corpus."""

    codes: NDArray[np.int64]
    """[U]: each different n-gram as (its beginning's number in the level below) * W + last token.
    At the lowest level, the token itself."""
    numbers: NDArray[np.int32]
    """[M]: position in `codes` of each occurrence, in reading order."""
    counts: NDArray[np.int64]
    """[U]: occurrences in the training split."""


def vectorize(
    corpus: Corpus, *, order: int, min_frequency: int, max_size: int
) -> tuple[Vocab, Bags]:
    """Return torchtext's vocabulary of the training split's n-grams, and all reviews as bags.

    The outcome is that of torchtext's ``ngrams_iterator`` over each review, a counter of
    the training split's n-grams, and a look-up of each; but an n-gram is a number
    until it is known to be frequent enough, so that only those kept become strings.

    Args:
        corpus: the reviews.
        order: longest n-gram, in tokens, at least 1.
        min_frequency: least number of occurrences in the training split.
        max_size: most n-grams, the most frequent first, equal ones in alphabetical order.

    Returns:
        The vocabulary, row 0 for what is unknown, and the bags, of all splits.
    """
    levels = list(_levels(corpus, order))
    least = max(min_frequency, _least_count([level.counts for level in levels], max_size))
    counter: Counter[str] = Counter()
    kept = []
    for number, level in enumerate(levels):
        chosen = np.flatnonzero(level.counts >= least)
        terms = _names(level, chosen, levels[:number], corpus.words)
        kept.append((chosen, terms))
        counter.update(dict(zip(terms, level.counts[chosen].tolist(), strict=True)))
    vocabulary = Vocab(counter, max_size=max_size, min_freq=min_frequency, specials=[UNKNOWN_TOKEN])
    rows = []
    for level, (chosen, terms) in zip(levels, kept, strict=True):
        row = np.zeros(len(level.codes), np.int32)
        # torchtext's own mapping would grow with every n-gram that it lacks.
        row[chosen] = [vocabulary.stoi.get(term, 0) for term in terms]
        rows.append(row)
    return vocabulary, _lay_out(corpus, levels, rows)


def _levels(corpus: Corpus, order: int) -> Iterator[_Level]:
    """Number the n-grams of length 1, 2, ... `order`."""
    training = np.repeat(corpus.splits == Split.TRAIN, corpus.lengths)
    size = len(corpus.words)
    numbers = corpus.tokens
    yield _Level(
        np.arange(size, dtype=np.int64), numbers, np.bincount(numbers[training], minlength=size)
    )
    # Where each n-gram begins whose number is in `numbers`: at first, everywhere.
    begins = np.ones(len(numbers), np.bool_)
    for length in range(2, order + 1):
        # One n-gram fewer in each review than the level below has.
        longer = _begins(corpus.lengths, length)
        beginning = numbers[longer[begins]]
        begins = longer
        last = corpus.tokens[length - 1 :][begins[: max(0, len(begins) - length + 1)]]
        codes = beginning.astype(np.int64)
        codes *= size
        codes += last
        found, unique = pd.factorize(codes)
        numbers = found.astype(np.int32)
        yield _Level(
            np.asarray(unique, np.int64),
            numbers,
            np.bincount(numbers[training[begins]], minlength=len(unique)),
        )


def _begins(lengths: NDArray[np.int32], order: int) -> NDArray[np.bool_]:
    """Return bool[T]: at which tokens an n-gram of `order` tokens begins."""
    result = np.ones(int(lengths.sum()), np.bool_)
    ends = np.cumsum(lengths, dtype=np.int64)
    for back in range(1, order):
        # The last tokens of each review; a short review has fewer.
        result[(ends - back)[lengths >= back]] = False
    return result


def _least_count(counts: list[NDArray[np.int64]], size: int) -> int:
    """Return the count of the `size`-th most frequent n-gram, or 1."""
    every = np.concatenate(counts)
    return max(1, int(np.partition(every, -size)[-size])) if len(every) > size else 1


def _names(
    level: _Level, chosen: NDArray[np.int64], below: list[_Level], words: list[str]
) -> list[str]:
    """Return the n-grams with the numbers `chosen` as strings."""
    if not below:
        return [words[number] for number in chosen.tolist()]
    beginnings, last = np.divmod(level.codes[chosen], len(words))
    starts = _names(below[-1], beginnings, below[:-1], words)
    return [f"{start} {words[number]}" for start, number in zip(starts, last.tolist(), strict=True)]


def _lay_out(corpus: Corpus, levels: list[_Level], rows: list[NDArray[np.int32]]) -> Bags:
    """Put the n-grams of each review side by side, in the order of their lengths."""
    # [order, D]: n-grams of each length in each review.
    counts = np.stack(
        [np.maximum(corpus.lengths - shorter, 0) for shorter in range(len(levels))]
    ).astype(np.int64)
    lengths = counts.sum(0)
    starts = np.cumsum(lengths) - lengths
    # Where the n-grams of one length of a review begin.
    places = starts + np.cumsum(counts, 0) - counts
    indices = np.empty(int(lengths.sum()), np.int32)
    for level, row, count, place in zip(levels, rows, counts, places, strict=True):
        done = 0
        for at in range(0, len(count), _REVIEWS_A_BLOCK):
            some, where = count[at : at + _REVIEWS_A_BLOCK], place[at : at + _REVIEWS_A_BLOCK]
            size = int(some.sum())
            within = np.arange(size) - np.repeat(np.cumsum(some) - some, some)
            indices[np.repeat(where, some) + within] = row[level.numbers[done : done + size]]
            done += size
    return Bags(
        torch.from_numpy(indices),
        torch.from_numpy(starts),
        torch.from_numpy(lengths),
        torch.from_numpy(corpus.labels.astype(np.float32)),
    )


class BagBatches:
    """Batches of some of the bags, shuffled or in order.

    Args:
        bags: the bags.
        rows: int64[N], the numbers of those to take.
        batch_size: bags in a batch.
        seed: of the shuffling; None: the order of `rows`.
    """

    def __init__(
        self, bags: Bags, rows: NDArray[np.int64], batch_size: int, *, seed: int | None = None
    ) -> None:
        self._bags = bags
        self._rows = torch.from_numpy(rows)
        self._batch_size = batch_size
        self._seed = seed

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        rows = self._rows
        if self._seed is not None:
            generator = torch.Generator().manual_seed(self._seed)
            rows = rows[torch.randperm(len(rows), generator=generator)]
        for chosen in rows.split(self._batch_size):
            lengths = self._bags.lengths[chosen]
            begins = torch.cumsum(lengths, 0) - lengths
            # The position of each n-gram: its bag's start, plus its place in the bag.
            shift = torch.repeat_interleave(self._bags.starts[chosen] - begins, lengths)
            positions = torch.arange(len(shift)) + shift
            yield Batch(self._bags.indices[positions].long(), lengths, self._bags.labels[chosen])
