"""The function ``promote`` for functions-framework's ASGI server."""

import os

from starlette.applications import Starlette
from starlette.requests import Request

from functions.logs import configure_logging
from functions.promote.app import create_app
from functions.promote.bundles import Bundles
from functions.promote.cloud_run import CloudRun
from functions.promote.feedback import Feedback
from functions.promote.gates import Gates
from functions.promote.ledger import Ledger
from functions.promote.reconciler import Reconciler
from functions.promote.registry import TIMEOUT_SECONDS, Registry
from functions.promote.settings import Settings
from functions.promote.signals import Monitoring
from functions.settings import current

configure_logging()
# MLflow's own defaults, seven tries of two minutes each, outlast any tick.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{TIMEOUT_SECONDS:.0f}")

_settings = current(Settings)
_app = create_app(
    Reconciler(
        registry=Registry(
            tracking_uri=_settings.mlflow_tracking_uri,
            model=_settings.model_name,
            sources=_settings.promote_on,
            audience=_settings.mlflow_audience,
        ),
        bundles=Bundles(
            model=_settings.model_name,
            artifacts_bucket=_settings.artifacts_bucket,
            serving_bucket=_settings.serving_bucket,
        ),
        cloud_run=CloudRun(
            project=_settings.project,
            region=_settings.region,
            service=_settings.service,
            endpoint=_settings.cloud_run_endpoint,
        ),
        gates=Gates(_settings.policy),
        ledger=Ledger(
            project=_settings.firestore_project or _settings.project,
            database=_settings.firestore_database,
        ),
        monitoring=Monitoring(
            project=_settings.project,
            region=_settings.region,
            service=_settings.service,
            endpoint=_settings.monitoring_endpoint,
        ),
        feedback=Feedback(_settings.proxy_url) if _settings.proxy_url else None,
        policy=_settings.policy,
    )
)


async def promote(_request: Request) -> Starlette:
    """Hand each request to the application, which the server awaits as a response."""
    return _app
