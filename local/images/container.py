"""Runs an image as a container engine would: its user, its environment, nothing to write to."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from local.images.buildah import Buildah
from local.settings import SetupError

STOP_SECONDS = 10.0
"""What Cloud Run gives a container between SIGTERM and SIGKILL."""
_POLL_SECONDS = 0.02

# In mount and process namespaces of its own, as process 1: root's last steps before the
# container's user gets to run something.
_ENTER = r"""
root=$1 owner=$2 tmp=$3; shift 3
mount --bind "$root" "$root"
mount -t tmpfs -o mode=755,size=64k dev "$root/dev"
for name in null zero full random urandom; do
  touch "$root/dev/$name"
  mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777,size=64m shm "$root/dev/shm"
for name in hosts resolv.conf; do
  mount --bind "/etc/$name" "$root/etc/$name"
done
mount -t proc proc "$root/proc"
if [ -n "$tmp" ]; then mount -t tmpfs -o "mode=1777,size=$tmp" tmp "$root/tmp"; fi
mount -o remount,bind,ro "$root"
cd "$root"
exec setpriv --no-new-privs chroot --userspec="$owner" --groups= "$root" "$@"
"""


class Container:
    """A running container, whose process is number 1 in its own namespace."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process = process
        self._log = log
        self._started = time.perf_counter()

    def wait_for(self, url: str, *, seconds: float) -> float:
        """Wait until `url` answers 200, and return how long after the start that was.

        Raises:
            SetupError: the container ended, or did not answer in time.
        """
        while time.perf_counter() - self._started < seconds and self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                    return time.perf_counter() - self._started
            time.sleep(_POLL_SECONDS)
        raise SetupError(f"{url} did not answer 200:\n{self._tail()}")

    def wait(self, seconds: float) -> int:
        """Return the exit status once the container has ended by itself.

        Raises:
            SetupError: it did not end in time.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise SetupError(f"not ended after {seconds:.0f} s:\n{self._tail()}") from error

    def age(self) -> float:
        """Return the seconds since its start."""
        return time.perf_counter() - self._started

    def stop(self) -> int:
        """Send SIGTERM, and return the exit status.

        Raises:
            SetupError: it did not end in the time that Cloud Run gives.
        """
        for child in _children(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise SetupError(f"not ended {STOP_SECONDS:.0f} s after SIGTERM") from error

    def output(self) -> str:
        """Return what it has written so far."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """End it with all its processes, if it runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _tail(self) -> str:
        return "\n".join(self.output().splitlines()[-20:])


@contextlib.contextmanager
def running(
    buildah: Buildah,
    image: str,
    *arguments: str,
    environment: Mapping[str, str],
    log: Path,
    tmp: str = "",
    entrypoint: Sequence[str] | None = None,
) -> Iterator[Container]:
    """Run `image` with a read-only root and this machine's network, until the block's end.

    Args:
        buildah: the store that holds it.
        image: its name.
        *arguments: in place of the image's CMD, when there are any.
        environment: beside the image's own.
        log: takes what it writes.
        tmp: size of a /tmp in memory, such as 64m; empty: no place to write but /dev/shm.
        entrypoint: in place of the image's own.

    Raises:
        SetupError: the system's programs for namespaces are missing, or this is not root.
    """
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "chroot"))):
        raise SetupError("containers are started as root, with unshare, setpriv and chroot")
    config = buildah.config(image)
    variables = {**config.environment, **environment}
    with buildah.mounted(image) as root, log.open("wb") as output:
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"),
                *("sh", "-euc", _ENTER, "sh", str(root), config.user, tmp),
                *("env", "-i", f"--chdir={config.working_directory}"),
                *(f"{name}={value}" for name, value in variables.items()),
                *(config.entrypoint if entrypoint is None else entrypoint),
                *(arguments or config.command),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        container = Container(process, log)
        try:
            yield container
        finally:
            container.kill()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
