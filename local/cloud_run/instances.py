"""Revisions as processes: start, probe, drain, stop, start again.

A revision has one instance at most. It counts the requests in flight itself, so
that nobody stops an instance that a request has been promised.
"""

import asyncio
import contextlib
import logging
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import aiohttp

logger = logging.getLogger(__name__)

# Every container's environment carries it; leftovers of a killed stand-in are
# found by it.
MARKER = "CLOUD_RUN_STAND_IN"

# Cloud Run's grace between SIGTERM and SIGKILL.
TERMINATION_SECONDS = 10

_LAST_BREATH_SECONDS = 0.2
_PROBE_INTERVAL_SECONDS = 0.03
_LONGEST_BACKOFF_SECONDS = 30
_STABLE_SECONDS = 30
# Below the range that the kernel takes outgoing ports from: a connection to
# elsewhere can't sit on a port between its choice and the container's bind.
_PORTS = range(20_000, 32_768)

_LAUNCH = str(Path(__file__).with_name("launch.py"))


class StartFailure(Exception):
    """An instance did not start; the message names the cause."""

    def __init__(self, message: str, *, image_missing: bool = False) -> None:
        super().__init__(message)
        self.image_missing = image_missing


@dataclass(frozen=True)
class StartupProbe:
    """When an instance counts as started.

    Attributes:
        path: path of an HTTP probe; None for TCP.
        headers: of the HTTP probe.
        initial_delay_seconds: before the first try.
        timeout_seconds: of one try.
        window_seconds: from the first try until the probe has failed.
    """

    path: str | None
    headers: tuple[tuple[str, str], ...]
    initial_delay_seconds: float
    timeout_seconds: float
    window_seconds: float


@dataclass(frozen=True)
class ContainerSpec:
    """What a revision runs.

    Attributes:
        revision: short name, for logs.
        image: the image reference.
        argv: command line; None when the image is not known.
        working_directory: where it starts.
        environment: complete, but for PORT and what says who the instance is.
        startup_probe: when it counts as started.
        always_on: never stopped for being idle while it has traffic.
        log_path: takes the output, appended.
    """

    revision: str
    image: str
    argv: tuple[str, ...] | None
    working_directory: Path
    environment: dict[str, str]
    startup_probe: StartupProbe
    always_on: bool
    log_path: Path


@dataclass(eq=False)
class Instance:
    """A process that runs, and the loopback port on which it serves."""

    process: asyncio.subprocess.Process
    port: int
    started_at: float

    def has_ended(self) -> bool:
        """Whether the process is gone, asked of the kernel: its report takes a moment."""
        if self.process.returncode is not None:
            return True
        try:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.process.pid, options) is not None
        except ChildProcessError:
            return True


class Revision:
    """The processes of one revision.

    Args:
        spec: what it runs.
        identity: gives the variables that say who an instance is; awaited with each start.
        startup_timeout_seconds: upper bound of the startup probe's window.
        drain_seconds: longest wait for requests in flight, once it lost its routes.
    """

    def __init__(
        self,
        spec: ContainerSpec,
        *,
        identity: Callable[[], Awaitable[dict[str, str]]],
        startup_timeout_seconds: float,
        drain_seconds: float,
    ) -> None:
        self.spec = spec
        self._identity = identity
        self.in_flight = 0
        self.routed = False
        self._startup_timeout_seconds = startup_timeout_seconds
        self._drain_seconds = drain_seconds
        self._last_used = time.monotonic()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._current: Instance | None = None
        self._starting: asyncio.Task[Instance] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._crashes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # Requests

    def enter(self) -> None:
        """Count a request in; from here until `leave` no instance it may use is stopped."""
        self.in_flight += 1
        self._quiet.clear()

    def leave(self) -> None:
        """Count a request out."""
        self.in_flight -= 1
        self._last_used = time.monotonic()
        if self.in_flight == 0:
            self._quiet.set()

    async def instance(self) -> Instance:
        """A running instance; starts one, or waits for one that starts.

        Raises:
            StartFailure: it did not start.
        """
        if self._current is not None:
            if not self._current.has_ended():
                return self._current
            # Its end was not reported yet.
            self._current = None
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(self._start_ended)
        # Shielded: a request that goes away does not stop a start that others wait for.
        return await asyncio.shield(self._starting)

    async def broke_off(self, instance: Instance) -> None:
        """Wait a moment for the end of an instance that broke off a request.

        A dying process takes connections until its last socket is closed; the client
        that is told of the failure may come back sooner.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(instance.process.wait(), _LAST_BREATH_SECONDS)

    def lost(self, instance: Instance) -> None:
        """Give up an instance that refuses connections; the next request starts another."""
        if self._current is instance:
            self._retire_current()

    # Routes

    def set_routed(self, routed: bool, *, eager: bool = False) -> None:
        """Follow a change of traffic and tags.

        Args:
            routed: whether any request can reach the revision from now on. Losing this
                starts draining: requests in flight end, then the instance is stopped.
            eager: start an instance now rather than with the first request.
        """
        if routed and self._draining is not None:
            self._draining.cancel()
            self._draining = None
        if self.routed and not routed:
            self._draining = asyncio.create_task(self._drain())
        self.routed = routed
        if eager and self._current is None and self._starting is None:
            self._spawn(self._start_quietly())

    def stop_if_idle(self, idle_seconds: float) -> None:
        """Scale to zero when no request came for `idle_seconds`."""
        if self.in_flight or self._current is None or (self.routed and self.spec.always_on):
            return
        if time.monotonic() - self._last_used >= idle_seconds:
            logger.info("idle: instance stops", extra={"revision": self.spec.revision})
            self._retire_current()

    async def drained(self) -> None:
        """Wait, `drain_seconds` at most, until no request is in flight."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), self._drain_seconds)

    async def stop(self) -> None:
        """Stop everything and wait until it is gone."""
        self.routed = False
        for task in (self._draining, self._restarting, self._starting):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, StartFailure):
                    await task
        if self._current is not None:
            self._retire_current()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # Processes

    async def _start(self) -> Instance:
        spec = self.spec
        if spec.argv is None:
            raise StartFailure(
                f"Image '{spec.image}' not found: the stand-in's configuration has no such image.",
                image_missing=True,
            )
        # Looked up as the container's process will, to tell this mistake from an exit.
        program = self.spec.working_directory / spec.argv[0]
        search = spec.environment.get("PATH")
        if shutil.which(program if "/" in spec.argv[0] else spec.argv[0], path=search) is None:
            raise StartFailure(f"Container failed to start: {spec.argv[0]} is no program.")
        port = _free_port()
        try:
            process = await self._execute(spec.argv, port)
        except OSError as error:
            raise StartFailure(f"Container failed to start: {error}.") from error
        instance = Instance(process, port, time.monotonic())
        try:
            await self._await_startup(instance)
        except BaseException:
            self._spawn(self._terminate(instance))
            raise
        self._current = instance
        self._last_used = time.monotonic()
        self._spawn(self._watch(instance))
        logger.info(
            "instance started",
            extra={"revision": spec.revision, "pid": process.pid, "port": port},
        )
        return instance

    def _start_ended(self, task: asyncio.Task[Instance]) -> None:
        if self._starting is task:
            self._starting = None
        # Looked at here, so that a start which nobody waits for any more is no warning.
        if not task.cancelled():
            task.exception()

    async def _execute(self, argv: tuple[str, ...], port: int) -> asyncio.subprocess.Process:
        identity = await self._identity()
        self.spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.spec.log_path.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", _LAUNCH, str(os.getpid()), *argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.spec.working_directory,
                env={**self.spec.environment, **identity, "PORT": str(port)},
                # Own group, so that a server's workers can be killed with it.
                start_new_session=True,
            )

    async def _await_startup(self, instance: Instance) -> None:
        probe = self.spec.startup_probe
        window = min(
            self._startup_timeout_seconds, probe.initial_delay_seconds + probe.window_seconds
        )
        exit_ = asyncio.create_task(instance.process.wait())
        answer = asyncio.create_task(_probe_until_up(probe, instance.port))
        try:
            await asyncio.wait({exit_, answer}, timeout=window, return_when=asyncio.FIRST_COMPLETED)
            if exit_.done():
                raise StartFailure(
                    f"Container called exit({exit_.result()}) before it was ready. "
                    f"Log: {self.spec.log_path}"
                )
            if not answer.done():
                what = (
                    "listen on the port defined by the PORT environment variable"
                    if probe.path is None
                    else f"answer the startup probe at {probe.path}"
                )
                raise StartFailure(
                    f"Container failed to start and {what} within {window:g} seconds. "
                    f"Log: {self.spec.log_path}"
                )
        finally:
            exit_.cancel()
            answer.cancel()

    async def _watch(self, instance: Instance) -> None:
        status = await instance.process.wait()
        _kill_group(instance.process.pid)
        if self._current is not instance:
            return
        self._current = None
        logger.error(
            "instance ended by itself",
            extra={"revision": self.spec.revision, "status": status},
        )
        lived = time.monotonic() - instance.started_at
        self._crashes = 0 if lived >= _STABLE_SECONDS else self._crashes + 1
        if self.routed:
            self._restarting = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        while self.routed and self._current is None:
            backoff = min(_LONGEST_BACKOFF_SECONDS, 0.25 * 2 ** min(self._crashes, 10))
            await asyncio.sleep(backoff)
            if not self.routed:
                return
            try:
                await self.instance()
            except StartFailure as failure:
                self._crashes += 1
                logger.error(
                    "instance did not start again",
                    extra={"revision": self.spec.revision, "cause": str(failure)},
                )

    async def _start_quietly(self) -> None:
        # A failure has been, or will be, told to a request that needs the instance.
        with contextlib.suppress(StartFailure, asyncio.CancelledError):
            await self.instance()

    async def _drain(self) -> None:
        await self.drained()
        if self._starting is not None:
            with contextlib.suppress(StartFailure):
                await asyncio.shield(self._starting)
        if self._current is not None:
            logger.info("drained: instance stops", extra={"revision": self.spec.revision})
            self._retire_current()

    def _retire_current(self) -> None:
        instance, self._current = self._current, None
        if instance is not None:
            self._spawn(self._terminate(instance))

    async def _terminate(self, instance: Instance) -> None:
        process = instance.process
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), TERMINATION_SECONDS)
        except TimeoutError:
            logger.warning(
                "instance ignored SIGTERM: killed", extra={"revision": self.spec.revision}
            )
        _kill_group(process.pid)
        await process.wait()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _free_port() -> int:
    while True:
        port = random.choice(_PORTS)  # noqa: S311 (no secret)
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


async def _probe_until_up(probe: StartupProbe, port: int) -> None:
    await asyncio.sleep(probe.initial_delay_seconds)
    if probe.path is None:
        while True:
            if await _accepts(port, probe.timeout_seconds):
                return
            await asyncio.sleep(_PROBE_INTERVAL_SECONDS)
    timeout = aiohttp.ClientTimeout(total=probe.timeout_seconds)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while True:
            if await _answers(session, probe, port):
                return
            await asyncio.sleep(_PROBE_INTERVAL_SECONDS)


async def _accepts(port: int, timeout_seconds: float) -> bool:
    try:
        async with asyncio.timeout(timeout_seconds):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    return True


async def _answers(session: aiohttp.ClientSession, probe: StartupProbe, port: int) -> bool:
    try:
        async with session.get(
            f"http://127.0.0.1:{port}{probe.path}",
            headers=dict(probe.headers),
            allow_redirects=False,
        ) as response:
            return 200 <= response.status < 400
    except (aiohttp.ClientError, OSError):
        return False


def kill_leftovers(marker: str) -> int:
    """Kill containers of an earlier stand-in that was itself killed.

    Args:
        marker: value of `MARKER` in their environment.

    Returns:
        How many processes were killed.
    """
    wanted = f"{MARKER}={marker}".encode()
    killed = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in variables:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(entry.name), signal.SIGKILL)
                killed += 1
    return killed
