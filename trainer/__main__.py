"""Command line of the trainer: ``python -m trainer``."""

import contextlib
import json
import logging
import os
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from trainer.parameters import Parameters

SAMPLE = Path(__file__).parent / "sample_reviews.csv"


class Source(click.ParamType[Path | str]):
    """A file that exists, or an object in Cloud Storage."""

    name = "file or gs://"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Return the path, or the URI as it is."""
        if str(value).startswith("gs://"):
            return str(value)
        path = click.Path(path_type=Path, exists=True, dir_okay=False, readable=True)
        result: Path = path.convert(value, param, ctx)
        return result


@click.group(context_settings={"show_default": True, "max_content_width": 100})
def main() -> None:
    """Train the review classifier and register it with MLflow."""


@main.command()
@click.option(
    "--data",
    type=Source(),
    default=SAMPLE,
    show_default="the sample in trainer/",
    help="File or gs://BUCKET/OBJECT with reviews: CSV with the columns stars,text, JSON lines "
    'with these keys, or CSV without a header as fastText has it ("1" or "2","text"); plain or '
    "gzip.",
)
@click.option("--register", metavar="NAME", help="Register the model under NAME.")
@click.option("--experiment", default="yelp-reviews", help="MLflow experiment.")
@click.option("--run-name", help="Name of the MLflow run.")
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    required=True,
    help="MLflow server, such as http://127.0.0.1:5000.",
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
@click.option("--seed", type=click.IntRange(0), help="Of everything that is random.")
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Show progress bars.  [default: on a terminal]",
)
def train(
    data: Path | str,
    register: str | None,
    experiment: str,
    run_name: str | None,
    tracking_uri: str,
    progress: bool | None,
    **parameters: Any,
) -> None:
    """Train, evaluate, log the run, and register the model.

    The last line on standard output is JSON with the run, the version in the
    registry and the metrics on the test split.
    """
    # MLflow reads it when it is imported; the import of torch is slow, --help need not wait.
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    from trainer.reviews import DataError

    try:
        _quiet()
        _reach_mlflow()
        from trainer import training

        # Lightning sets its own level when it is imported.
        _quiet()
        outcome = training.train(
            data,
            Parameters(**parameters),
            experiment=experiment,
            run_name=run_name,
            register=register,
            progress=_is_watched() if progress is None else progress,
        )
    except DataError as error:
        raise click.ClickException(str(error)) from error
    except MlflowException as error:
        raise click.ClickException(f"MLflow at {tracking_uri}: {error}") from error
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        # Artifacts go straight to the bucket, past MLflow's server.
        store = _artifact_store(experiment)
        raise click.ClickException(f"the artifact store {store}: {_one_line(error)}") from error
    for name, metric in outcome.metrics.items():
        click.echo(f"{name:18} {metric.value:.4f}  [{metric.low:.4f}, {metric.high:.4f}]")
    click.echo(f"run {outcome.run_id} of experiment {experiment} at {tracking_uri}")
    if outcome.model_version is not None:
        click.echo(f"registered {register} version {outcome.model_version}")
    click.echo(
        json.dumps(
            {
                "run_id": outcome.run_id,
                "model": register,
                "model_version": outcome.model_version,
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
    from trainer.reviews import DataError, read_reviews, split

    try:
        reviews = read_reviews(data, max_bad_share=max_bad_share, progress=_is_watched())
        split(
            reviews.reviews,
            validation_share=Parameters.validation_share,
            test_share=Parameters.test_share,
        )
    except DataError as error:
        raise click.ClickException(str(error)) from error
    positive = sum(review.is_positive for review in reviews.reviews)
    click.echo(f"{reviews.rows:,} rows: {len(reviews.reviews):,} reviews, {positive:,} positive")
    for reason, count in (*reviews.skipped.most_common(), ("repeated", reviews.duplicates)):
        if count:
            click.echo(f"left out: {count:,} {reason}")
    click.echo(
        json.dumps(
            {
                "digest": reviews.digest,
                "rows": reviews.rows,
                "reviews": len(reviews.reviews),
                "positive": positive,
                "repeated": reviews.duplicates,
                "skipped": dict(reviews.skipped),
            }
        )
    )


def _is_watched() -> bool:
    return sys.stderr.isatty()


def _reach_mlflow() -> None:
    """Ask MLflow something, with little patience.

    For a server that does not answer, MLflow tries over four minutes. That is right
    in the middle of a training, not for a mistyped address at its start.
    """
    import mlflow

    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    chosen = os.environ.get(name)
    os.environ[name] = chosen or "2"
    try:
        mlflow.search_experiments(max_results=1)
    finally:
        if chosen is None:
            del os.environ[name]


def _artifact_store(experiment: str) -> str:
    """Return where the artifacts of an experiment go, as far as MLflow still says so."""
    import mlflow
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):
        if found := mlflow.get_experiment_by_name(experiment):
            return str(found.artifact_location)
    return f"of experiment {experiment}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _set_defaults() -> None:
    """Show the defaults of `Parameters` in --help without naming them twice."""
    defaults = {item.name: item.default for item in fields(Parameters)}
    for option in (*train.params, *check.params):
        if option.name in defaults:
            option.default = defaults[option.name]


def _quiet() -> None:
    """Keep what the libraries say of themselves away from the progress bars."""
    for name in ("lightning.pytorch", "pytorch_lightning", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(torch|lightning|mlflow).*")


_set_defaults()

if __name__ == "__main__":
    main(prog_name="python -m trainer")
