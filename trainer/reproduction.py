"""Make a model again, and see whether the same comes out."""

import json
import math
import re
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainer.connection import Source, connected, quiet, tracking_uri_option
from trainer.data_lock import DATA_LOCK, DataVersion, LockError, load
from trainer.lineage import DIFF, LINEAGE, Code, Environment, LineageError, Origin, Record, parse
from trainer.parameters import Parameters

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Another processor rounds otherwise, and one review of a thousand may change its side.
ELSEWHERE_TOLERANCE = 1e-3

_SCORE_PREFIX = "test_"
_MODEL_URI = re.compile("models:/(?P<name>[^/@]+)(/(?P<version>[0-9]+)|@(?P<alias>[^/@]+))")
_KIND = ("python", "cpu", "cuda", "gpus")
_PACKAGES = ("numpy", "lightning", "mlflow", "torchtext")


@dataclass(frozen=True)
class Difference:
    """Something that is not as it was in the run."""

    name: str
    run: str
    here: str
    matters: bool
    """Whether another model must be expected."""


@dataclass(frozen=True)
class Score:
    """A metric of the run, and of the training that repeats it."""

    name: str
    run: float | None
    """None: the run lacks it."""
    again: float | None
    same: bool
    """Whether both are there and equal within the tolerance."""


def compare(record: Record, origin: Origin, data: DataVersion) -> list[Difference]:
    """Return in what code, data, parameters and environment differ from those of a run.

    Args:
        record: of the run.
        origin: the code and environment here.
        data: what would be trained on; its rows are not looked at.
    """
    run, here = record.origin.environment, origin.environment
    found = [
        *_compare_data(record.data, data),
        *(
            Difference(f"parameters.{field.name}", "unknown", str(field.default), True)
            for field in fields(Parameters)
            if field.name not in record.parameters
        ),
    ]
    # The same image has the same code and packages, whatever is known of them.
    if run.image_digest is None or run.image_digest != here.image_digest:
        found += _compare_code(record.origin.code, record.diff_sha256, origin.code)
        found += _compare_environment(run, here)
    return found + [
        Difference(name, str(getattr(run, name)), str(getattr(here, name)), False)
        for name in ("platform", *_KIND)
        if getattr(run, name) != getattr(here, name)
    ]


def _compare_data(run: DataVersion, here: DataVersion) -> Iterable[Difference]:
    if run.sha256 != here.sha256:
        yield Difference("data.sha256", run.sha256[:12], here.sha256[:12], True)
    # The content is what counts; a copy of it will do.
    if run.generation != here.generation:
        yield Difference("data.generation", str(run.generation), str(here.generation), False)


def _compare_code(run: Code, run_diff_sha256: str | None, here: Code) -> Iterable[Difference]:
    if run.commit is None or run.commit != here.commit:
        yield Difference("code.commit", run.commit or "unknown", here.commit or "unknown", True)
    if (run.dirty, run_diff_sha256) != (here.dirty, here.diff_sha256):
        yield Difference(
            "code.changes",
            _describe_changes(run, run_diff_sha256),
            _describe_changes(here, here.diff_sha256),
            True,
        )
    elif run.dirty and run_diff_sha256 is None and not run.left_out:
        yield Difference("code.changes", "changed, not known how", "not known either", True)
    was = {item.path: item.sha256 for item in run.left_out}
    now = {item.path: item.sha256 for item in here.left_out}
    for path in sorted(was.keys() | now.keys()):
        if path not in was or path not in now or was[path] != now[path]:
            yield Difference(
                f"code: {path}", _describe_file(was, path), _describe_file(now, path), True
            )


def _describe_changes(code: Code, diff_sha256: str | None) -> str:
    if not code.dirty:
        return "none"
    return f"diff {diff_sha256[:12]}" if diff_sha256 else "not in a diff"


def _describe_file(files: Mapping[str, str | None], path: str) -> str:
    if path not in files:
        return "as in the commit"
    return f"changed, {(files[path] or '')[:12]}" if files[path] else "deleted"


def _compare_environment(run: Environment, here: Environment) -> Iterable[Difference]:
    if run.image_digest != here.image_digest:
        yield Difference(
            "image_digest", run.image_digest or "no image", here.image_digest or "no image", False
        )
    if run.lock_sha256 != here.lock_sha256:
        yield Difference(
            "lock",
            f"{run.lock} {(run.lock_sha256 or 'missing')[:12]}",
            f"{here.lock} {(here.lock_sha256 or 'missing')[:12]}",
            True,
        )
    for line in sorted(set(run.lock_differences) ^ set(here.lock_differences)):
        was, now = (
            "so" if line in environment.lock_differences else "as locked"
            for environment in (run, here)
        )
        yield Difference(f"installed: {line}", was, now, True)
    for name in ("torch", *_PACKAGES):
        was, now = (environment.packages.get(name, "missing") for environment in (run, here))
        if was != now:
            # 2.13.0+cpu and 2.13.0+cu130 are one release for two kinds of machine.
            matters = was.partition("+")[0] != now.partition("+")[0]
            yield Difference(name, was, now, matters)


def default_tolerance(run: Environment, here: Environment) -> float:
    """Return how far a score may be off: 0 on the same kind of machine without a GPU.

    On a GPU the order of additions is not fixed.
    """
    same = all(getattr(run, name) == getattr(here, name) for name in _KIND)
    same = same and run.packages.get("torch") == here.packages.get("torch")
    return 0.0 if same and not here.gpus else ELSEWHERE_TOLERANCE


def compare_scores(
    run: Mapping[str, float], again: Mapping[str, float], *, tolerance: float
) -> list[Score]:
    """Compare the scores on the test split, by name.

    Args:
        run: all metrics of the run.
        again: all metrics of the training that repeats it.
        tolerance: largest difference of scores that count as equal.
    """
    names = {name for name in (*run, *again) if name.startswith(_SCORE_PREFIX)}
    scores = []
    for name in sorted(names):
        was, now = run.get(name), again.get(name)
        same = (
            was is not None
            and now is not None
            and (abs(was - now) <= tolerance or (math.isnan(was) and math.isnan(now)))
        )
        scores.append(Score(name, was, now, same))
    return scores


@click.command()
@click.argument("run", metavar="RUN_ID")
@click.option(
    "--data",
    type=Source(),
    help="Where the data is now, as a file or gs://BUCKET/OBJECT.  [default: as in the run, or "
    "what data.lock names if that is the same content]",
)
@click.option("--experiment", help="Of the new run.  [default: that of the run]")
@click.option("--force", is_flag=True, help="Train in spite of differences that matter.")
@click.option("--check-only", is_flag=True, help="Say what differs; train nothing.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    help="Largest difference of equal scores.  [default: 0 on the same kind of machine without "
    f"a GPU, else {ELSEWHERE_TOLERANCE}]",
)
@tracking_uri_option
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Show progress bars.  [default: on a terminal]",
)
def reproduce(
    run: str,
    data: Path | str | None,
    experiment: str | None,
    force: bool,
    check_only: bool,
    tolerance: float | None,
    tracking_uri: str,
    progress: bool | None,
) -> None:
    """Make the model of a run again and compare the scores.

    RUN_ID is a run of MLflow, or a registered model: models:/NAME/VERSION or
    models:/NAME@ALIAS. Code, data and environment must be those of the run; what
    differs is said, and how to get there. The new run has the tags `reproduces` and
    `reproduced`.

    Ends with status 0 when the scores are the same, else with 1; with --check-only, 0
    when nothing that matters differs. The last line on standard output is JSON.
    """
    with connected(tracking_uri, experiment=experiment):
        from mlflow import MlflowClient

        from trainer import lineage

        client = MlflowClient()
        watched = sys.stderr.isatty() if progress is None else progress
        origin = lineage.collect()
        found = _find_run(client, run)
        run_id = str(found.info.run_id)
        record = _read_record(client, run_id)
        here = _read_version(*_locate(record.data, data), progress=watched)
        differences = compare(record, origin, here)
        _show_differences(differences)
        answer: dict[str, Any] = {
            "run_id": run_id,
            "again_run_id": None,
            "reproduced": None if check_only else False,
            "differences": [vars(difference) for difference in differences],
        }
        missing = any(difference.matters for difference in differences)
        if missing:
            _show_ways(run_id, record, differences)
        if check_only or (missing and not force):
            if not check_only:
                click.echo(
                    "not trained: another model must be expected (--force: train all the same)"
                )
            click.echo(json.dumps(answer))
            click.get_current_context().exit(int(missing))
        parameters = _parameters(record)

        from trainer import training
        from trainer.fitting import FitError
        from trainer.tracking import TrackingError

        quiet()
        experiment = experiment or client.get_experiment(found.info.experiment_id).name
        try:
            outcome = training.train(
                here.uri,
                parameters,
                experiment=experiment,
                generation=here.generation,
                run_name=f"again-{found.info.run_name}",
                register=None,
                progress=watched,
            )
        except (FitError, TrackingError) as error:
            raise click.ClickException(str(error)) from error
        if tolerance is None:
            tolerance = default_tolerance(record.origin.environment, origin.environment)
        again = client.get_run(outcome.run_id)
        scores = compare_scores(found.data.metrics, again.data.metrics, tolerance=tolerance)
        reproduced = bool(scores) and all(score.same for score in scores)
        client.set_tag(outcome.run_id, "reproduces", run_id)
        client.set_tag(outcome.run_id, "reproduced", str(reproduced).lower())
    _show_scores(scores)
    click.echo(
        f"run {run_id} is {'' if reproduced else 'not '}reproduced by {outcome.run_id} "
        f"(tolerance {tolerance:g})"
    )
    answer |= {
        "again_run_id": outcome.run_id,
        "reproduced": reproduced,
        "tolerance": tolerance,
        "scores": {score.name: [score.run, score.again] for score in scores},
    }
    click.echo(json.dumps(answer))
    click.get_current_context().exit(int(not reproduced))


def _find_run(client: "MlflowClient", name: str) -> "Run":
    """Return a finished run, named by its id or by a registered model."""
    run_id = name
    if name.startswith("models:"):
        match = _MODEL_URI.fullmatch(name)
        if match is None:
            raise click.UsageError(f"{name} is not models:/NAME/VERSION or models:/NAME@ALIAS")
        version = (
            client.get_model_version(match["name"], match["version"])
            if match["version"]
            else client.get_model_version_by_alias(match["name"], match["alias"])
        )
        if not version.run_id:
            raise click.ClickException(f"{name} does not say which run it comes from")
        run_id = version.run_id
    run = client.get_run(run_id)
    if run.info.status != "FINISHED":
        raise click.ClickException(f"run {run_id} is {run.info.status}: it has no model to compare")
    return run


def _read_record(client: "MlflowClient", run_id: str) -> Record:
    if LINEAGE not in {item.path for item in client.list_artifacts(run_id)}:
        raise click.ClickException(
            f"run {run_id} has no {LINEAGE}: it was made by code that did not keep it, and "
            "can't be checked"
        )
    import mlflow

    try:
        return parse(mlflow.artifacts.load_text(f"runs:/{run_id}/{LINEAGE}"))
    except LineageError as error:
        raise click.ClickException(f"run {run_id}: {error}") from error


def _parameters(record: Record) -> Parameters:
    unknown = record.parameters.keys() - {field.name for field in fields(Parameters)}
    if unknown:
        raise click.ClickException(
            f"the run has parameters that this code does not know: {', '.join(sorted(unknown))}"
        )
    return Parameters(**record.parameters)


def _locate(version: DataVersion, given: Path | str | None) -> tuple[Path | str, int | None]:
    """Return where the data of the run is now, and its generation."""
    if given is not None:
        return given, None
    if version.is_cloud:
        return version.uri, version.generation
    if Path(version.uri).is_file():
        return Path(version.uri), None
    try:
        locked = load(DATA_LOCK)
    except LockError:
        locked = None
    if locked is not None and locked.sha256 == version.sha256:
        return locked.uri, locked.generation
    raise click.ClickException(f"{version.uri} is not here: name the data of the run with --data")


def _read_version(source: Path | str, generation: int | None, *, progress: bool) -> DataVersion:
    """Return what a source holds, its rows not counted."""
    from trainer.sources import SourceError, open_source

    try:
        with open_source(source, generation=generation, progress=progress) as content:
            while content.reader.read(1024**2):
                pass
            return DataVersion(str(source), content.digest(), 0, content.generation)
    except (OSError, EOFError, zlib.error, SourceError) as error:
        raise click.ClickException(
            f"{source}: can't be read: {error}; name a copy of the run's data with --data"
        ) from error


def _show_differences(differences: list[Difference]) -> None:
    if not differences:
        click.echo("code, data and environment are those of the run")
        return
    _show_table(
        ("", "run", "here", ""),
        [
            (item.name, item.run, item.here, "matters" if item.matters else "")
            for item in differences
        ],
    )


def _show_ways(run_id: str, record: Record, differences: list[Difference]) -> None:
    """Say how to get to what the run had."""
    names = {difference.name.partition(".")[0].partition(":")[0] for difference in differences}
    code, environment = record.origin.code, record.origin.environment
    if "code" in names and code.commit:
        click.echo("To get the code of the run (git stash --include-untracked keeps your own):")
        click.echo(f"  git checkout {code.commit}")
        if record.diff_sha256:
            click.echo(f"  mlflow artifacts download -r {run_id} -a {DIFF} -d /tmp")
            click.echo(f"  git apply /tmp/{DIFF}")
        for item in code.left_out:
            click.echo(f"  and bring back {item.path} ({item.reason}), SHA-256 {item.sha256}")
    if names & {"lock", "installed", "torch", *_PACKAGES}:
        click.echo(f"To get its environment, install trainer/{environment.lock} of that commit.")
    if "image_digest" in names and environment.image_digest:
        click.echo(f"Its image has both: {environment.image_digest}")
    if any(item.matters and item.name.startswith("data.") for item in differences):
        click.echo(f"Its data was {record.data.uri}: name a copy with --data.")


def _show_scores(scores: list[Score]) -> None:
    _show_table(
        ("", "run", "again", ""),
        [
            (score.name, _number(score.run), _number(score.again), "" if score.same else "differs")
            for score in scores
        ],
    )


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.6f}"


def _show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
