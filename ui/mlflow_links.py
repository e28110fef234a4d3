"""Where a model version and a run are found in MLflow."""

from urllib.parse import quote

from ui.plain import link, plain
from ui.settings import Settings


def version_link(settings: Settings, version: str) -> str:
    """Return Markdown with a model version's number, linked to MLflow if that is known."""
    if settings.mlflow_url is None:
        return plain(version)
    model = quote(settings.model_name, safe="")
    return link(version, f"{_base(settings)}/models/{model}/versions/{quote(version, safe='')}")


def run_link(settings: Settings, run_id: str) -> str:
    """Return Markdown with a run's id, linked to MLflow if that is known."""
    if settings.mlflow_url is None:
        return plain(run_id)
    return link(run_id, f"{_base(settings)}/runs/{quote(run_id, safe='')}")


def _base(settings: Settings) -> str:
    return f"{str(settings.mlflow_url).rstrip('/')}/#"
