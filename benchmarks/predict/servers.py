"""The servers that are compared, each started as it is in production."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.predict.load import Target, ask
from local.settings import free_port

ROOT = Path(__file__).parents[2]
PREDICT_PYTHON = ROOT / ".venvs/predict/bin/python"

_START_SECONDS = 60
_STOP_SECONDS = 15


@dataclass(frozen=True)
class Kind:
    """One way to serve the model.

    Attributes:
        name: as the table shows it.
        command: the port -> the command line.
        environment: beside ``PATH``.
        path: of its predictions.
        body: a text -> the question.
        score: an answer's body -> the score; None: it gives none.
    """

    name: str
    command: Callable[[int], Sequence[str]]
    environment: Mapping[str, str]
    path: str = "/predict"
    body: Callable[[str], bytes] = lambda text: json.dumps({"text": text}).encode()
    score: Callable[[bytes], float] | None = lambda answer: float(json.loads(answer)["score"])


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    kind: Kind
    port: int
    process: "subprocess.Popen[bytes]"
    ready_seconds: float
    """From the start of its process to its first right answer."""

    def target(self, texts: Sequence[str], query: str = "") -> Target:
        """Return where and how `texts` are asked."""
        return Target(self.port, self.kind.path + query, [self.kind.body(text) for text in texts])

    def batch_target(self, texts: Sequence[str], size: int, query: str = "") -> Target:
        """Return where and how `texts` are asked, `size` at a time."""
        batches = [texts[at : at + size] for at in range(0, len(texts), size)]
        bodies = [json.dumps({"texts": batch}).encode() for batch in batches]
        return Target(self.port, f"{self.kind.path}:batch{query}", bodies)

    def cpu_seconds(self) -> float:
        """Return the CPU time that its processes have taken."""
        return sum(sum(item.cpu_times()[:2]) for item in self._processes())

    def memory(self) -> tuple[float, float]:
        """Return the memory of its processes in MB: resident, and with shared pages split (PSS)."""
        infos = [item.memory_full_info() for item in self._processes()]
        return sum(item.rss for item in infos) / 1e6, sum(item.pss for item in infos) / 1e6

    def _processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]


@contextmanager
def running(
    kind: Kind, log: Path, *, text: str, score: float, cores: Sequence[int]
) -> Iterator[Server]:
    """Start a server, wait for its first right answer, and stop it at the end of the block.

    Args:
        kind: what to start.
        log: file that takes its output.
        text: of the first question.
        score: that a right answer to it has.
        cores: that it may run on.

    Raises:
        RuntimeError: it ended, did not answer in a minute, or answered wrongly.
    """
    port = free_port()
    target = Target(port, kind.path, [])
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603
            ["taskset", "--cpu-list", ",".join(map(str, cores)), *kind.command(port)],  # noqa: S607
            cwd=ROOT,
            # mlflow looks for uvicorn there.
            env={
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                **kind.environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while True:
            try:
                answer = ask(target, kind.body(text))
                break
            except OSError as error:
                waited = time.perf_counter() - started
                if process.poll() is not None or waited > _START_SECONDS:
                    output_so_far = log.read_text()[-3000:]
                    raise RuntimeError(f"{kind.name} did not start:\n{output_so_far}") from error
                time.sleep(0.005)
        ready_seconds = time.perf_counter() - started
        if kind.score and abs(kind.score(answer) - score) > 1e-5:
            raise RuntimeError(f"{kind.name}: a score of {kind.score(answer)} instead of {score}")
        yield Server(kind, port, process, ready_seconds)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(_STOP_SECONDS)


def predict(uri: str, storage: str) -> Kind:
    """Return predict, from its own environment."""
    return Kind(
        "predict",
        lambda port: [
            *(str(PREDICT_PYTHON), "-m", "functions.predict"),
            *("--host=127.0.0.1", f"--port={port}", "--workers=1"),
            *(f"--model-uri={uri}", "--model-version=1"),
        ],
        {"STORAGE_EMULATOR_HOST": storage},
    )


def torch_server(uri: str, storage: str) -> Kind:
    """Return baseline (a): see `benchmarks.predict.torch_server`."""
    return Kind(
        "(a) torch server",
        lambda port: [
            *(sys.executable, "-m", "uvicorn", "benchmarks.predict.torch_server:app"),
            *("--host=127.0.0.1", f"--port={port}"),
            *("--workers=1", "--loop=uvloop", "--http=httptools"),
        ],
        {"STORAGE_EMULATOR_HOST": storage, "MODEL_URI": uri},
    )


def mlflow_serve(model: str, registry: str) -> Kind:
    """Return baseline (b): MLflow's own server with the registered model."""
    return Kind(
        "(b) mlflow serve",
        lambda port: [
            *(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model),
            *("--env-manager", "local", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        {"MLFLOW_TRACKING_URI": registry},
        path="/invocations",
        body=lambda text: json.dumps(
            {"dataframe_split": {"columns": ["text"], "data": [[text]]}}
        ).encode(),
        score=lambda answer: float(json.loads(answer)["predictions"][0]),
    )


def empty_function(answer_bytes: int, python: Path, *, name: str = "(c) empty function") -> Kind:
    """Return baseline (c): a function that does nothing.

    Args:
        answer_bytes: size of its answer.
        python: of an environment that has functions-framework.
        name: as the table shows it.
    """
    return Kind(
        name,
        lambda port: [
            str(python.with_name("functions-framework")),
            *("--source", str(Path(__file__).with_name("empty_function.py"))),
            *("--target", "empty", "--asgi", "--host", "127.0.0.1", "--port", str(port)),
        ],
        {"ANSWER_BYTES": str(answer_bytes), "WORKERS": "1"},
        path="/",
        score=None,
    )


def static_server(answer_bytes: int) -> Kind:
    """Return what shows how much wrk itself can do."""
    return Kind(
        "wrk's ceiling",
        lambda port: [
            *(sys.executable, "-m", "benchmarks.predict.static_server"),
            *(str(port), str(answer_bytes)),
        ],
        {},
        score=None,
    )
