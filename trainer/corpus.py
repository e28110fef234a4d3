"""A file of reviews as numbers: each token is an int32, and text is kept for the test only."""

from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from functions.predict.tokenizer import tokenize
from trainer.reviews import Split, Tally, check_splits, split_of, stream_reviews


@dataclass(frozen=True)
class Corpus:
    """D reviews of T tokens out of W different ones."""

    tally: Tally
    words: list[str]
    """The W tokens, in the order of their first occurrence."""
    tokens: NDArray[np.int32]
    """[T]: indices into `words`, one review after the other."""
    lengths: NDArray[np.int32]
    """[D]: tokens in each review."""
    characters: NDArray[np.int32]
    """[D]: code points in each review."""
    labels: NDArray[np.bool_]
    """[D]: whether each review is positive."""
    stars: NDArray[np.float32]
    """[D]: stars of each review, NaN where the data has none."""
    splits: NDArray[np.int8]
    """[D]: the `Split` of each review."""
    test_texts: list[str]
    """Texts of the test split, in order."""

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Return int64[N], the numbers of the reviews in `split`, in order."""
        return np.flatnonzero(self.splits == split)


def read_corpus(
    source: Path | str,
    *,
    generation: int | None = None,
    validation_share: float,
    test_share: float,
    max_bad_share: float = 0.05,
    progress: bool = False,
) -> Corpus:
    """Read a source of reviews, split it and tokenize it, in one pass.

    Memory grows by 4 bytes a token, and by the texts of the test split.

    Args:
        source: path, or ``gs://BUCKET/OBJECT``; see `trainer.reviews.stream_reviews`.
        generation: of the object in Cloud Storage; None: the newest.
        validation_share: share of the validation split, 0 to 1.
        test_share: share of the test split, 0 to 1.
        max_bad_share: refuse the data when more than this share of its rows is unusable.
        progress: show a bar over the bytes read.

    Raises:
        DataError: the data can't be read or used, or a split lacks positive or
            negative reviews.
    """
    tally = Tally()
    # The index of a new token is the number of those before it.
    index: defaultdict[str, int] = defaultdict()
    index.default_factory = index.__len__
    tokens, lengths, characters = array("i"), array("i"), array("i")
    labels, splits, stars = array("b"), array("b"), array("f")
    test_texts = []
    for review, position in stream_reviews(
        source, tally, generation=generation, max_bad_share=max_bad_share, progress=progress
    ):
        split = split_of(position, validation_share=validation_share, test_share=test_share)
        found = tokenize(review.text)
        tokens.extend(map(index.__getitem__, found))
        lengths.append(len(found))
        characters.append(len(review.text))
        labels.append(review.is_positive)
        stars.append(np.nan if review.stars is None else review.stars)
        splits.append(split)
        if split is Split.TEST:
            test_texts.append(review.text)
    corpus = Corpus(
        tally=tally,
        words=list(index),
        tokens=np.frombuffer(tokens, np.int32),
        lengths=np.frombuffer(lengths, np.int32),
        characters=np.frombuffer(characters, np.int32),
        labels=np.frombuffer(labels, np.bool_),
        stars=np.frombuffer(stars, np.float32),
        splits=np.frombuffer(splits, np.int8),
        test_texts=test_texts,
    )
    pairs = zip(map(Split, splits), map(bool, labels), strict=True)
    check_splits(source, Counter(pairs))
    return corpus
