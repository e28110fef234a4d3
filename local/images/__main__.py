"""Command line: ``python -m local.images [NAME...]`` builds images and starts them."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from local.images.base import STAND_IN, default_base, find_base
from local.images.buildah import Buildah, BuildError
from local.images.checks import CHECKS, Bench, Check
from local.images.installer import build_volumes
from local.settings import ROOT, SetupError

DOCKERFILES = {
    "predict": ROOT / "functions/predict/Dockerfile",
    "trainer": ROOT / "trainer/Dockerfile",
    "proxy": ROOT / "functions/proxy/Dockerfile",
    "promote": ROOT / "functions/promote/Dockerfile",
    "mlflow": ROOT / "mlflow_server/Dockerfile",
    "ui": ROOT / "ui/Dockerfile",
}
_MB = 1e6


@click.command(
    context_settings={"show_default": True, "max_content_width": 100},
    epilog="Images: " + ", ".join(DOCKERFILES) + ".",
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--base",
    help="Base image, such as docker.io/library/python@sha256:...  [default: the one that the "
    "Dockerfile names; one made with debootstrap where no registry can be reached]",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path.home() / ".cache" / "greenroom" / "images",
    show_default="~/.cache/greenroom/images",
    help="Folder that keeps the images and their layers, some gigabytes; may be deleted.",
)
@click.option("--build-only", is_flag=True, help="Build them; start none.")
def main(names: tuple[str, ...], base: str | None, cache: Path, build_only: bool) -> None:
    """Build the container images NAME... (all without one) and start each.

    Nothing but buildah is needed, as root: no container engine. Each is started as its
    user, with a read-only root, asked something, and ended with SIGTERM. The last line
    on standard output is JSON with the figures of the table.
    """
    unknown = [name for name in names if name not in DOCKERFILES]
    if unknown:
        raise click.UsageError(
            f"no image is named {', '.join(unknown)}; there are {', '.join(DOCKERFILES)}"
        )
    try:
        _build_and_start(names or tuple(DOCKERFILES), base, cache, build_only=build_only)
    except (SetupError, BuildError) as error:
        raise click.ClickException(str(error)) from error


def tag(name: str) -> str:
    """Return the name under which the store keeps an image."""
    return f"localhost/greenroom/{name}:latest"


def _build_and_start(
    names: tuple[str, ...], base: str | None, cache: Path, *, build_only: bool
) -> None:
    buildah = Buildah(cache)
    wanted = base or default_base(DOCKERFILES["predict"])
    click.echo(f"base: {wanted}", err=True)
    found = find_base(buildah, wanted, cache)
    if found == STAND_IN:
        click.echo("  can't be reached: Debian's own Python, by debootstrap, instead", err=True)
    arguments = {"BASE": found, **_revision()}
    with build_volumes() as volumes:
        for name in names:
            started = time.monotonic()
            click.echo(f"{name}: build", err=True)
            buildah.build(
                DOCKERFILES[name],
                ROOT,
                tag(name),
                arguments=arguments,
                volumes=volumes,
                log=cache / f"{name}.log",
            )
            click.echo(f"{name}: built in {time.monotonic() - started:.0f} s", err=True)
    checks = {} if build_only else _start(buildah, names)
    _print_table(buildah, names, found, checks)


def _start(buildah: Buildah, names: tuple[str, ...]) -> dict[str, Check]:
    checks = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(buildah, Path(folder))
        try:
            for name in names:
                click.echo(f"{name}: start", err=True)
                try:
                    checks[name] = CHECKS[name](bench, tag(name))
                except SetupError as error:
                    raise SetupError(f"{name}: {error}") from error
        finally:
            bench.stop()
    return checks


def _revision() -> dict[str, str]:
    """Return the build arguments that say which code this is."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"GIT_COMMIT": commit, "GIT_DIRTY": str(bool(changed)).lower()}


def _print_table(
    buildah: Buildah, names: tuple[str, ...], base: str, checks: dict[str, Check]
) -> None:
    """Print what each image weighs, that of the base included; then the same as JSON."""
    row = "{:10} {:>12} {:>14} {:>7}  {}"
    click.echo(row.format("image", "unpacked MB", "compressed MB", "layers", "started"))
    figures = {}
    for name, image in ({"base": base} | {name: tag(name) for name in names}).items():
        with buildah.mounted(image) as root:
            unpacked = round(_size(root) / _MB, 1)
        compressed = round(buildah.compressed_bytes(image) / _MB, 1)
        layers = len(buildah.layers(image))
        check = checks.get(name)
        seen = f"{check.seconds:.1f} s: {check.seen}" if check else ""
        click.echo(row.format(name, unpacked, compressed, layers, seen))
        figures[name] = {
            "unpacked_mb": unpacked,
            "compressed_mb": compressed,
            "layers": layers,
            "started_s": round(check.seconds, 2) if check else None,
        }
    click.echo(json.dumps(figures))


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m local.images"))
