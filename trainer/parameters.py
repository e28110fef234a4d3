"""The parameters of a training run, apart from what is slow to import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameters:
    """What a training run depends on, besides code and data."""

    ngrams: int = 2
    """Longest n-gram."""
    min_frequency: int = 2
    """Least occurrences of an n-gram in the vocabulary."""
    max_vocabulary: int = 200_000
    """Most n-grams in the vocabulary."""
    embedding_dim: int = 10
    learning_rate: float = 0.05
    epochs: int = 3
    """Most epochs; the learning rate falls to zero over them."""
    patience: int = 2
    """Epochs without a better validation loss before training stops."""
    batch_size: int = 0
    """Reviews in a batch; 0: a fiftieth of the training split, within 16 to 512."""
    validation_share: float = 0.1
    test_share: float = 0.1
    max_bad_share: float = 0.05
    """Largest share of unusable rows that is accepted."""
    seed: int = 0
