"""Read the bundle in a child process, while this one imports its server.

Google's client library takes 0.2 s and 40 MB, the server as long: side by side, on
the two CPUs of Cloud Run's start-up boost, a cold start is shorter by a third, and the
process that serves never holds the library.
"""

import contextlib
import json
import mmap
import os
import select
import signal
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

if TYPE_CHECKING:
    from functions.predict.bundle import Bundle

# For the child to say what was wrong when its own time is up.
_GRACE_SECONDS = 10.0


class Loading:
    """A bundle that is being read; a context manager that ends the reading.

    Forks: make it before the process has threads.

    Args:
        uri: ``gs://BUCKET/PATH``, with or without a slash at its end; empty: there is
            nothing to read.
        timeout: seconds to keep trying for, with back-off.
    """

    def __init__(self, uri: str, *, timeout: float) -> None:
        self._uri = uri
        if not uri:
            return
        self._deadline = time.monotonic() + timeout + _GRACE_SECONDS
        self._content = os.memfd_create("bundle")
        self._report, report = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            _read_and_exit(uri, self._content, report, timeout)
        os.close(report)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._uri:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        os.close(self._report)
        os.close(self._content)

    def bundle(self) -> "Bundle | None":
        """Wait for the files and return the bundle, verified; None: there is none.

        Raises:
            BundleError: it is missing, can't be read, or is not valid. The message
                names the file.
        """
        if not self._uri:
            return None
        from functions.predict.bundle import BundleError, read_bundle

        report = self._wait()
        if "files" not in report:
            reason = report.get("error", f"{self._uri}: can't be read: the reading ended early")
            raise BundleError(reason)
        places: Mapping[str, tuple[int, int]] = report["files"]
        content = memoryview(mmap.mmap(self._content, 0, prot=mmap.PROT_READ))
        # Not copied: the scorer keeps the vocabulary where the child wrote it.
        return read_bundle(
            {name: content[offset : offset + size] for name, (offset, size) in places.items()}
        )

    def _wait(self) -> dict[str, Any]:
        report = b""
        while select.select([self._report], [], [], max(0, self._deadline - time.monotonic()))[0]:
            piece = os.read(self._report, 65_536)
            if not piece:
                # Nothing, or not all of it, from a child that was killed.
                with contextlib.suppress(ValueError):
                    result: dict[str, Any] = json.loads(report)
                    return result
                return {}
            report += piece
        return {"error": f"{self._uri}: can't be read: no answer in time"}


def _read_and_exit(uri: str, content: int, report: int, timeout: float) -> NoReturn:
    """Run in the child: write the files to `content` and, last, their places to `report`."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        from functions.predict.bundle import BundleError
        from functions.predict.storage import download_bundle

        try:
            result: dict[str, Any] = {"files": download_bundle(uri, content, timeout=timeout)}
        except BundleError as error:
            result = {"error": str(error)}
        with os.fdopen(report, "wb") as pipe:
            pipe.write(json.dumps(result).encode())
        status = 0
    except Exception:
        import traceback

        traceback.print_exc()
    finally:
        # Not by way of the parent's exit handlers.
        os._exit(status)
