"""What the commands share: arguments that name data, and the way to MLflow."""

import contextlib
import errno
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click


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


tracking_uri_option = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    required=True,
    help="MLflow server, such as http://127.0.0.1:5000.",
)


@contextlib.contextmanager
def connected(tracking_uri: str, *, experiment: str | None = None) -> Iterator[None]:
    """Use an MLflow server, reached first; import what is slow inside of it only.

    Args:
        tracking_uri: the server.
        experiment: whose artifact store a message names.

    Raises:
        click.ClickException: in place of what MLflow and the artifact store raise, and of
            data that can't be used and of a disk that is full.
    """
    # MLflow reads it when it is imported; the import of torch is slow, --help need not wait.
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    from trainer.auth import AuthError, require_provider
    from trainer.reviews import DataError

    try:
        quiet()
        require_provider()
        _reach_mlflow()
        yield
    except (AuthError, DataError) as error:
        raise click.ClickException(str(error)) from error
    except MlflowException as error:
        raise click.ClickException(f"MLflow at {tracking_uri}: {error}") from error
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        # Artifacts go straight to the bucket, past MLflow's server.
        store = _artifact_store(experiment)
        raise click.ClickException(
            f"the artifact store {store}: {' '.join(str(error).split())}"
        ) from error
    except OSError as error:
        # The disk; after requests' errors, which are of this kind too.
        if error.errno not in (None, errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise click.ClickException(str(error)) from error


def quiet() -> None:
    """Keep what the libraries say of themselves away from the progress bars.

    Lightning sets its own level when it is imported: call it again after that.
    """
    for name in ("lightning.pytorch", "pytorch_lightning", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(torch|lightning|mlflow).*")


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


def _artifact_store(experiment: str | None) -> str:
    """Return where the artifacts of an experiment go, as far as MLflow still says so."""
    import mlflow
    from mlflow.exceptions import MlflowException

    if experiment is None:
        return "of the run"
    with contextlib.suppress(MlflowException):
        if found := mlflow.get_experiment_by_name(experiment):
            return str(found.artifact_location)
    return f"of experiment {experiment}"
