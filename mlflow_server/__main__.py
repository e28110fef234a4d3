"""Entry point of the image: ``python -m mlflow_server serve`` or ``migrate``."""

import argparse
import os
import sys
from typing import NoReturn

from functions.settings import parse
from mlflow_server.settings import ServerSettings, Settings


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(
        prog="python -m mlflow_server",
        description="MLflow's tracking server and model registry. Settings come from the "
        "environment.",
        epilog="\n".join(
            f"  {name.upper():24}{field.description}"
            for name, field in ServerSettings.model_fields.items()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        choices=["serve", "migrate"],
        help="serve; or bring the database to this version's schema, to be run before a new "
        "version serves",
    )
    command = parser.parse_args().command
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    if command == "migrate":
        migrate(parse(Settings))
    else:
        serve(parse(ServerSettings))


def serve(settings: ServerSettings) -> NoReturn:
    """Become the MLflow server."""
    arguments = [
        "server",
        f"--host={settings.host}",
        f"--port={settings.port}",
        f"--workers={settings.workers}",
        # Straight to the bucket: a request to Cloud Run may not exceed 32 MB.
        f"--default-artifact-root={settings.artifact_root}",
        "--no-serve-artifacts",
    ]
    if settings.allowed_hosts:
        arguments.append(f"--allowed-hosts={settings.allowed_hosts}")
    if settings.cors_allowed_origins:
        arguments.append(f"--cors-allowed-origins={settings.cors_allowed_origins}")
    os.execve(  # noqa: S606  # replaces this process, so that signals reach MLflow
        sys.executable,
        [sys.executable, "-m", "mlflow", *arguments],
        {
            **os.environ,
            # In the environment, not among the arguments, which any process may list.
            "MLFLOW_BACKEND_STORE_URI": settings.backend_store_uri,
            # Its job runner's memory grows without end, and nothing here uses it.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
    )


def migrate(settings: Settings) -> None:
    """Run MLflow's database migration: an empty database gets its tables."""
    # In this process, since its command takes the URL with the password as an argument.
    from mlflow.db import commands
    from sqlalchemy.exc import OperationalError

    try:
        commands.main(["upgrade", settings.backend_store_uri], standalone_mode=False)
    except OperationalError as error:
        sys.exit(f"python -m mlflow_server: error: the database does not answer: {error.orig}")


if __name__ == "__main__":
    main()
