"""The base image: from its registry, or made here where no registry can be reached."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from local.images.buildah import Buildah, BuildError
from local.settings import SetupError

# Debian's release that the base is made of: its Python is 3.11 too.
RELEASE = "bookworm"
STAND_IN = "localhost/greenroom-base:bookworm"

# Nothing in a container reads these.
_SUPERFLUOUS = ("dev", "usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache", "var/log")


def default_base(dockerfile: Path) -> str:
    """Return the base image that a Dockerfile names."""
    [name] = re.findall(r"^ARG BASE=(\S+)$", dockerfile.read_text(), re.MULTILINE)
    return f"docker.io/library/{name}"


def find_base(buildah: Buildah, wanted: str, cache: Path) -> str:
    """Return the image to build upon, now in the store: `wanted`, or the stand-in for it.

    Args:
        buildah: the store.
        wanted: full name of the image in its registry.
        cache: folder for what is made on the way.

    Raises:
        SetupError: there is neither.
    """
    if buildah.has(wanted) or buildah.pull(wanted):
        return wanted
    if not buildah.has(STAND_IN):
        _make_stand_in(buildah, cache)
    return STAND_IN


def _make_stand_in(buildah: Buildah, cache: Path) -> None:
    if shutil.which("debootstrap") is None:
        raise SetupError(
            "no registry gives the base image, and the stand-in for it is made with debootstrap: "
            "install debootstrap"
        )
    # Not in /tmp, which may forbid the device files that Debian's packages need.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        root = Path(folder)
        packages = "--include=ca-certificates,python3.11"
        # The system's own programs, which a user's PATH may lack.
        command = ["debootstrap", "--variant=minbase", packages, RELEASE, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
            raise BuildError(f"debootstrap failed:\n{last}")
        _shape(root)
        buildah.import_folder(root, STAND_IN)


def _shape(root: Path) -> None:
    """Make a Debian into what the official image is: `python`, pip, no bytecode."""
    for name in _SUPERFLUOUS:
        shutil.rmtree(root / name)
        (root / name).mkdir()
    for path in (root / "var/lib/apt/lists").iterdir():
        if path.is_file():
            path.unlink()
    for path in (root / "usr/lib").rglob("*.pyc"):
        path.unlink()
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3.11")
    # Files to bind the host's to; an engine makes them.
    for name in ("hosts", "resolv.conf"):
        path = root / "etc" / name
        path.unlink(missing_ok=True)
        path.touch()
    target = root / "usr/local/lib/python3.11/dist-packages"
    version = importlib.metadata.version("pip")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*command, f"--target={target}", f"pip=={version}"], check=True)
    # pip may change what lies in /usr/local: nothing else there is Debian's.
    for path in (root / "usr/lib/python3.11").glob("EXTERNALLY-MANAGED"):
        path.unlink()
