"""The fit: what it comes to, and how one that was cut off goes on."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from trainer.checkpoints import Checkpoints
from trainer.corpus import Corpus, read_corpus
from trainer.fitting import FitError, Fitted, fit
from trainer.model import BagLinearTask
from trainer.parameters import Parameters
from trainer.reviews import SAMPLE

SMALL = replace(Parameters(), embedding_dim=2, ngrams=1)
# The validation loss rises from the second epoch on.
HASTY = replace(SMALL, learning_rate=2.0, epochs=6, patience=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Some of the sample."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    with SAMPLE.open(encoding="utf-8") as sample:
        path.write_text("".join(islice(sample, 401)), "utf-8")
    return read_corpus(path, validation_share=0.1, test_share=0.1)


def is_same(one: Fitted, other: Fitted) -> bool:
    weights = one.model.state_dict(), other.model.state_dict()
    return one.auroc == other.auroc and all(
        torch.equal(weights[0][name], weights[1][name]) for name in weights[0]
    )


@pytest.mark.parametrize(
    ("parameters", "progress"),
    [(SMALL, True), (HASTY, False)],
    ids=["all epochs, with a bar", "stopped early"],
)
def test_a_fit_that_was_over_when_it_was_cut_off_is_not_trained_further(
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parameters: Parameters,
    *,
    progress: bool,
) -> None:
    """Killed in the evaluation, it came back to a progress bar that was never made; one that
    had stopped early trained one more epoch, and could end with another model.
    """
    kept = Checkpoints(tmp_path, {})
    kept.begin("run")
    first = fit(corpus, parameters, checkpoints=kept, progress=progress)
    state = kept.load()
    trained: list[int] = []
    monkeypatch.setattr(BagLinearTask, "on_train_batch_end", lambda *_: trained.append(1))
    again = fit(corpus, parameters, checkpoints=kept, progress=progress)
    assert not trained
    assert is_same(first, again)
    assert kept.load() == state


def test_patience_counts_the_epochs_before_it_was_cut_off(corpus: Corpus, tmp_path: Path) -> None:
    """The state was kept before its last epoch counted: one more was trained."""
    parameters = replace(HASTY, patience=2)
    whole: list[int] = []
    expected = fit(corpus, parameters, report=lambda epoch, _: whole.append(epoch))
    assert 2 < whole[-1] < parameters.epochs
    kept = Checkpoints(tmp_path, {})
    kept.begin("run")

    class Killed(Exception):
        pass

    def kill(epoch: int, _: float) -> None:
        if epoch == whole[-1]:
            raise Killed

    with pytest.raises(Killed):
        fit(corpus, parameters, checkpoints=kept, report=kill)
    rest: list[int] = []
    again = fit(corpus, parameters, checkpoints=kept, report=lambda epoch, _: rest.append(epoch))
    assert rest == whole[-1:]
    assert is_same(expected, again)


@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_a_loss_that_is_no_number_is_refused(corpus: Corpus, rate: float) -> None:
    """It came out as a model whose every weight was NaN."""
    with pytest.raises(FitError, match="give a --learning-rate far below"):
        fit(corpus, replace(SMALL, learning_rate=rate))


@pytest.mark.parametrize(
    "parameters",
    [
        replace(SMALL, min_frequency=10**6),
        replace(SMALL, embedding_dim=1, ngrams=8, max_vocabulary=10),
        replace(SMALL, batch_size=10**6),
    ],
    ids=["nothing known", "smallest", "one batch"],
)
def test_extreme_parameters_give_a_model(corpus: Corpus, parameters: Parameters) -> None:
    fitted = fit(corpus, replace(parameters, epochs=1))
    assert all(value.isfinite().all() for value in fitted.model.state_dict().values())
    assert 0 <= fitted.auroc <= 1
