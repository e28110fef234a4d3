"""The model: a mean over embedded n-grams, a linear layer, a sigmoid."""

import lightning as L
import torch
from torch import Tensor, nn

from trainer.features import Batch


class BagLinear(nn.Module):
    """EmbeddingBag (mean) -> Linear -> sigmoid.

    Args:
        vocabulary_size: rows of the embedding; row 0 is the unknown n-gram.
        embedding_dim: columns of the embedding.
    """

    def __init__(self, vocabulary_size: int, embedding_dim: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocabulary_size, embedding_dim, mode="mean", sparse=True)
        self.linear = nn.Linear(embedding_dim, 1)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.linear.weight, -0.5, 0.5)
        nn.init.zeros_(self.linear.bias)

    def logits(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """Return float32[B], the logits of the bags; see `forward`."""
        result: Tensor = self.linear(self.embedding(indices, offsets)).squeeze(1)
        return result

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """Return the probability of the positive label for each bag.

        Args:
            indices: int64[N], the n-grams of all bags, one bag after the other.
            offsets: int64[B], where each bag starts; an empty bag is allowed.

        Returns:
            float32[B], each 0 to 1.
        """
        return torch.sigmoid(self.logits(indices, offsets))

    @torch.no_grad()
    def ngram_scores(self) -> Tensor:
        """Return float64[V]: ``w . E[t]``, what each n-gram is worth in the logit's mean."""
        return self.embedding.weight.double() @ self.linear.weight.double().squeeze(0)


class BagLinearTask(L.LightningModule):
    """Training of `BagLinear` on `Batch` with binary cross-entropy.

    Args:
        model: the model, trained in place.
        learning_rate: of Adam, at the start; it falls to zero over the training.
        total_steps: optimiser steps that the schedule spans.
    """

    def __init__(self, model: BagLinear, learning_rate: float, total_steps: int) -> None:
        super().__init__()
        self.model = model
        self._learning_rate = learning_rate
        self._total_steps = total_steps
        self._loss = nn.BCEWithLogitsLoss()
        # Sparse and dense parameters need an optimiser each.
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return SparseAdam for the embedding and Adam for the linear layer."""
        return [
            torch.optim.SparseAdam(self.model.embedding.parameters(), lr=self._learning_rate),
            torch.optim.Adam(self.model.linear.parameters(), lr=self._learning_rate),
        ]

    def training_step(self, batch: Batch, _batch_index: int) -> Tensor:
        """Take one step of both optimisers on `batch`."""
        share_left = max(0.0, 1 - self.global_step / 2 / self._total_steps)
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)  # noqa: S101  # two are configured above
        loss: Tensor = self._loss(self.model.logits(batch.indices, batch.offsets), batch.labels)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = self._learning_rate * share_left
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: Batch, _batch_index: int) -> None:
        """Log the loss and the accuracy on the validation split."""
        logits = self.model.logits(batch.indices, batch.offsets)
        size = len(batch.labels)
        accuracy = ((logits >= 0) == batch.labels.bool()).float().mean()
        self.log("validation_loss", self._loss(logits, batch.labels), True, batch_size=size)
        self.log("validation_accuracy", accuracy, True, batch_size=size)
