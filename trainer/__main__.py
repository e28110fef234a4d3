"""Command line of the trainer: ``python -m trainer``."""

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from trainer import data_lock
from trainer.connection import Source, connected, quiet, tracking_uri_option
from trainer.data_lock import LockError, lock
from trainer.parameters import Parameters
from trainer.production import ParametersError, load_parameters
from trainer.reproduction import reproduce
from trainer.submission import submit

# An idle thread that spins takes the core from the one that works, where cores are few.
# OpenMP reads it when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@click.group(context_settings={"show_default": True, "max_content_width": 100})
def main() -> None:
    """Train the review classifier and register it with MLflow."""


main.add_command(lock)
main.add_command(reproduce)
main.add_command(submit)


@main.command()
@click.option(
    "--data",
    type=Source(),
    show_default="what trainer/data.lock pins",
    help="File or gs://BUCKET/OBJECT with reviews: CSV with the columns stars,text, JSON lines "
    'with these keys, or CSV without a header as fastText has it ("1" or "2","text"); plain or '
    "gzip.",
)
@click.option("--register", metavar="NAME", help="Register the model under NAME.")
@click.option("--experiment", default="yelp-reviews", help="MLflow experiment.")
@click.option("--run-name", help="Name of the MLflow run.")
@tracking_uri_option
@click.option(
    "--tune",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Search better parameters first, in N trials; those given here stay as they are.",
)
@click.option(
    "--checkpoints",
    envvar="AIP_CHECKPOINT_DIR",
    show_envvar=True,
    metavar="FOLDER or gs://",
    help="Keep the state after each epoch there: the same command, given again after it was cut "
    "off, goes on where it was.",
)
@click.option("--ngrams", type=click.IntRange(1, 8), help="Longest n-gram, in words.")
@click.option("--min-frequency", type=click.IntRange(1), help="Least occurrences of an n-gram.")
@click.option("--max-vocabulary", type=click.IntRange(1), help="Most n-grams.")
@click.option("--embedding-dim", type=click.IntRange(1), help="Size of an n-gram's vector.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Of Adam.")
@click.option("--epochs", type=click.IntRange(1), help="Most epochs.")
@click.option("--patience", type=click.IntRange(1), help="Epochs without progress before the end.")
@click.option("--batch-size", type=click.IntRange(0), help="Reviews in a batch; 0: by the data.")
@click.option("--validation-share", type=click.FloatRange(0, 0.5, min_open=True), help="0 to 0.5.")
@click.option("--test-share", type=click.FloatRange(0, 0.5, min_open=True), help="0 to 0.5.")
@click.option("--max-bad-share", type=click.FloatRange(0, 1), help="Accepted share of bad rows.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of everything that is random.")
@click.option(
    "--auroc-floor",
    type=click.FloatRange(0, 1),
    default=0.8,
    help="Least AUROC on the test split of a model that is valid.",
)
@click.option(
    "--behaviour-floor",
    type=click.FloatRange(0, 1),
    default=0.7,
    help="Least share of the behavioural tests that a valid model passes.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1),
    default=0.01,
    help="How far below the served version's AUROC that of a valid model may be; the fewer "
    "reviews in the test split, the wider it must be.",
)
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Show progress bars.  [default: on a terminal]",
)
def train(
    data: Path | str | None,
    register: str | None,
    experiment: str,
    run_name: str | None,
    tracking_uri: str,
    tune: int,
    checkpoints: str | None,
    auroc_floor: float,
    behaviour_floor: float,
    margin: float,
    progress: bool | None,
    **parameters: Any,
) -> None:
    """Train, evaluate, log the run, and register the model.

    Data and parameters that are not given are those in Git: what trainer/data.lock pins
    and trainer/params.yaml says. The last line on standard output is JSON with the run,
    the version in the registry and the metrics on the test split.
    """
    pinned = None
    if data is None:
        try:
            pinned = data_lock.load()
        except LockError as error:
            raise click.ClickException(str(error)) from error
        data = pinned.uri
    with connected(tracking_uri, experiment=experiment):
        from trainer import training
        from trainer.assessment import Bars
        from trainer.checkpoints import CheckpointError
        from trainer.fitting import FitError
        from trainer.search import SearchError
        from trainer.tracking import TrackingError

        # Lightning sets its own level when it is imported.
        quiet()
        try:
            outcome = training.train(
                data,
                Parameters(**parameters),
                generation=None if pinned is None else pinned.generation,
                pinned=pinned,
                experiment=experiment,
                run_name=run_name,
                register=register,
                tune=tune,
                fixed=[name for name in parameters if _is_given(name)],
                bars=Bars(auroc_floor, behaviour_floor, margin),
                checkpoints=checkpoints,
                progress=_is_watched() if progress is None else progress,
            )
        except (CheckpointError, FitError, LockError, SearchError, TrackingError) as error:
            raise click.ClickException(str(error)) from error
    for name, metric in outcome.metrics.items():
        interval = "" if metric.low is None else f"  [{metric.low:.4f}, {metric.high:.4f}]"
        click.echo(f"{name:18} {metric.value:.4f}{interval}")
    click.echo(f"validation {'passed' if outcome.validation.passed else 'FAILED'}:")
    for reason in outcome.validation.reasons:
        click.echo(f"  {reason}")
    click.echo(f"run {outcome.run_id} of experiment {experiment} at {tracking_uri}")
    if outcome.model_version is not None:
        click.echo(f"registered {register} version {outcome.model_version}")
    click.echo(
        json.dumps(
            {
                "run_id": outcome.run_id,
                "model": register,
                "model_version": outcome.model_version,
                "validation": "passed" if outcome.validation.passed else "failed",
                **{name: metric.value for name, metric in outcome.metrics.items()},
            }
        )
    )


@main.command()
@click.option(
    "--data", type=Source(), required=True, help="File or gs://BUCKET/OBJECT with reviews."
)
@click.option("--max-bad-share", type=click.FloatRange(0, 1), help="Accepted share of bad rows.")
def check(data: Path | str, max_bad_share: float) -> None:
    """Read reviews and say what is in them; nothing is trained.

    The last line on standard output is JSON with the digest and the counts.
    """
    from trainer.reviews import (
        DataError,
        Split,
        Tally,
        check_splits,
        split_of,
        stream_reviews,
    )

    tally = Tally()
    kinds: Counter[tuple[Split, bool]] = Counter()
    try:
        for review, position in stream_reviews(
            data, tally, max_bad_share=max_bad_share, progress=_is_watched()
        ):
            split = split_of(
                position,
                validation_share=Parameters.validation_share,
                test_share=Parameters.test_share,
            )
            kinds[split, review.is_positive] += 1
        check_splits(data, kinds)
    except DataError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{tally.rows:,} rows: {tally.usable:,} reviews, {tally.positive:,} positive")
    for reason, count in (*tally.skipped.most_common(), ("repeated", tally.duplicates)):
        if count:
            click.echo(f"left out: {count:,} {reason}")
    click.echo(
        json.dumps(
            {
                "digest": tally.digest,
                "rows": tally.rows,
                "reviews": tally.usable,
                "positive": tally.positive,
                "repeated": tally.duplicates,
                "skipped": dict(tally.skipped),
            }
        )
    )


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def _is_watched() -> bool:
    return sys.stderr.isatty()


def _set_defaults() -> None:
    """Make the parameters in Git the defaults, which --help shows and click checks."""
    try:
        defaults = asdict(load_parameters())
    except ParametersError as error:
        sys.exit(f"Error: {error}")
    for option in (*train.params, *check.params):
        if option.name in defaults:
            option.default = defaults[option.name]


_set_defaults()

if __name__ == "__main__":
    main(prog_name="python -m trainer")
