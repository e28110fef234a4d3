"""Where a model comes from: code, data, environment and seeds, logged with its run.

The artifact ``lineage.json``, in version 1:

- ``schema_version``: 1;
- ``code``: ``commit`` (null where Git and GIT_COMMIT name none), ``dirty``, ``diff_sha256``
  (of the artifact ``code.diff``; null when there is none), ``left_out`` (changed files that
  the diff leaves out: ``path``, ``reason``, ``sha256``, null for a deleted one), ``note``
  (null, or why the diff says less than it should);
- ``data``: ``uri``, ``sha256``, ``rows``, ``generation`` (null for a file);
- ``environment``: ``python``, ``lock`` (name of the lock file that it is installed from),
  ``lock_sha256``, ``lock_differences`` (distributions that are not as the lock names them),
  ``packages`` (name to version), ``platform``, ``cpu``, ``cpu_count``, ``torch_threads``,
  ``cuda``, ``gpus`` (names), ``image_digest``;
- ``parameters``: name to value, in their types; ``seeds``: name to number.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

from trainer.data_lock import DataVersion
from trainer.parameters import Parameters

if TYPE_CHECKING:
    import git

SCHEMA_VERSION = 1
LINEAGE = "lineage.json"
DIFF = "code.diff"

_PACKAGE = Path(__file__).parent
# All that the second names is in the first too: what fits both is made for a GPU.
_LOCKS = (_PACKAGE / "requirements-gpu.lock", _PACKAGE / "requirements.lock")

# More than what people change between two commits; less than MLflow's UI shows with ease.
_MOST_DIFF_BYTES = 1024**2
_MOST_DIFF_FILES = 500
# Not tracked, what Python runs or is installed from; others, such as YAML, may hold secrets.
_UNTRACKED_SOURCES = {".lock", ".py", ".pyi"}
_SOURCES = {
    *(".cfg", ".cjs", ".css", ".html", ".ini", ".js", ".lock", ".md", ".proto", ".py", ".pyi"),
    *(".sh", ".sql", ".tf", ".tftest", ".tftpl", ".toml", ".ts", ".yaml", ".yml"),
}
_SOURCE_NAMES = {"Dockerfile", "Makefile", ".dockerignore", ".gitignore", ".gcloudignore"}


@dataclass(frozen=True)
class LeftOut:
    """A changed file that the diff does not hold."""

    path: str
    """In the repository."""
    reason: str
    sha256: str | None
    """Of its content; None: it is deleted."""


@dataclass(frozen=True)
class Code:
    """The state of the source code."""

    commit: str | None
    dirty: bool
    """Whether there are changes against the commit."""
    diff: bytes = field(default=b"", repr=False)
    """For ``git apply``: changes of tracked source files, and untracked Python files and locks."""
    left_out: tuple[LeftOut, ...] = ()
    note: str | None = None
    """Why the diff says less than it should."""

    @property
    def diff_sha256(self) -> str | None:
        """SHA-256 of the diff, lower-case hex; None: there is no diff."""
        return hashlib.sha256(self.diff).hexdigest() if self.diff else None


@dataclass(frozen=True)
class Environment:
    """What the code runs in."""

    python: str
    lock: str
    """Name of the lock file, beside this module, that the environment is installed from."""
    lock_sha256: str | None
    """Of that file, lower-case hex; None: there is no such file."""
    lock_differences: tuple[str, ...]
    """Distributions that are missing or have another version than the lock says."""
    packages: Mapping[str, str]
    """Version of each installed distribution that the lock names, and of torch."""
    platform: str
    cpu: str
    cpu_count: int | None
    torch_threads: int
    cuda: str | None
    """Version of CUDA that torch was built for; None: for CPUs only."""
    gpus: tuple[str, ...]
    image_digest: str | None
    """Of the container image; None: not in one."""


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, apart from its data."""

    code: Code
    environment: Environment


@dataclass(frozen=True)
class Record:
    """What ``lineage.json`` of a run says."""

    origin: Origin
    """Without the text of the diff."""
    diff_sha256: str | None
    data: DataVersion
    parameters: Mapping[str, Any]
    seeds: Mapping[str, int]


class LineageError(ValueError):
    """A lineage can't be read; the message says why."""


def collect(environ: Mapping[str, str] = os.environ) -> Origin:
    """Look at the code and the environment, before either can change.

    Args:
        environ: outside a repository, ``GIT_COMMIT`` and ``GIT_DIRTY`` (``true``) say what an
            image holds; ``TRAINING_IMAGE_DIGEST`` is the image's digest.
    """
    return Origin(collect_code(_PACKAGE, environ), _collect_environment(environ))


def log(
    origin: Origin, *, data: DataVersion, parameters: Parameters, seeds: Mapping[str, int]
) -> None:
    """Log to the active MLflow run where its model comes from.

    Tags ``git_commit``, ``git_dirty``, ``lock_sha256`` and ``image_digest``, as far as known;
    the artifacts ``lineage.json`` and, for changed code, ``code.diff``.

    Args:
        origin: collected when the run began.
        data: what it is trained on.
        parameters: of the run.
        seeds: name to seed, of everything that is random.

    Raises:
        mlflow.exceptions.MlflowException: MLflow refused or can't be reached.
    """
    import mlflow
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

    code, environment = origin.code, origin.environment
    if not data.is_cloud:
        data = replace(data, uri=str(Path(data.uri).absolute()))
    tags = {
        "git_commit": code.commit,
        "git_dirty": str(code.dirty).lower() if code.commit else None,
        "lock_sha256": environment.lock_sha256,
        "image_digest": environment.image_digest,
        # The UI's own; MLflow sets it in a repository only.
        MLFLOW_GIT_COMMIT: code.commit,
    }
    mlflow.set_tags({name: value for name, value in tags.items() if value is not None})
    mlflow.log_text(to_json(origin, data, asdict(parameters), seeds), LINEAGE)
    if code.diff:
        with tempfile.TemporaryDirectory() as folder:
            # As bytes: a source file need not be UTF-8.
            path = Path(folder) / DIFF
            path.write_bytes(code.diff)
            mlflow.log_artifact(str(path))


def to_json(
    origin: Origin, data: DataVersion, parameters: Mapping[str, Any], seeds: Mapping[str, int]
) -> str:
    """Return the content of ``lineage.json``, as the top of this module describes it."""
    code = origin.code
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "code": {
                "commit": code.commit,
                "dirty": code.dirty,
                "diff_sha256": code.diff_sha256,
                "left_out": [asdict(item) for item in code.left_out],
                "note": code.note,
            },
            "data": asdict(data),
            "environment": asdict(origin.environment),
            "parameters": dict(parameters),
            "seeds": dict(seeds),
        },
        indent=2,
    )


def parse(content: str) -> Record:
    """Return what ``lineage.json`` says.

    Raises:
        LineageError: it has another version, or lacks something.
    """
    try:
        values = json.loads(content)
        if values["schema_version"] != SCHEMA_VERSION:
            raise LineageError(
                f"{LINEAGE} has version {values['schema_version']}, this code knows "
                f"{SCHEMA_VERSION}: use the code that made it"
            )
        code, environment = dict(values["code"]), dict(values["environment"])
        diff_sha256 = code.pop("diff_sha256")
        left_out = tuple(LeftOut(**item) for item in code.pop("left_out"))
        for name in ("lock_differences", "gpus"):
            environment[name] = tuple(environment[name])
        return Record(
            Origin(Code(**code, left_out=left_out), Environment(**environment)),
            diff_sha256,
            DataVersion(**values["data"]),
            values["parameters"],
            values["seeds"],
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, LineageError):
            raise
        raise LineageError(f"{LINEAGE} can't be read: {error!r}") from error


def collect_code(folder: Path, environ: Mapping[str, str]) -> Code:
    """Return the state of the repository that `folder` is tracked in.

    Args:
        folder: of source files.
        environ: as `collect` takes it.
    """
    commit = environ.get("GIT_COMMIT", "")
    # The image's build argument defaults to "unknown".
    known = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", commit)
    outside = Code(commit if known else None, environ.get("GIT_DIRTY") == "true")
    if outside.dirty:
        outside = replace(outside, note="the image was built from changed code; no diff is known")
    try:
        import git
    except ImportError:
        return replace(outside, note="no git program here")
    try:
        with git.Repo(folder, search_parent_directories=True) as repository:
            # Installed into a project's environment, it is not what that project tracks.
            if not repository.git.ls_files("--", str(folder)):
                return outside
            commit = repository.head.commit.hexsha
            with _own_index(repository):
                diff, left_out = _diff(repository)
            return Code(commit, bool(diff or left_out), diff, left_out)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError):
        return outside
    except (git.GitError, ValueError) as error:
        # Such as a repository of another user, or without a commit.
        return replace(outside, note=f"Git: {' '.join(str(error).split())}")


@contextlib.contextmanager
def _own_index(repository: "git.Repo") -> Iterator[None]:
    """Name untracked source files to Git in a copy of the index, not in the user's."""
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        if Path(repository.index.path).exists():
            # With its time: from that Git knows which files may have changed just after it.
            shutil.copy2(repository.index.path, index)
        with repository.git.custom_environment(
            GIT_INDEX_FILE=str(index), GIT_LITERAL_PATHSPECS="1"
        ):
            yield


def _diff(repository: "git.Repo") -> tuple[bytes, tuple[LeftOut, ...]]:
    """Return the changes as a patch, and what it leaves out."""
    root = Path(repository.working_dir)
    listed = str(repository.git.ls_files("-z", "--others", "--exclude-standard"))
    untracked = [path for path in listed.split("\0") if Path(path).suffix in _UNTRACKED_SOURCES]
    for start in range(0, len(untracked), _MOST_DIFF_FILES):
        repository.git.add("--intent-to-add", "--", *untracked[start : start + _MOST_DIFF_FILES])
    # What only has a new time of change is no change.
    repository.git.update_index("-q", "--refresh", with_exceptions=False)
    counts = str(repository.git.diff_index("--numstat", "--no-renames", "-z", "HEAD"))
    patches: list[bytes] = []
    left_out: list[LeftOut] = []
    size = 0
    for line in filter(None, counts.split("\0")):
        added, _, path = line.split("\t", 2)
        patch = b""
        if added == "-":
            reason = "not text"
        elif not _is_source(path):
            reason = "not source code"
        elif len(patches) >= _MOST_DIFF_FILES:
            reason = f"the diff has {_MOST_DIFF_FILES} files already"
        else:
            patch = _patch(repository, path)
            reason = f"the diff would be larger than {_MOST_DIFF_BYTES:,} bytes"
        if patch and size + len(patch) <= _MOST_DIFF_BYTES:
            patches.append(patch)
            size += len(patch)
        else:
            left_out.append(LeftOut(path, reason, _sha256(root / path)))
    return b"".join(patches), tuple(left_out)


def _patch(repository: "git.Repo", path: str) -> bytes:
    # Git's plumbing: the user's settings of `git diff` change nothing in it.
    command = ["git", "diff-index", "--patch", "--full-index", "--no-renames"]
    command += ["--no-ext-diff", "--no-textconv", "--no-color", "HEAD", "--", path]
    output: bytes = repository.git.execute(
        command, stdout_as_string=False, strip_newline_in_stdout=False
    )
    return output


def _is_source(path: str) -> bool:
    name = Path(path).name
    return name in _SOURCE_NAMES or Path(path).suffix in _SOURCES


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _collect_environment(environ: Mapping[str, str]) -> Environment:
    import torch

    compared = {path: compare_lock(path) for path in _LOCKS if path.is_file()}
    lock = min(compared, key=lambda path: len(compared[path][1]), default=_LOCKS[-1])
    packages, differences = compared.get(lock, ({}, ()))
    return Environment(
        python=platform.python_version(),
        lock=lock.name,
        lock_sha256=_sha256(lock),
        lock_differences=differences,
        packages={**packages, "torch": str(torch.__version__)},
        platform=platform.platform(),
        cpu=_cpu(),
        cpu_count=os.cpu_count(),
        torch_threads=torch.get_num_threads(),
        cuda=torch.version.cuda,
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        image_digest=environ.get("TRAINING_IMAGE_DIGEST") or None,
    )


def compare_lock(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Compare the installed distributions with a lock.

    A local version (``2.13.0+cpu``) counts as its public one. What is installed besides the
    lock counts as no difference.

    Args:
        path: lock in the form of pip's requirements.

    Returns:
        name to version of what the lock names and is installed, and a line for each
        difference.
    """
    installed, differences = {}, []
    for line in path.read_text("utf-8").splitlines():
        if not re.match(r"[A-Za-z0-9]", line):
            continue
        requirement = Requirement(line.partition(" #")[0].rstrip(" \\"))
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            installed[requirement.name] = version(requirement.name)
        except PackageNotFoundError:
            differences.append(f"{requirement.name} is missing, locked is {requirement.specifier}")
            continue
        # A specifier without a local part matches a version with one (PEP 440).
        if not requirement.specifier.contains(installed[requirement.name], prereleases=True):
            differences.append(
                f"{requirement.name} is {installed[requirement.name]}, "
                f"locked is {requirement.specifier}"
            )
    return installed, tuple(differences)


def _cpu() -> str:
    with contextlib.suppress(OSError):
        # Linux says "x86_64" for a processor.
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
