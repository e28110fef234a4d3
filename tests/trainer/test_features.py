"""Vocabulary and batches, against torchtext's own way and a naive one."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchtext.data.utils import get_tokenizer, ngrams_iterator
from torchtext.vocab import build_vocab_from_iterator

from trainer.features import BagBatches, Batch, build_vocabulary, extract, to_bags

TEXTS = st.lists(st.text(alphabet="ab .,!'\"😀", max_size=12), max_size=20)
ORDERS = st.integers(1, 3)
# Rows of the embedding and the label; a split always has some.
DOCUMENTS = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=5), st.booleans()), min_size=1, max_size=30
)


def bags_of(batch: Batch) -> list[tuple[list[int], float]]:
    """Return the bags of a batch, cut where its offsets say."""
    ends = [*batch.offsets.tolist()[1:], len(batch.indices)]
    return [
        (batch.indices[start:end].tolist(), label)
        for start, end, label in zip(
            batch.offsets.tolist(), ends, batch.labels.tolist(), strict=True
        )
    ]


class TestVocabulary:
    @given(TEXTS, ORDERS)
    def test_it_is_torchtexts_own(self, texts: list[str], order: int) -> None:
        tokenize = get_tokenizer("basic_english")
        theirs = build_vocab_from_iterator(
            list(ngrams_iterator(tokenize(text), order)) for text in texts
        )
        ours = build_vocabulary(
            (extract(text, order) for text in texts), min_frequency=1, max_size=10**6
        )
        # Theirs reserves a row for padding, which EmbeddingBag does not need.
        assert ours.itos == [term for term in theirs.itos if term != "<pad>"]
        assert ours.stoi == {term: index for index, term in enumerate(ours.itos)}

    @given(TEXTS, st.integers(1, 3), st.integers(1, 5))
    def test_the_most_frequent_stay(self, texts: list[str], least: int, most: int) -> None:
        documents = [extract(text, 2) for text in texts]
        counts = Counter(term for document in documents for term in document)
        vocabulary = build_vocabulary(documents, min_frequency=least, max_size=most)
        unknown, *kept = vocabulary.itos
        assert unknown == "<unk>"
        assert len(kept) == min(most, sum(count >= least for count in counts.values()))
        left_out = [count for term, count in counts.items() if term not in kept]
        assert all(counts[term] >= least for term in kept)
        assert not kept or max(left_out, default=0) <= max(least - 1, counts[kept[-1]])

    def test_unknown_terms_are_row_0_and_do_not_grow_it(self) -> None:
        vocabulary = build_vocabulary([["good", "bad"]], min_frequency=1, max_size=10)
        bags = to_bags([["good", "new", "bad"], [], ["new"]], [True, False, True], vocabulary)
        good, bad = vocabulary.stoi["good"], vocabulary.stoi["bad"]
        assert bags.indices.tolist() == [good, 0, bad, 0]
        assert bags.lengths.tolist() == [3, 0, 1]
        assert bags.labels.tolist() == [1.0, 0.0, 1.0]
        assert "new" not in vocabulary.stoi


class TestBatches:
    @given(
        DOCUMENTS,
        st.integers(1, 8),
    )
    def test_in_order_they_are_what_a_loop_would_make(
        self, documents: list[tuple[list[int], bool]], size: int
    ) -> None:
        batches = list(self.batches(documents, size))
        assert len(batches) == len(self.batches(documents, size))
        naive = [documents[at : at + size] for at in range(0, len(documents), size)]
        assert [bags_of(batch) for batch in batches] == naive
        for batch in batches:
            assert batch.indices.dtype == batch.offsets.dtype == torch.int64
            assert batch.labels.dtype == torch.float32

    @given(
        DOCUMENTS,
        st.integers(1, 8),
        st.integers(0, 2**31),
    )
    def test_shuffled_they_hold_every_bag_once_an_epoch(
        self, documents: list[tuple[list[int], bool]], size: int, seed: int
    ) -> None:
        batches = self.batches(documents, size, seed)
        again = self.batches(documents, size, seed)
        for _ in range(3):
            epoch = [bag for batch in batches for bag in bags_of(batch)]
            assert sorted(epoch) == sorted(documents)
            assert epoch == [bag for batch in again for bag in bags_of(batch)]

    def test_every_epoch_has_its_own_order(self) -> None:
        batches = self.batches([([number], True) for number in range(100)], 10, 0)
        first, second = ([bag for batch in batches for bag in bags_of(batch)] for _ in range(2))
        assert first != second

    def batches(
        self, documents: list[tuple[list[int], bool]], size: int, seed: int | None = None
    ) -> BagBatches:
        terms = [str(number) for number in range(10)]
        # The vocabulary gives row n + 1 to the term n, so that documents are rows as they are.
        vocabulary = build_vocabulary([terms], min_frequency=1, max_size=10)
        assert vocabulary.itos == ["<unk>", *terms]
        bags = to_bags(
            [["?" if row == 0 else str(row - 1) for row in rows] for rows, _ in documents],
            [label for _, label in documents],
            vocabulary,
        )
        return BagBatches(bags, size, shuffle_seed=seed)
