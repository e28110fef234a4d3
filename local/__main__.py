"""Command line of the local stack: ``python -m local up|down|status|demo``."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from google.api_core.exceptions import GoogleAPIError

from local import services
from local.settings import DEFAULT_PORTS, ROOT, LocalSettings, SetupError, load_settings
from local.stack import Stack


def _parse_ports(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, int]:
    ports = {}
    for value in values:
        name, _, number = value.partition("=")
        if not number.isdigit() or not 1 <= int(number) <= 65535:
            raise click.BadParameter(f"{value!r} is not NAME=NUMBER")
        ports[name] = int(number)
    return ports


_data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / ".local",
    envvar="GREENROOM_DATA_DIR",
    show_default=".local",
    show_envvar=True,
    help="Folder of everything that the stack writes.",
)


def _start_options(command: Callable[..., None]) -> Callable[..., None]:
    options = (
        _data_dir,
        click.option(
            "--port",
            "ports",
            multiple=True,
            metavar="NAME=NUMBER",
            callback=_parse_ports,
            help="Port of a component; may be repeated. Names and defaults: "
            + ", ".join(f"{name}={port}" for name, port in DEFAULT_PORTS.items())
            + ".",
        ),
        click.option(
            "--free-ports",
            is_flag=True,
            help="Choose ports that are free. Ports are kept until `make clean`.",
        ),
        click.option(
            "--tick-seconds",
            type=click.FloatRange(0.1),
            help="Seconds between two calls of promote.  [default: 2]",
        ),
    )
    for option in reversed(options):
        command = option(command)

    @wraps(command)
    def wrapped(
        data_dir: Path,
        ports: dict[str, int],
        free_ports: bool,
        tick_seconds: float | None,
        **others: Any,
    ) -> None:
        try:
            settings = load_settings(
                data_dir,
                ports=ports,
                # What runs keeps its ports.
                free_ports=free_ports and not _is_running(data_dir),
                tick_seconds=tick_seconds,
            )
            command(settings, **others)
        except SetupError as error:
            raise click.ClickException(str(error)) from error
        except GoogleAPIError as error:
            raise click.ClickException(
                f"Cloud Run: {error}\nlogs: {data_dir / 'cloud_run' / 'logs'}"
            ) from error

    return wrapped


def _is_running(data_dir: Path) -> bool:
    if not (data_dir / "settings.json").exists():
        return False
    return any(Stack(load_settings(data_dir, ports={})).running().values())


def _command(name: str) -> str:
    """Return a command as the user can type it here."""
    return f"{os.path.relpath(sys.executable)} -m local {name}"


def _report(title: str, address: str) -> None:
    click.echo(f"  {title:34} {address}")


@click.group(context_settings={"max_content_width": 100})
def main() -> None:
    """Greenroom on one machine: the services of the cloud, against emulators, on loopback."""


@main.command()
@_start_options
def up(settings: LocalSettings) -> None:
    """Start what does not run, and leave it running in the background."""
    Stack(settings).up(_report)
    click.echo(f"addresses: {settings.data_dir / 'endpoints.json'}")
    click.echo(f"stop it with: {_command('down')}")


@main.command()
@_data_dir
def env(data_dir: Path) -> None:
    """Print what makes greenroom, Google's and MLflow's libraries find the stack, for a shell.

    For example: eval "$(python -m local env)"
    """
    if not (data_dir / "settings.json").exists():
        raise click.ClickException(f"there is no stack yet: {_command('up')}")
    settings = load_settings(data_dir, ports={})
    variables = {**settings.client_environment, **settings.operator_environment}
    for name, value in variables.items():
        click.echo(f"export {name}={value}")


@main.command()
@_data_dir
@click.option("--forget", is_flag=True, help="Delete the data as well.")
def down(data_dir: Path, forget: bool) -> None:
    """Stop everything, and keep the data for the next start."""
    if not (data_dir / "settings.json").exists():
        click.echo("nothing to stop")
        return
    stack = Stack(load_settings(data_dir, ports={}))
    if forget:
        stack.forget()
        click.echo(f"stopped; {data_dir} is deleted")
    else:
        click.echo(f"stopped: {', '.join(stack.down(_report)) or 'nothing was running'}")


@main.command()
@_data_dir
def status(data_dir: Path) -> None:
    """Say what runs and where. Exits with 1 unless all of it runs."""
    if not (data_dir / "settings.json").exists():
        click.echo(f"not started yet: {_command('up')}")
        sys.exit(1)
    settings = load_settings(data_dir, ports={})
    running = Stack(settings).running()
    for name, pid in running.items():
        address = settings.address(name) if name in settings.ports else ""
        click.echo(f"  {name:12} {f'running, pid {pid}' if pid else 'stopped':22} {address}")
    answers = {name: services.answer(settings, name) for name in services.HEALTH_PATHS}
    for name, answer in answers.items():
        click.echo(f"  {name:12} {answer:22} {settings.url(name)}")
    # SQLite stands in where PostgreSQL can't run.
    needed = [pid for name, pid in running.items() if name != "postgres"]
    sys.exit(0 if all(needed) and set(answers.values()) == {"answers"} else 1)


@main.command()
@_start_options
@click.option(
    "--data",
    help="Your own reviews, as `python -m trainer train --data` takes them; also as DATA.",
)
@click.option("--exit", "exit_after", is_flag=True, help="End by itself, 0 if all went well.")
@click.option("--again", is_flag=True, help="Train and promote anew, though a model is served.")
def demo(settings: LocalSettings, data: str | None, exit_after: bool, again: bool) -> None:
    """Start the stack and show the whole loop: train, promote, ask, promote again.

    When a model trained on the same data is served already, as the last start left
    it, that is shown and nothing is trained.
    """
    from local.demo import DemoFailed, run

    data = data or os.environ.get("DATA") or None
    if data and not data.startswith("gs://"):
        if not Path(data).is_file():
            raise click.ClickException(f"{data}: there is no such file")
        data = str(Path(data).resolve())
    try:
        run(settings, data, exit_after=exit_after, again=again, report=_report)
    except DemoFailed as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main(prog_name="python -m local")
