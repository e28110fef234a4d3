"""Corpus, vocabulary and batches, against torchtext's own way and a naive one."""

import csv
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchtext.data.utils import get_tokenizer, ngrams_iterator
from torchtext.vocab import Vocab

from trainer.corpus import Corpus, read_corpus
from trainer.features import BagBatches, Bags, Batch, vectorize
from trainer.model import BagLinear
from trainer.reviews import (
    SAMPLE,
    DataError,
    Split,
    Tally,
    position_of,
    read_reviews,
    split_of,
)

read = partial(read_corpus, validation_share=0.1, test_share=0.1)
# A text with its split, as many as one likes.
REVIEWS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([*"ab.!", "cd", "e'f"]), max_size=9).map(" ".join),
        st.sampled_from(Split),
        st.booleans(),
    ),
    max_size=20,
)
ORDERS = st.integers(1, 4)
# Rows of the embedding and the label; a split always has some.
DOCUMENTS = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=5), st.booleans()), min_size=1, max_size=30
)
tokenize = get_tokenizer("basic_english")


def corpus_of(reviews: list[tuple[str, Split, bool]]) -> Corpus:
    """Return reviews as `read_corpus` would, whatever their splits."""
    documents = [tokenize(text) for text, *_ in reviews]
    words = list(dict.fromkeys(word for document in documents for word in document))
    return Corpus(
        tally=Tally(),
        words=words,
        tokens=np.array(
            [words.index(word) for document in documents for word in document], np.int32
        ),
        lengths=np.array([len(document) for document in documents], np.int32),
        characters=np.array([len(text) for text, *_ in reviews], np.int32),
        labels=np.array([label for *_, label in reviews], np.bool_),
        stars=np.full(len(reviews), np.nan, np.float32),
        splits=np.array([split for _, split, _ in reviews], np.int8),
        test_texts=[text for text, split, _ in reviews if split is Split.TEST],
    )


def torchtexts_way(
    reviews: list[tuple[str, Split, bool]], order: int, least: int, most: int
) -> tuple[Vocab, list[list[int]]]:
    documents = [list(ngrams_iterator(tokenize(text), order)) for text, *_ in reviews]
    counter: Counter[str] = Counter()
    for document, (_, split, _) in zip(documents, reviews, strict=True):
        if split is Split.TRAIN:
            counter.update(document)
    vocabulary = Vocab(counter, max_size=most, min_freq=least, specials=["<unk>"])
    index = dict(vocabulary.stoi)
    return vocabulary, [[index.get(term, 0) for term in document] for document in documents]


def bags_of(batch: Batch) -> list[tuple[list[int], float]]:
    """Return the bags of a batch, cut where its lengths say."""
    terms = iter(batch.indices.tolist())
    return [
        (list(islice(terms, length)), label)
        for length, label in zip(batch.lengths.tolist(), batch.labels.tolist(), strict=True)
    ]


class TestVectorize:
    @given(REVIEWS, ORDERS, st.integers(1, 3), st.integers(1, 8) | st.just(10**6))
    def test_it_is_torchtexts_way(
        self, reviews: list[tuple[str, Split, bool]], order: int, least: int, most: int
    ) -> None:
        vocabulary, bags = vectorize(
            corpus_of(reviews), order=order, min_frequency=least, max_size=most
        )
        theirs, documents = torchtexts_way(reviews, order, least, most)
        assert vocabulary.itos == theirs.itos
        assert vocabulary.stoi == theirs.stoi
        flat = bags.indices.tolist()
        assert [
            flat[start : start + length]
            for start, length in zip(bags.starts.tolist(), bags.lengths.tolist(), strict=True)
        ] == documents
        assert bags.labels.tolist() == [float(label) for *_, label in reviews]

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_on_the_sample_too(self, order: int) -> None:
        corpus = read(SAMPLE)
        texts = [review.text for review in read_reviews(SAMPLE).reviews]
        splits = [Split(number) for number in corpus.splits]
        reviews = list(zip(texts, splits, corpus.labels.tolist(), strict=True))
        vocabulary, bags = vectorize(corpus, order=order, min_frequency=2, max_size=5000)
        theirs, documents = torchtexts_way(reviews, order, 2, 5000)
        assert vocabulary.itos == theirs.itos
        assert bags.indices.tolist() == [row for document in documents for row in document]


class TestCorpus:
    def test_it_holds_what_the_file_says(self) -> None:
        corpus = read(SAMPLE)
        reviews = read_reviews(SAMPLE).reviews
        words = [corpus.words[number] for number in corpus.tokens]
        assert words == [word for review in reviews for word in tokenize(review.text)]
        assert corpus.lengths.tolist() == [len(tokenize(review.text)) for review in reviews]
        assert corpus.characters.tolist() == [len(review.text) for review in reviews]
        assert corpus.labels.tolist() == [review.is_positive for review in reviews]
        assert corpus.stars.tolist() == [review.stars for review in reviews]
        assert corpus.test_texts == [reviews[row].text for row in corpus.rows(Split.TEST)]
        assert sum(len(corpus.rows(split)) for split in Split) == len(reviews)
        assert corpus.tally.digest == read_reviews(SAMPLE).digest

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
    @given(order=st.permutations(range(60)))
    def test_a_text_keeps_its_split_in_any_order(self, tmp_path: Path, order: list[int]) -> None:
        path = tmp_path / "reviews.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["stars", "text"])
            writer.writerows((1 + 4 * (number % 2), f"review {number}") for number in order)
        corpus = read_corpus(path, validation_share=0.3, test_share=0.3)
        test = [
            f"review {number}"
            for number in order
            if split_of(position_of(f"review {number}"), validation_share=0.3, test_share=0.3)
            is Split.TEST
        ]
        assert corpus.test_texts == test

    def test_too_little_to_split(self, tmp_path: Path) -> None:
        path = tmp_path / "reviews.csv"
        path.write_text("stars,text\n5,good\n1,bad\n")
        with pytest.raises(DataError, match=r"the \w+ split has \d negative and \d positive"):
            read(path)


class TestBatches:
    @given(DOCUMENTS, st.integers(1, 8))
    def test_in_order_they_are_what_a_loop_would_make(
        self, documents: list[tuple[list[int], bool]], size: int
    ) -> None:
        batches = list(self.batches(documents, size))
        assert len(batches) == len(self.batches(documents, size))
        naive = [documents[at : at + size] for at in range(0, len(documents), size)]
        assert [bags_of(batch) for batch in batches] == naive
        for batch in batches:
            assert batch.indices.dtype == batch.lengths.dtype == torch.int64
            assert batch.labels.dtype == torch.float32

    @given(DOCUMENTS, st.integers(1, 8), st.integers(0, 2**31))
    def test_shuffled_they_hold_every_bag_once(
        self, documents: list[tuple[list[int], bool]], size: int, seed: int
    ) -> None:
        batches = [bag for batch in self.batches(documents, size, seed) for bag in bags_of(batch)]
        assert sorted(batches) == sorted(documents)
        again = [bag for batch in self.batches(documents, size, seed) for bag in bags_of(batch)]
        assert batches == again

    def test_every_seed_has_its_own_order(self) -> None:
        documents = [([number % 10], True) for number in range(100)]
        first, second = (
            [bag for batch in self.batches(documents, 10, seed) for bag in bags_of(batch)]
            for seed in (0, 1)
        )
        assert first != second

    @given(DOCUMENTS, st.integers(0, 2**31))
    def test_only_the_chosen_rows_are_taken(
        self, documents: list[tuple[list[int], bool]], seed: int
    ) -> None:
        rows = np.arange(0, len(documents), 2)
        batches = BagBatches(self.bags(documents), rows, 4, seed=seed)
        taken = [bag for batch in batches for bag in bags_of(batch)]
        assert sorted(taken) == sorted(documents[::2])

    def bags(self, documents: list[tuple[list[int], bool]]) -> Bags:
        lengths = torch.tensor([len(rows) for rows, _ in documents])
        return Bags(
            torch.tensor([row for rows, _ in documents for row in rows], dtype=torch.int32),
            torch.cumsum(lengths, 0) - lengths,
            lengths,
            torch.tensor([float(label) for _, label in documents]),
        )

    def batches(
        self, documents: list[tuple[list[int], bool]], size: int, seed: int | None = None
    ) -> BagBatches:
        return BagBatches(self.bags(documents), np.arange(len(documents)), size, seed=seed)


class TestModel:
    @given(DOCUMENTS, st.integers(0, 100))
    def test_projecting_first_changes_nothing(
        self, documents: list[tuple[list[int], bool]], seed: int
    ) -> None:
        """Training takes the mean over numbers, the exported module over vectors."""
        torch.manual_seed(seed)
        model = BagLinear(10, 3).double()
        [batch] = TestBatches().batches(documents, len(documents))
        offsets = torch.cumsum(batch.lengths, 0) - batch.lengths
        trained, exported = (
            self.gradients(model, scores, batch.labels)
            for scores in (
                torch.sigmoid(model.logits(batch.indices, batch.lengths)),
                model(batch.indices, offsets),
            )
        )
        for one, other in zip(trained, exported, strict=True):
            torch.testing.assert_close(one, other)

    def gradients(self, model: BagLinear, scores: Tensor, labels: Tensor) -> list[Tensor]:
        loss = torch.nn.functional.binary_cross_entropy(scores, labels.double())
        return [scores, *torch.autograd.grad(loss, list(model.parameters()))]

    def test_rescaling_acts_on_the_logit(self) -> None:
        torch.manual_seed(0)
        model = BagLinear(10, 3).double()
        indices, lengths = torch.tensor([1, 2, 3, 4]), torch.tensor([3, 0, 1])
        before = model.logits(indices, lengths)
        model.rescale(0.5, 0.25)
        torch.testing.assert_close(model.logits(indices, lengths), 0.5 * before + 0.25)
