"""Programs in the background that outlive the command that started them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from local.settings import SetupError

# Marks a process as one of this stack's: a pid alone may be another program's by now.
_MARK = "GREENROOM_LOCAL_PROCESS"
_STOP_SECONDS = 30.0
_DYING_SECONDS = 1.0
_BEGINNING_SECONDS = 0.05


@dataclass(frozen=True)
class Program:
    """How to run one program."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    """On top of this process's own."""
    ports: Mapping[str, int]
    """Ports that it listens on, by component; checked to be free before it starts."""
    is_ready: Callable[[], bool]
    working_directory: Path
    start_seconds: float = 120.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_whole_group: bool = True
    """Send the signal to its children as well (else it stops them itself)."""
    user: str | None = None
    """Run as this user; only root can."""


class Processes:
    """The running programs of one stack.

    Args:
        folder: where process ids and logs are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "processes").mkdir(exist_ok=True)

    def log(self, name: str) -> Path:
        """Return the file that takes a program's output."""
        return self._folder / "logs" / f"{name}.log"

    def start(self, program: Program) -> bool:
        """Start a program, unless it runs; return whether it was started.

        It may not be ready yet: see `wait`.

        Raises:
            SetupError: its port is taken, or it can't be executed.
        """
        if self.pid(program.name) is not None:
            return False
        self.check_ports([program])
        with self.log(program.name).open("ab") as log:
            try:
                process = subprocess.Popen(
                    program.command,
                    cwd=program.working_directory,
                    env={**os.environ, **program.environment, _MARK: self._mark(program.name)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    user=program.user,
                    group=program.user,
                    extra_groups=None if program.user is None else [],
                )
            except OSError as error:
                raise SetupError(f"{program.name} can't be started: {error}") from error
        stop_whole_group = program.stop_whole_group
        self._record(program.name).write_text(
            json.dumps(
                {
                    "pid": process.pid,
                    "stop_signal": program.stop_signal.value,
                    "stop_whole_group": stop_whole_group,
                }
            )
        )
        return True

    def check_ports(self, programs: Sequence[Program]) -> None:
        """Check that the ports of those programs that do not run are free.

        Raises:
            SetupError: some are not; the message names all of them.
        """
        # A program that was just killed holds its ports until the kernel has cleared it away.
        deadline = time.monotonic() + _DYING_SECONDS
        while (taken := self._taken(programs)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if taken:
            listed = ", ".join(f"{port} ({name})" for name, port in taken.items())
            options = " ".join(f"--port {name}=NUMBER" for name in taken)
            raise SetupError(
                f"in use by another program: port {listed}. Stop that, or choose other ports "
                f"with {options}, or with --free-ports"
            )

    def _taken(self, programs: Sequence[Program]) -> dict[str, int]:
        return {
            name: port
            for program in programs
            if self.pid(program.name) is None
            for name, port in program.ports.items()
            if _is_taken(port)
        }

    def wait(self, program: Program) -> None:
        """Wait until a program is ready.

        Raises:
            SetupError: it ended, or was not ready in time; the message has its last words.
        """
        deadline = time.monotonic() + program.start_seconds
        while time.monotonic() < deadline:
            if self.pid(program.name) is None:
                raise SetupError(f"{program.name} ended at its start:\n{self._tail(program.name)}")
            if program.is_ready():
                return
            time.sleep(0.05)
        raise SetupError(
            f"{program.name} was not ready within {program.start_seconds:.0f} s:\n"
            f"{self._tail(program.name)}"
        )

    def pid(self, name: str) -> int | None:
        """Return the process id of a program, or None when it does not run."""
        record = self._read(name)
        if record is None:
            return None
        pid = record["pid"]
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # a child that has ended is a zombie until then
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if not environment:
                # Of a process that has only begun it is empty for a moment.
                time.sleep(_BEGINNING_SECONDS)
                environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return None
        return pid if f"{_MARK}={self._mark(name)}".encode() in environment.split(b"\0") else None

    def stop(self, name: str) -> bool:
        """Stop a program and its children; return whether it ran."""
        pid = self.pid(name)
        record = self._read(name)
        if pid is None or record is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            send = os.killpg if record["stop_whole_group"] else os.kill
            send(pid, record["stop_signal"])
        deadline = time.monotonic() + _STOP_SECONDS
        while self.pid(name) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        # What is left of its group, wrappers' children above all.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        self._record(name).unlink(missing_ok=True)
        return True

    def _tail(self, name: str) -> str:
        try:
            lines = self.log(name).read_text(errors="replace").splitlines()[-15:]
        except OSError:
            lines = []
        return "\n".join(f"  {line}" for line in [*lines, f"(all of it: {self.log(name)})"])

    def _record(self, name: str) -> Path:
        return self._folder / "processes" / f"{name}.json"

    def _read(self, name: str) -> dict[str, int] | None:
        try:
            record: dict[str, int] = json.loads(self._record(name).read_text())
        except (OSError, ValueError):
            return None
        return record

    def _mark(self, name: str) -> str:
        return f"{self._folder}:{name}"


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last connections are closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
