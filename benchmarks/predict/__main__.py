"""Measure predict beside three other ways to serve the same model: ``make bench-predict``."""

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import mlflow
import psutil
from mlflow.models import Model as LoggedModel

from benchmarks.predict import load, servers
from benchmarks.predict.model import Language, Model, make_large_bundle, make_model
from benchmarks.predict.servers import PREDICT_PYTHON, ROOT, Kind, Server, running
from local.settings import free_port
from tests.emulators import StorageEmulator
from trainer import flavor

SERVER_CORE, LOAD_CORE = 0, 1
CONNECTIONS = 16
REVIEWS = 500
TEXTS_IN_A_BATCH = 20
SHARE_OF_MAXIMUM = 0.7
BUCKET = "serving"
UV = ROOT / ".venvs/setup/bin/uv"
LOCK = ROOT / "functions/predict/requirements.lock"
# Below this share, (a) / (c) is explained.
LOW_SHARE = 0.2


class Size(NamedTuple):
    """How much is measured."""

    ngrams: int = 100_000
    large_ngrams: int = 5_000_000
    rounds: int = 5
    seconds: float = 5
    starts: int = 5
    requests: int = 10_000
    image: bool = True


QUICK = Size(
    ngrams=2_000, large_ngrams=20_000, rounds=1, seconds=1, starts=1, requests=300, image=False
)


class Row(NamedTuple):
    """A figure beside what it must be at least."""

    figure: str
    value: str
    bar: str
    is_met: bool | None


class Bench:
    """The measurements, each a method; `figures` holds what they found, and `scorer` whose.

    Args:
        size: how much is measured.
        folder: for everything that is written.
    """

    def __init__(self, size: Size, folder: Path) -> None:
        self.figures: dict[str, float] = {}
        self.scorer = ""
        self._size = size
        self._folder = folder
        _say("making the model and its reviews")
        language = Language(seed=0)
        self._model = make_model(language, size.ngrams)
        self._language = language
        self._texts = [language.review() for _ in range(REVIEWS)]
        self._score = self._model.bundle.scorer.score(self._texts[0])
        self._storage = StorageEmulator(free_port(), folder / "storage.log")

    def run(self) -> None:
        """Measure everything."""
        self._storage.start()
        try:
            bundle_uri = self._storage.upload(BUCKET, "bundle", self._model.bundle_files)
            torch_uri = self._storage.upload(BUCKET, "torch", self._model.torch_files)
            kinds = {
                "predict": servers.predict(bundle_uri, self._storage.url),
                "torch": servers.torch_server(torch_uri, self._storage.url),
                "mlflow": servers.mlflow_serve(*_register(self._model, self._folder)),
            }
            self._measure_start(kinds["predict"], kinds["torch"])
            self._measure_memory(kinds["predict"], kinds["torch"])
            self._measure_load(kinds)
            self._measure_scorer()
            self._measure_installed()
            self._measure_large()
            if self._size.image:
                self._measure_image()
        finally:
            self._storage.kill()

    def _start(self, stack: ExitStack, kind: Kind, cores: Sequence[int]) -> Server:
        log = self._folder / f"{kind.name.split()[0]}.log"
        return stack.enter_context(
            running(kind, log, text=self._texts[0], score=self._score, cores=cores)
        )

    def _measure_start(self, predict: Kind, torch: Kind) -> None:
        # Both cores, as Cloud Run's start-up boost gives; then one, as without it.
        for cores in ([SERVER_CORE, LOAD_CORE], [SERVER_CORE]):
            _say(f"cold starts on {len(cores)} core{'s' * (len(cores) > 1)}")
            seconds: dict[str, list[float]] = {"predict": [], "torch": []}
            for turn in range(self._size.starts + 1):
                for name, kind in (("torch", torch), ("predict", predict)):
                    with ExitStack() as stack:
                        ready = self._start(stack, kind, cores).ready_seconds
                    if turn:  # the first one reads the disk
                        seconds[name].append(ready)
            own, other = statistics.median(seconds["predict"]), statistics.median(seconds["torch"])
            key = "cold_start" if len(cores) > 1 else "cold_start_one_core"
            self.figures[f"{key}_s"] = own
            self.figures[f"{key}_torch_server_s"] = other
            self.figures[f"{key}_vs_torch_server"] = own / other

    def _measure_memory(self, predict: Kind, torch: Kind) -> None:
        _say(f"memory after {self._size.requests:,} requests, and after twice as many")
        for name, kind in (("predict", predict), ("torch_server", torch)):
            with ExitStack() as stack:
                server = self._start(stack, kind, [SERVER_CORE])
                target = server.target(self._texts)
                for key in ("", "_later"):
                    load.latencies(
                        target, count=self._size.requests, rate=math.inf, connections=CONNECTIONS
                    )
                    resident, proportional = server.memory()
                    self.figures[f"rss{key}_{name}_mb"] = resident
                    self.figures[f"pss{key}_{name}_mb"] = proportional
        self.figures["rss_vs_torch_server"] = (
            self.figures["rss_predict_mb"] / self.figures["rss_torch_server_mb"]
        )

    def _measure_load(self, kinds: dict[str, Kind]) -> None:
        with ExitStack() as stack:
            started = {
                name: self._start(stack, kind, [SERVER_CORE]) for name, kind in kinds.items()
            }
            target = started["predict"].target(self._texts)
            answer_bytes = round(
                statistics.fmean(len(load.ask(target, body)) for body in target.bodies)
            )
            for name, kind in (
                ("empty", servers.empty_function(answer_bytes, self._plain_framework())),
                (
                    "empty_uvloop",
                    servers.empty_function(answer_bytes, PREDICT_PYTHON, name="(c+) empty, uvloop"),
                ),
                ("static", servers.static_server(answer_bytes)),
            ):
                started[name] = self._start(stack, kind, [SERVER_CORE])
            targets = {name: server.target(self._texts) for name, server in started.items()}
            predict = started["predict"]
            for name, target in (
                ("explain", predict.target(self._texts, "?explain=true")),
                ("batch", predict.batch_target(self._texts, TEXTS_IN_A_BATCH)),
                (
                    "batch_explain",
                    predict.batch_target(self._texts, TEXTS_IN_A_BATCH, "?explain=true"),
                ),
            ):
                started[name] = predict
                targets[name] = target
            rates = self._rates(started, targets)
            self._compare_latency(targets, SHARE_OF_MAXIMUM * rates["torch"])
            self._measure_inference(targets)
        self.figures |= {f"rps_{name}": rate for name, rate in rates.items()} | {
            "rps_vs_torch_server": rates["predict"] / rates["torch"],
            "rps_vs_mlflow_serve": rates["predict"] / rates["mlflow"],
            "rps_vs_empty_function": rates["predict"] / rates["empty"],
            "rps_vs_empty_function_uvloop": rates["predict"] / rates["empty_uvloop"],
            "torch_server_vs_empty_function": rates["torch"] / rates["empty"],
            "explain_vs_plain_cpu": self.figures["cpu_explain_us"] / self.figures["cpu_predict_us"],
            "batch_explain_vs_plain_cpu": (
                self.figures["cpu_batch_explain_us"] / self.figures["cpu_batch_us"]
            ),
        }

    def _plain_framework(self) -> Path:
        """Return the Python of an environment with functions-framework, as pip installs it."""
        folder = self._folder / "plain"
        subprocess.run([UV, "venv", "--quiet", "--python", PREDICT_PYTHON, folder], check=True)  # noqa: S603
        python = folder / "bin/python"
        subprocess.run(  # noqa: S603
            [
                *(UV, "pip", "install", "--quiet", "--python", python),
                *("--constraint", LOCK, "functions-framework"),
            ],
            check=True,
        )
        return python

    def _rates(
        self, started: dict[str, Server], targets: dict[str, load.Target]
    ) -> dict[str, float]:
        _say(f"requests a second: {self._size.rounds} rounds of {self._size.seconds:g} s each")
        rounds: dict[str, list[float]] = {name: [] for name in targets}
        cpu: dict[str, list[float]] = {name: [] for name in targets}
        for turn in range(self._size.rounds + 1):
            for name, target in targets.items():
                seconds = self._size.seconds if turn else 1
                before = started[name].cpu_seconds()
                rate = load.requests_a_second(
                    target,
                    self._folder,
                    seconds=seconds,
                    connections=CONNECTIONS,
                    core=LOAD_CORE,
                )
                if turn:  # the first one is for warming up
                    rounds[name].append(rate)
                    cpu[name].append((started[name].cpu_seconds() - before) / (rate * seconds))
        # What a busy machine takes from a server shows in its rate, not here.
        self.figures |= {
            f"cpu_{name}_us": statistics.median(times) * 1e6 for name, times in cpu.items()
        }
        for name in ("batch", "batch_explain"):
            a_text = self.figures[f"cpu_{name}_us"] / TEXTS_IN_A_BATCH
            self.figures[f"cpu_{name}_a_text_us"] = a_text
        return {name: statistics.median(rates) for name, rates in rounds.items()}

    def _compare_latency(self, targets: dict[str, load.Target], rate: float) -> None:
        _say(f"latency at {rate:,.0f} requests a second")
        p99: dict[str, list[float]] = {"torch": [], "predict": []}
        count = max(100, round(rate * self._size.seconds))
        allowed = os.sched_getaffinity(0)
        load.pin(LOAD_CORE)
        for _ in range(self._size.rounds):
            for name, found in p99.items():
                times = load.latencies(targets[name], count=count, rate=rate, connections=64)
                found.append(statistics.quantiles(times, n=100)[98])
        os.sched_setaffinity(0, allowed)
        own, other = statistics.median(p99["predict"]), statistics.median(p99["torch"])
        self.figures |= {
            "p99_rate": rate,
            "p99_predict_ms": own * 1e3,
            "p99_torch_server_ms": other * 1e3,
            "p99_vs_torch_server": own / other,
        }

    def _measure_inference(self, targets: dict[str, load.Target]) -> None:
        for name, key in (("predict", ""), ("explain", "explain_"), ("torch", "torch_server_")):
            target = targets[name]
            elapsed = [
                json.loads(load.ask(target, body))["details"]["inference_elapsed"]
                for body in target.bodies
            ]
            self.figures[f"inference_{key}p50_ms"] = statistics.median(elapsed) * 1e3

    def _measure_scorer(self) -> None:
        _say("the scorer alone")
        folder = self._folder / "scorer"
        folder.mkdir()
        for name, content in self._model.bundle_files.items():
            (folder / name).write_bytes(content)
        (folder / "texts.json").write_text(json.dumps(self._texts))
        output = subprocess.run(  # noqa: S603
            [PREDICT_PYTHON, "-m", "benchmarks.predict.scorer_alone", folder],
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout
        result = json.loads(output)
        self.figures |= result["figures"]
        self.scorer = "compiled" if result["is_compiled"] else "portable"

    def _measure_installed(self) -> None:
        _say("a fresh installation from the lock")
        folder = self._folder / "installed"
        subprocess.run([UV, "venv", "--quiet", "--python", PREDICT_PYTHON, folder], check=True)  # noqa: S603
        python = folder / "bin/python"
        subprocess.run(  # noqa: S603
            [UV, "pip", "sync", "--quiet", "--python", python, "--require-hashes", LOCK],
            check=True,
            env={**os.environ, "UV_LINK_MODE": "copy"},
        )
        [packages] = folder.glob("lib/python*/site-packages")
        self.figures["installed_mb"] = _disk_megabytes(packages)

    def _measure_large(self) -> None:
        _say(f"a bundle of {self._size.large_ngrams:,} n-grams (making it takes a while)")
        files = make_large_bundle(self._language, self._model, self._size.large_ngrams)
        uri = self._storage.upload(BUCKET, "large", files)
        del files
        kind = servers.predict(uri, self._storage.url)
        seconds = []
        for _ in range(min(3, self._size.starts)):
            log = self._folder / "large.log"
            with running(kind, log, text="", score=0.5, cores=[SERVER_CORE, LOAD_CORE]) as server:
                seconds.append(server.ready_seconds)
                resident, proportional = server.memory()
        self.figures |= {
            "large_ngrams": self._size.large_ngrams,
            "load_5m_s": statistics.median(seconds),
            "rss_5m_mb": resident,
            "pss_5m_mb": proportional,
        }

    def _measure_image(self) -> None:
        _say("the image (building it may take minutes)")
        command = [sys.executable, "-m", "local.images", "--build-only", "predict"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            _say(f"it can't be built here: {done.stderr.splitlines()[-1]}")
            return
        sizes = json.loads(done.stdout.splitlines()[-1])
        for name, key in (("predict", "image"), ("base", "image_base")):
            self.figures[f"{key}_mb"] = sizes[name]["unpacked_mb"]
            self.figures[f"{key}_compressed_mb"] = sizes[name]["compressed_mb"]


def _say(message: str) -> None:
    print(f"- {message}", flush=True)


def _register(model: Model, folder: Path) -> tuple[str, str]:
    """Log and register the model; return its URI and the registry's."""
    _say("registering the model")
    registry = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(registry)
    experiment = mlflow.create_experiment("benchmark", artifact_location=str(folder / "artifacts"))
    with mlflow.start_run(experiment_id=experiment):
        LoggedModel.log(
            artifact_path=None,
            name="model",
            flavor=flavor,
            registered_model_name="benchmark",
            model=model.module,
            bundle=model.bundle_files,
        )
    return "models:/benchmark/1", registry


def _disk_megabytes(folder: Path) -> float:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*")) / 1e6


def _table(figures: dict[str, float], scorer: str) -> list[Row]:
    def at_most(figure: str, key: str, bar: float, text: str) -> Row:
        return Row(figure, text.format(**figures), f"<= {bar:.3g}", figures[key] <= bar)

    def at_least(figure: str, key: str, bar: float, text: str) -> Row:
        return Row(figure, text.format(**figures), f">= {bar:.3g}", figures[key] >= bar)

    def noted(figure: str, text: str) -> Row:
        return Row(figure, text.format(**figures), "", None)

    return [
        noted("wrk's ceiling, requests/s", "{rps_static:,.0f}"),
        noted("predict, requests/s", "{rps_predict:,.0f}"),
        at_least(
            "  / (a) torch server",
            "rps_vs_torch_server",
            3,
            "{rps_vs_torch_server:.2f} ({rps_torch:,.0f})",
        ),
        at_least(
            "  / (b) mlflow serve",
            "rps_vs_mlflow_serve",
            8,
            "{rps_vs_mlflow_serve:.2f} ({rps_mlflow:,.0f})",
        ),
        at_least(
            "  / (c) empty function",
            "rps_vs_empty_function",
            0.85,
            "{rps_vs_empty_function:.2f} ({rps_empty:,.0f})",
        ),
        noted(
            "  / (c) with predict's uvloop and httptools",
            "{rps_vs_empty_function_uvloop:.2f} ({rps_empty_uvloop:,.0f})",
        ),
        noted(
            "CPU time of a request",
            "{cpu_predict_us:.0f} us; (a) {cpu_torch_us:.0f}, (b) {cpu_mlflow_us:.0f}, "
            "(c) {cpu_empty_us:.0f}",
        ),
        noted("(a) / (c)", "{torch_server_vs_empty_function:.2f}"),
        at_most(
            "p99 at {p99_rate:,.0f} requests/s, / (a)".format(**figures),
            "p99_vs_torch_server",
            1 / 3,
            "{p99_vs_torch_server:.2f} ({p99_predict_ms:.2f} ms, {p99_torch_server_ms:.2f} ms)",
        ),
        at_most(
            "inference_elapsed, p50",
            "inference_p50_ms",
            0.1,
            "{inference_p50_ms:.3f} ms ((a): {inference_torch_server_p50_ms:.3f} ms)",
        ),
        at_most("cold start", "cold_start_s", 1, "{cold_start_s:.2f} s"),
        at_most(
            "  / (a)",
            "cold_start_vs_torch_server",
            0.25,
            "{cold_start_vs_torch_server:.3f} ({cold_start_torch_server_s:.2f} s)",
        ),
        noted(
            "  on one core",
            "{cold_start_one_core_s:.2f} s, / (a) {cold_start_one_core_vs_torch_server:.3f}",
        ),
        at_most(
            "resident memory, / (a)",
            "rss_vs_torch_server",
            1 / 3,
            "{rss_vs_torch_server:.3f} ({rss_predict_mb:.0f} MB, {rss_torch_server_mb:.0f} MB)",
        ),
        noted(
            "  after as many requests again",
            "{rss_later_predict_mb:.0f} MB, (a) {rss_later_torch_server_mb:.0f} MB",
        ),
        noted("  PSS", "{pss_predict_mb:.0f} MB, (a) {pss_torch_server_mb:.0f} MB"),
        at_most("installed dependencies", "installed_mb", 120, "{installed_mb:.0f} MB"),
        at_most(
            "{large_ngrams:,.0f} n-grams: ready".format(**figures),
            "load_5m_s",
            3,
            "{load_5m_s:.2f} s",
        ),
        noted("  its memory", "RSS {rss_5m_mb:,.0f} MB, PSS {pss_5m_mb:,.0f} MB"),
        at_most(
            "explain=true, CPU time of a request / plain",
            "explain_vs_plain_cpu",
            1.3,
            "{explain_vs_plain_cpu:.2f} ({rps_explain:,.0f} requests/s)",
        ),
        noted(
            f"  in a batch of {TEXTS_IN_A_BATCH}, a text",
            "{batch_explain_vs_plain_cpu:.2f} ({cpu_batch_explain_a_text_us:.0f} us, "
            "{cpu_batch_a_text_us:.0f} us)",
        ),
        noted(
            f"  {scorer} scorer alone",
            "score {scorer_score_us:.0f} us, explain {scorer_explain_us:.0f} us",
        ),
        noted(
            "image, unpacked",
            "{image_mb:.0f} MB, its base {image_base_mb:.0f} MB; compressed "
            "{image_compressed_mb:.0f} MB, {image_base_compressed_mb:.0f} MB"
            if "image_mb" in figures
            else "not built",
        ),
    ]


def _print_table(rows: Sequence[Row]) -> None:
    widths = [
        max(len(column) for column in columns)
        for columns in zip(*((row.figure, row.value) for row in rows), strict=True)
    ]
    for row in rows:
        verdict = {True: "met", False: "NOT MET", None: ""}[row.is_met]
        print(f"{row.figure:<{widths[0]}}  {row.value:<{widths[1]}}  {row.bar:<8} {verdict}")


def _print_notes(figures: dict[str, float]) -> None:
    notes = [
        "(c) is functions-framework as pip installs it, with asyncio and h11; predict's lock adds "
        "uvloop and httptools.",
        "p99: open loop; a question is due at its time whatever came before, and its latency "
        "counts from then.",
        "Rates and times are this machine's, whatever else it does; CPU time is the server's "
        "processes' own.",
    ]
    if figures["torch_server_vs_empty_function"] < LOW_SHARE:
        notes.append(
            "(a) / (c) is low: (a) takes {cpu_torch_us:.0f} us of CPU time a request, "
            "{inference_torch_server_p50_ms:.2f} ms of elapsed time for its tokens and torch "
            "alone; (c) takes {cpu_empty_us:.0f} us for the framework, and has nothing else to "
            "do.".format(**figures)
        )
    print()
    for note in notes:
        print(note)


def main() -> None:
    """Measure, and print the table; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works")
    size = QUICK if parser.parse_args().quick else Size()
    if shutil.which("wrk") is None or len(os.sched_getaffinity(0)) < 2:
        parser.error("needs wrk (Debian: apt install wrk) and two cores")
    memory = psutil.virtual_memory().total / 1e9
    print(f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB; {platform.platform()}")
    print(f"{size.ngrams:,} n-grams, reviews of 130 words, {CONNECTIONS} connections, one worker")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(size, Path(folder))
        bench.run()
    print()
    _print_table(_table(bench.figures, bench.scorer))
    _print_notes(bench.figures)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in bench.figures.items()}))


if __name__ == "__main__":
    main()
