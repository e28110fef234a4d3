"""The data that the model in production is trained on, named in a file that Git holds."""

import json
import os
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import yaml

from trainer.connection import Source

DATA_LOCK = Path(__file__).with_name("data.lock")

_HEADER = """\
# The data that the model in production is trained on. Written by
# `python -m trainer lock`; a training without --data refuses any other content.
"""
_SHA256 = re.compile("[0-9a-f]{64}")


class LockError(ValueError):
    """The lock can't be used, or the data is not what it names; the message says what to do."""


@dataclass(frozen=True)
class DataVersion:
    """Data with a content that can be told from any other."""

    uri: str
    """Path, or ``gs://BUCKET/OBJECT``."""
    sha256: str
    """Of the uncompressed content, lower-case hex."""
    rows: int
    """Rows in it, usable or not."""
    generation: int | None = None
    """Of the object in Cloud Storage; None: a file."""

    @property
    def is_cloud(self) -> bool:
        """Whether it is an object in Cloud Storage."""
        return self.uri.startswith("gs://")


def load(path: Path = DATA_LOCK) -> DataVersion:
    """Return what a lock file names, a path relative to the file as an absolute one.

    Raises:
        LockError: it can't be read, or names no data completely.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise LockError(f"{path}: can't be read: {error}") from error
    if not isinstance(values, dict):
        raise LockError(f"{path}: not a mapping of uri, sha256, rows and generation")
    known = set(DataVersion.__dataclass_fields__)
    for key in values.keys() - known:
        raise LockError(f"{path}: {key}: unknown key; known are {', '.join(sorted(known))}")
    uri, sha256, rows = (values.get(key) for key in ("uri", "sha256", "rows"))
    generation = values.get("generation")
    if not isinstance(uri, str) or not uri:
        raise LockError(f"{path}: uri: give gs://BUCKET/OBJECT or a path, not {uri!r}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise LockError(f"{path}: sha256: give 64 lower-case hex digits, not {sha256!r}")
    if type(rows) is not int or rows < 1:
        raise LockError(f"{path}: rows: give a number of at least 1, not {rows!r}")
    version = DataVersion(uri, sha256, rows, generation)
    if not version.is_cloud:
        if generation is not None:
            raise LockError(f"{path}: generation: a file has none, only an object in gs://")
        return replace(version, uri=os.path.normpath(path.absolute().parent / uri))
    if not re.fullmatch("gs://[^/]+/.+", uri, re.DOTALL):
        raise LockError(f"{path}: uri: {uri} is not gs://BUCKET/OBJECT")
    if type(generation) is not int or generation < 1:
        raise LockError(
            f"{path}: generation: give the object's number, not {generation!r}; "
            "`python -m trainer lock` writes it"
        )
    return version


def write(version: DataVersion, path: Path = DATA_LOCK) -> None:
    """Write a lock file; a path is kept relative to it.

    Raises:
        OSError: the file can't be written.
    """
    values = {key: value for key, value in asdict(version).items() if value is not None}
    if not version.is_cloud:
        relative = os.path.relpath(Path(version.uri).absolute(), path.absolute().parent)
        values["uri"] = Path(relative).as_posix()
    text = yaml.safe_dump(values, sort_keys=False, width=1000)
    path.write_text(_HEADER + text, "utf-8")


def check(version: DataVersion, *, sha256: str, rows: int) -> None:
    """Compare what was read with what is pinned.

    Args:
        version: what is pinned.
        sha256: of the uncompressed content that was read.
        rows: that were read.

    Raises:
        LockError: it is something else.
    """
    if (sha256, rows) != (version.sha256, version.rows):
        raise LockError(
            f"{version.uri} is not what data.lock names: {rows:,} rows with the SHA-256 "
            f"{sha256[:12]}, pinned are {version.rows:,} rows with {version.sha256[:12]}; bring "
            "the data back, or look at it and pin it with `python -m trainer lock`"
        )


@click.command()
@click.option(
    "--data", type=Source(), help="File or gs://BUCKET/OBJECT.  [default: what the lock names]"
)
@click.option(
    "--max-bad-share",
    type=click.FloatRange(0, 1),
    help="Accepted share of bad rows.  [default: as in params.yaml]",
)
@click.option(
    "--lock-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DATA_LOCK,
    show_default="data.lock in trainer/",
    help="Where to write it.",
)
def lock(data: Path | str | None, max_bad_share: float | None, lock_file: Path) -> None:
    """Read and check reviews, and pin them as the data of the model in production.

    Commit the file that is written: `train` without --data trains on what it names,
    and refuses any other content. An object in Cloud Storage is pinned at its newest
    generation; keep old ones with the bucket's versioning.

    The last line on standard output is JSON with what is pinned.
    """
    from trainer.production import ParametersError, load_parameters
    from trainer.reviews import DataError, Tally, stream_reviews

    try:
        before = load(lock_file) if lock_file.exists() else None
        if data is None and before is None:
            raise click.UsageError(f"there is no {lock_file}: name the data with --data")
        uri = str(data or (before.uri if before else ""))
        if max_bad_share is None:
            max_bad_share = load_parameters().max_bad_share
        tally = Tally()
        for _ in stream_reviews(
            uri, tally, max_bad_share=max_bad_share, progress=sys.stderr.isatty()
        ):
            pass
        version = DataVersion(uri, tally.digest, tally.rows, tally.generation)
        write(version, lock_file)
        after = load(lock_file)
    except (LockError, ParametersError, DataError, OSError) as error:
        raise click.ClickException(str(error)) from error
    old = asdict(before) if before else {}
    changes = {key: value for key, value in asdict(after).items() if old.get(key) != value}
    for key, value in changes.items():
        click.echo(f"{key:10} {old[key]} -> {value}" if key in old else f"{key:10} {value}")
    click.echo(f"{lock_file}: {'written; commit it' if changes else 'as before'}")
    click.echo(json.dumps({**asdict(after), "changed": sorted(changes)}))
