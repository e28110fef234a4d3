"""Measure the trainer beside torchtext and fastText: ``make bench-trainer``."""

import argparse
import csv
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# As the command line of the trainer has it; OpenMP reads it when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import fasttext
import mlflow
import numpy as np
import psutil
import torch
from sklearn.metrics import roc_auc_score
from torchtext.data.utils import get_tokenizer

from benchmarks.trainer import torchtext_way
from functions.predict.tokenizer import tokenize
from trainer.connection import quiet
from trainer.corpus import Corpus, read_corpus
from trainer.features import vectorize
from trainer.fitting import fit
from trainer.parameters import Parameters
from trainer.reviews import SAMPLE, Split, read_reviews

PARAMETERS = Parameters()
FASTTEXT = {"dim": 10, "wordNgrams": 2, "epoch": 5, "lr": 0.5, "thread": 2, "verbose": 0}
# The mean length of the Yelp polarity data is about 130 words.
WORDS = 130
SAMPLE_INTERVAL_SECONDS = 0.05


class Size(NamedTuple):
    """How much is measured."""

    reviews: int = 30_000
    """Made up, where DATA names no file."""
    large_reviews: int = 560_000
    rounds: int = 5


class Timed(NamedTuple):
    """What a call took and gave."""

    seconds: float
    outcome: Any


QUICK = Size(reviews=1_500, large_reviews=3_000, rounds=1)


def make_reviews(path: Path, count: int, seed: int) -> None:
    """Write `count` reviews: the words of some of the sample's of one rating, shuffled."""
    chance = random.Random(seed)  # noqa: S311
    by_stars: dict[float, list[list[str]]] = {}
    for review in read_reviews(SAMPLE).reviews:
        by_stars.setdefault(review.stars or 0.0, []).append(review.text.split())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["stars", "text"])
        for _ in range(count):
            stars = chance.choice(list(by_stars))
            length = max(5, int(chance.gammavariate(1.6, WORDS / 1.6)))
            words: list[str] = []
            while len(words) < length:
                words += chance.choice(by_stars[stars])
            chance.shuffle(words)
            writer.writerow([stars, " ".join(words[:length])])


def measure_preparation(path: Path, rounds: int) -> float:
    """Return how many times as many reviews a second ours prepares; see `torchtext_way`."""

    settings = {
        "order": PARAMETERS.ngrams,
        "min_frequency": PARAMETERS.min_frequency,
        "max_size": PARAMETERS.max_vocabulary,
    }

    def prepare() -> Corpus:
        corpus = _read(path)
        vectorize(corpus, **settings)
        return corpus

    ours, theirs = _side_by_side(
        lambda: _timed(prepare),
        lambda: _timed(lambda: torchtext_way.prepare(path, **settings)),
        rounds,
    )
    corpus: Corpus = ours.outcome
    _check_tokens(path, corpus)
    rows = corpus.tally.rows
    _table(
        ("file to tensors", "seconds", "reviews a second"),
        [
            (name, f"{timed.seconds:.2f}", f"{rows / timed.seconds:,.0f}")
            for name, timed in (("greenroom", ours), ("torchtext", theirs))
        ],
    )
    print("the tokens are identical\n", flush=True)
    return theirs.seconds / ours.seconds


def measure_fit(path: Path, rounds: int, folder: Path) -> tuple[float, float]:
    """Return fastText's time as a divisor of ours, and our AUROC less theirs.

    Both start from tokens, build their dictionary and train; both are judged on the same
    test split. fastText gets the training split as tokens in a file, as it wants them.
    """
    corpus = _read(path)
    texts, labels = _test_split(corpus)
    training = folder / "fasttext.txt"
    _write_for_fasttext(corpus, training)

    def auroc(scores: Sequence[float]) -> float:
        return float(roc_auc_score(labels, scores))

    def ours() -> Timed:
        seconds, fitted = _timed(lambda: fit(corpus, PARAMETERS))
        return Timed(seconds, auroc(fitted.logits(corpus, Split.TEST).tolist()))

    def theirs() -> Timed:
        seconds, model = _timed(lambda: fasttext.train_supervised(str(training), **FASTTEXT))
        # The package's own predict fails with numpy 2; its core does not.
        answers = [
            {label: score for score, label in model.f.predict(f"{text}\n", 2, 0.0, "strict")}
            for text in texts
        ]
        return Timed(seconds, auroc([answer.get("__label__1", 0.0) for answer in answers]))

    our, their = _side_by_side(ours, theirs, rounds)
    _table(
        ("tokens to model", "seconds", "AUROC"),
        [
            (name, f"{timed.seconds:.2f}", f"{timed.outcome:.4f}")
            for name, timed in (("greenroom", our), ("fastText", their))
        ],
    )
    return our.seconds / their.seconds, our.outcome - their.outcome


def measure_large(count: int, folder: Path) -> float:
    """Return the peak memory in GB of training on `count` reviews, file to registered model."""
    path = folder / "large.csv"
    make_reviews(path, count, seed=1)
    tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
    command = [
        *(sys.executable, "-m", "trainer", "train", f"--data={path}", "--no-progress"),
        *(f"--tracking-uri={tracking_uri}", "--register=large", "--experiment=large"),
    ]
    start = time.monotonic()
    with psutil.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=folder, env=_environment()
    ) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, _tree_bytes(process))
            time.sleep(SAMPLE_INTERVAL_SECONDS)
        seconds = time.monotonic() - start
        answer = json.loads(process.stdout.read().splitlines()[-1])
    metrics = mlflow.MlflowClient(tracking_uri).get_run(answer["run_id"]).data.metrics
    parts = {
        name.removeprefix("seconds_"): value
        for name, value in metrics.items()
        if name.startswith("seconds_")
    }
    rest = seconds - sum(parts.values())
    _table(
        (f"{count:,} reviews, {path.stat().st_size / 1e6:,.0f} MB", "seconds", "share"),
        [
            (name, f"{value:.1f}", f"{value / seconds:.0%}")
            for name, value in [*parts.items(), ("start and end", rest), ("all", seconds)]
        ],
    )
    print(f"peak memory of the process tree: {peak / 1e9:.2f} GB")
    return peak / 1e9


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": str(root)}


def _tree_bytes(process: psutil.Process) -> int:
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            total += member.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # it has just ended
    return total


def _read(path: Path) -> Corpus:
    return read_corpus(
        path,
        validation_share=PARAMETERS.validation_share,
        test_share=PARAMETERS.test_share,
        max_bad_share=1,
    )


def _test_split(corpus: Corpus) -> tuple[list[str], "np.ndarray[tuple[int], np.dtype[np.bool_]]"]:
    texts = [" ".join(tokenize(text)) for text in corpus.test_texts]
    return texts, corpus.labels[corpus.rows(Split.TEST)]


def _write_for_fasttext(corpus: Corpus, path: Path) -> None:
    ends = np.cumsum(corpus.lengths, dtype=np.int64)
    with path.open("w", encoding="utf-8") as file:
        for row in corpus.rows(Split.TRAIN).tolist():
            tokens = corpus.tokens[ends[row] - corpus.lengths[row] : ends[row]]
            words = " ".join(corpus.words[number] for number in tokens.tolist())
            file.write(f"__label__{int(corpus.labels[row])} {words}\n")


def _check_tokens(path: Path, corpus: Corpus) -> None:
    """Hold our tokens against torchtext's, review by review."""
    theirs = get_tokenizer("basic_english")
    at = 0
    for review, length in zip(
        read_reviews(path, max_bad_share=1).reviews, corpus.lengths.tolist(), strict=True
    ):
        ours = [corpus.words[number] for number in corpus.tokens[at : at + length].tolist()]
        if ours != theirs(review.text):
            raise SystemExit("the tokens differ from torchtext's")
        at += length


def _side_by_side(
    ours: Callable[[], Timed], theirs: Callable[[], Timed], rounds: int
) -> tuple[Timed, Timed]:
    """Run both in turns; return the last outcomes with the median seconds of each."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    first, second = (
        side[-1]._replace(seconds=statistics.median(timed.seconds for timed in side))
        for side in zip(*pairs, strict=True)
    )
    return first, second


def _timed(call: Callable[[], Any]) -> Timed:
    start = time.perf_counter()
    outcome = call()
    return Timed(time.perf_counter() - start, outcome)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        first, *others = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        print(first, *(other.strip().rjust(len(other)) for other in others), sep="  ")
    print()


def main() -> None:
    """Run all measurements; the last line on standard output is JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer", description=__doc__)
    parser.add_argument(
        "--data",
        default=os.environ.get("DATA", ""),
        help="CSV with the columns stars,text, plain or gzip (DATA); "
        "default: words of the sample, shuffled",
    )
    parser.add_argument("--quick", action="store_true", help="Very little of everything.")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else Size()
    quiet()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = Path(arguments.data) if arguments.data else folder / "reviews.csv"
        if not arguments.data:
            make_reviews(path, size.reviews, seed=0)
        print(f"{path.name}: {read_reviews(path, max_bad_share=1).rows:,} rows\n", flush=True)
        preparation = measure_preparation(path, size.rounds)
        fit_ratio, auroc = measure_fit(path, size.rounds, folder)
        peak = measure_large(size.large_reviews, folder)
    print(
        json.dumps(
            {
                "prep_vs_torchtext": round(preparation, 3),
                "fit_vs_fasttext": round(fit_ratio, 3),
                "auroc_minus_fasttext": round(auroc, 5),
                "peak_gb_560k": round(peak, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
