"""Fit the model to a corpus, with Lightning; a fit that was cut off goes on where it was."""

import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torchtext.vocab import Vocab
from tqdm import tqdm

from trainer.checkpoints import Checkpoints
from trainer.corpus import Corpus
from trainer.features import BagBatches, Bags, vectorize
from trainer.model import BagLinear, BagLinearTask
from trainer.parameters import Parameters
from trainer.reviews import Split

_SCORED_BAGS = 4096


class Fitted(NamedTuple):
    """A trained model and what it was trained on."""

    model: BagLinear
    """On the CPU, in evaluation mode, with the weights of its best epoch."""
    vocabulary: Vocab
    bags: Bags
    """All splits of the corpus."""
    auroc: float
    """On the validation split, of the best epoch."""

    @torch.no_grad()
    def logits(self, corpus: Corpus, split: Split) -> Tensor:
        """Return float32[N], the logits of the reviews in `split`, in order."""
        batches = BagBatches(self.bags, corpus.rows(split), _SCORED_BAGS)
        return torch.cat([self.model.logits(batch.indices, batch.lengths) for batch in batches])


class FitError(ValueError):
    """The parameters lead to no model; the message says why and what to do."""


class _Batches(L.LightningDataModule):
    """Batches of the training split, shuffled by seed and epoch, and of the validation split.

    The order of an epoch depends on nothing that came before it, so that a fit that is
    resumed sees the same batches.
    """

    def __init__(self, bags: Bags, corpus: Corpus, batch_size: int, seed: int) -> None:
        super().__init__()
        self._bags = bags
        self._corpus = corpus
        self._batch_size = batch_size
        self._seed = seed

    def train_dataloader(self) -> BagBatches:
        """Return the batches of the epoch that begins."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        rows = self._corpus.rows(Split.TRAIN)
        # Two seeds in one number; 2**20 epochs are more than anyone trains.
        seed = (self._seed << 20) + epoch
        return BagBatches(self._bags, rows, self._batch_size, seed=seed)

    def val_dataloader(self) -> BagBatches:
        """Return the validation split, in order."""
        return BagBatches(self._bags, self._corpus.rows(Split.VALIDATION), _SCORED_BAGS)


class _Best(L.Callback):
    """Keep the weights of the epoch with the least validation loss."""

    def __init__(self) -> None:
        self.loss = float("inf")
        self.auroc = 0.0
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        loss = float(trainer.callback_metrics["validation_loss"])
        if loss < self.loss or not self.weights:
            self.loss = loss
            self.auroc = float(trainer.callback_metrics["validation_auroc"])
            self.weights = {
                name: value.detach().cpu().clone() for name, value in task.state_dict().items()
            }

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "auroc": self.auroc, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss = state_dict["loss"]
        self.auroc = state_dict["auroc"]
        self.weights = state_dict["weights"]


class _Report(L.Callback):
    """Tell each epoch's figure on the validation split to whoever asked."""

    def __init__(self, report: Callable[[int, float], None]) -> None:
        self._report = report

    def on_validation_end(self, trainer: L.Trainer, _task: L.LightningModule) -> None:
        self._report(trainer.current_epoch + 1, float(trainer.callback_metrics["validation_auroc"]))


class _Save(L.Callback):
    """Put the state in a safe place after each epoch."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def on_train_epoch_end(self, trainer: L.Trainer, _task: L.LightningModule) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state.ckpt")
            trainer.save_checkpoint(path)
            self._checkpoints.save(path.read_bytes())


class _Stop(EarlyStopping):
    """Stop early; a fit that had stopped already when it was cut off trains no further."""

    def on_fit_start(self, trainer: L.Trainer, _task: L.LightningModule) -> None:
        # Lightning restores the count, but not that it had stopped for it.
        trainer.should_stop = self.wait_count >= self.patience


class _Progress(L.Callback):
    """One bar over all steps, with the validation's figures beside it."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None

    def on_train_start(self, trainer: L.Trainer, _task: L.LightningModule) -> None:
        self._bar = tqdm(
            total=int(trainer.estimated_stepping_batches),
            initial=trainer.global_step,
            desc="training",
            unit=" steps",
        )

    def on_train_batch_end(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_validation_end(self, trainer: L.Trainer, _task: L.LightningModule) -> None:
        metrics = {name: f"{value:.4f}" for name, value in trainer.callback_metrics.items()}
        if self._bar is not None:
            self._bar.set_postfix(epoch=trainer.current_epoch + 1, **metrics)

    def on_fit_end(self, *_: object) -> None:
        # A fit that was over when it was cut off has no steps left, and no bar.
        if self._bar is not None:
            self._bar.close()


def batch_size(parameters: Parameters, reviews: int) -> int:
    """Return the reviews in a batch, for `reviews` in the training split."""
    return parameters.batch_size or min(512, max(16, reviews // 50))


def fit(
    corpus: Corpus,
    parameters: Parameters,
    *,
    logger: Logger | None = None,
    checkpoints: Checkpoints | None = None,
    report: Callable[[int, float], None] | None = None,
    progress: bool = False,
) -> Fitted:
    """Train on the training split; the validation split says when to stop and what was best.

    Args:
        corpus: the reviews.
        parameters: of the model and its training.
        logger: where the course of the training goes.
        checkpoints: where the state goes after each epoch, and where a fit that was
            cut off is taken up again; None: nowhere.
        report: called after each epoch with its number, from 1, and the AUROC on the
            validation split; what it raises ends the fit.
        progress: show a bar.

    Raises:
        FitError: the loss is no number.
        trainer.checkpoints.CheckpointError: the state can't be read or written.
    """
    L.seed_everything(parameters.seed, verbose=False)
    vocabulary, bags = vectorize(
        corpus,
        order=parameters.ngrams,
        min_frequency=parameters.min_frequency,
        max_size=parameters.max_vocabulary,
    )
    model = BagLinear(len(vocabulary.itos), parameters.embedding_dim)
    task = BagLinearTask(model, parameters.learning_rate)
    best = _Best()
    callbacks: list[L.Callback] = [
        best,
        # At the epoch's end it would count after `_Save`, and the kept state lack the last epoch.
        _Stop("validation_loss", patience=parameters.patience, check_on_train_epoch_end=False),
    ]
    if checkpoints is not None:
        callbacks.append(_Save(checkpoints))
    if report is not None:
        callbacks.append(_Report(report))
    if progress:
        callbacks.append(_Progress())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The batches are made in memory; loader processes would only copy them.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        state = None if checkpoints is None else checkpoints.load()
        path = Path(folder, "state.ckpt")
        if state is not None:
            path.write_bytes(state)
        L.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=parameters.epochs,
            callbacks=callbacks,
            logger=logger or False,
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        ).fit(
            task,
            datamodule=_Batches(
                bags,
                corpus,
                batch_size(parameters, len(corpus.rows(Split.TRAIN))),
                parameters.seed,
            ),
            ckpt_path=None if state is None else path,
            weights_only=True,
        )
    if not math.isfinite(best.loss):
        raise FitError(
            f"the loss on the validation split is {best.loss} from the first epoch on: "
            f"give a --learning-rate far below {parameters.learning_rate:g}"
        )
    task.load_state_dict(best.weights)
    return Fitted(model.cpu().eval(), vocabulary, bags, best.auroc)
