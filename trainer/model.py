"""The model: a mean over embedded n-grams, a linear layer, a sigmoid."""

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC

from trainer.features import Batch


class BagLinear(nn.Module):
    """EmbeddingBag (mean) -> Linear -> sigmoid.

    Args:
        vocabulary_size: rows of the embedding; row 0 is the unknown n-gram.
        embedding_dim: columns of the embedding.
    """

    def __init__(self, vocabulary_size: int, embedding_dim: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocabulary_size, embedding_dim, mode="mean")
        self.linear = nn.Linear(embedding_dim, 1)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.linear.weight, -0.5, 0.5)
        nn.init.zeros_(self.linear.bias)

    def logits(self, indices: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits of bags; `forward` gives their sigmoid, up to rounding.

        Each n-gram's vector is projected first and the mean is taken over numbers:
        ``mean(w . E[t]) + b == w . mean(E[t]) + b``. Forward and backward together take
        about a ninth of EmbeddingBag's time on a CPU.

        Args:
            indices: int64[N], the n-grams of all bags, one bag after the other.
            lengths: int64[B], n-grams in each bag; 0 is allowed.

        Returns:
            float32[B].
        """
        scores = (self.embedding.weight @ self.linear.weight.squeeze(0)).index_select(0, indices)
        # Unsafe: lengths that don't add up to N would go unnoticed.
        means = torch.segment_reduce(scores, "mean", lengths=lengths, initial=0.0, unsafe=True)
        return means + self.linear.bias

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """Return the probability of the positive label for each bag.

        Args:
            indices: int64[N], the n-grams of all bags, one bag after the other.
            offsets: int64[B], where each bag starts; an empty bag is allowed.

        Returns:
            float32[B], each 0 to 1.
        """
        return torch.sigmoid(self.linear(self.embedding(indices, offsets)).squeeze(1))

    @torch.no_grad()
    def rescale(self, scale: float, shift: float) -> None:
        """Turn each logit ``z`` into ``scale * z + shift``, exactly: the model is linear.

        Args:
            scale: above 0, so that the order of the texts stays.
            shift: added to the logit.
        """
        self.linear.weight.mul_(scale)
        self.linear.bias.mul_(scale).add_(shift)

    @torch.no_grad()
    def ngram_scores(self) -> Tensor:
        """Return float64[V]: ``w . E[t]``, what each n-gram is worth in the logit's mean."""
        return self.embedding.weight.double() @ self.linear.weight.double().squeeze(0)


class BagLinearTask(L.LightningModule):
    """Training of `BagLinear` on `Batch` with binary cross-entropy.

    Args:
        model: the model, trained in place.
        learning_rate: of Adam, at the start; it falls to zero over the training.
    """

    def __init__(self, model: BagLinear, learning_rate: float) -> None:
        super().__init__()
        self.model = model
        self._learning_rate = learning_rate
        self._loss = nn.BCEWithLogitsLoss()
        self._auroc = BinaryAUROC()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam, whose rate falls in a straight line, step by step."""
        # Dense and fused: faster here than SparseAdam, which sorts each batch's indices.
        optimizer = torch.optim.Adam(self.parameters(), lr=self._learning_rate, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: Batch, _batch_index: int) -> Tensor:
        """Return the loss on `batch`."""
        loss: Tensor = self._loss(self.model.logits(batch.indices, batch.lengths), batch.labels)
        self.log("train_loss", loss, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: Batch, _batch_index: int) -> None:
        """Log loss, accuracy and AUROC on the validation split."""
        logits = self.model.logits(batch.indices, batch.lengths)
        size = len(batch.labels)
        accuracy = ((logits >= 0) == batch.labels.bool()).float().mean()
        self._auroc.update(logits, batch.labels.int())
        self.log("validation_loss", self._loss(logits, batch.labels), batch_size=size)
        self.log("validation_accuracy", accuracy, batch_size=size)
        self.log("validation_auroc", self._auroc, batch_size=size)
