"""Becomes a container's process, one that dies with the stand-in.

Run as a script, ``python -I -S launch.py PARENT_PID PROGRAM ARGUMENTS...``: it asks the
kernel for SIGKILL when the parent ends, then executes the program under the same
process id. A `preexec_fn` would do the same without a program between, but it makes
Python fork in earnest, and gRPC's fork handlers crash the child now and then.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, argv: list[str]) -> None:
    """Does not return: becomes `argv`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It ended before the kernel was asked.
        sys.exit(1)
    # Python ignores it, and what is ignored stays so across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(argv[0], argv)  # noqa: S606 (no shell wanted)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
