"""Compile ``bag_linear.pyx`` into a module beside it: ``python -m functions.predict.compile``.

Needs Cython and a C++ compiler, which ``CXX`` may name; what runs needs neither.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("bag_linear.pyx")
TARGET = SOURCE.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))

# The C++ library goes into the module, which then runs wherever Python does.
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fwrapv"),
    *("-Wall", "-Wno-unused-function", "-Werror=return-type"),
    *("-static-libstdc++", "-static-libgcc", "-Wl,--strip-all"),
)


def compile_module() -> None:
    """Write the compiled module.

    Raises:
        subprocess.CalledProcessError: it can't be compiled; what is wrong is on standard error.
        OSError: there is no compiler.
    """
    with tempfile.TemporaryDirectory(dir=SOURCE.parent) as folder:
        translated = Path(folder) / "bag_linear.cpp"
        module = Path(folder) / "module.so"
        subprocess.run(  # noqa: S603
            [sys.executable, "-m", "cython", "--cplus", "--output-file", translated, SOURCE],
            check=True,
        )
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        include = f"-I{sysconfig.get_path('include')}"
        flags = shlex.split(os.environ.get("CXXFLAGS", ""))
        subprocess.run(  # noqa: S603
            [*compiler, include, translated, *_FLAGS, *flags, "-o", module], check=True
        )
        # At once: what runs keeps the file that it has.
        module.replace(TARGET)


def main() -> None:
    """Compile, or end with status 1 and say what is missing."""
    try:
        compile_module()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{SOURCE.name} can't be compiled: {error.cmd[0]} ended with {error.returncode}")
    except OSError as error:
        sys.exit(
            f"{SOURCE.name} can't be compiled: {error}; install a C++ compiler and Python's "
            "headers (Debian: g++ and python3-dev), or name a compiler in CXX"
        )


if __name__ == "__main__":
    main()
