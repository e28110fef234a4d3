"""A stub of the proxy at the network's edge, with the same answers every time."""

import csv
import io
import json
import math
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from functions.predict.scorer import Scorer

RUN_ID = "3acade02674549b19044a59186d97db4"
THRESHOLD = 0.46
"""Of the score of a positive verdict: as a trained one, near a half and not at it."""
CELLS = ("true_positive", "true_negative", "false_positive", "false_negative", "yes", "no")
"""What becomes of a prediction; the last two have no answer."""

NONSENSE = [
    b"",
    b"<html>Sign in</html>",
    b'{"statistics": {}}',
    b'{"statistics": {"predictions": -1, "correctness_rate": NaN}}',
    b"\xff\xfe",
]
"""Answers that are none of the API's."""

SCORER = Scorer(
    {
        "very good": 3.0,
        "good": 6.0,
        "cafe": 0.5,
        "cold": -4.0,
        "soup": -0.5,
        "never": -5.0,
        "never again": -8.0,
        "lovely": 9.0,
        "not bad": 4.0,
        "bad": -6.0,
        "waiter": 0.3,
        ".": -0.2,
    },
    bias=0.2,
    unknown=0.0,
    order=2,
)


def today() -> date:
    """The UTC day of now: tests may run over midnight."""
    return datetime.now(UTC).date()


@dataclass
class StubProxy:
    """The proxy's answers, and what it was asked."""

    url: str = ""
    cells: dict[tuple[date, str], Counter[str]] = field(default_factory=dict)
    """What the statistics are made of: by day and model version."""
    items: list[dict[str, Any]] = field(default_factory=list)
    """Newest first."""
    rollouts: dict[str, Any] = field(default_factory=lambda: {"status": None, "ledger": []})
    version: str = "10"
    score: float | None = None
    """Of every text, instead of the scorer's."""
    failing: int | None = None
    """Status of every answer."""
    failing_below: str = "/"
    """How the paths begin that fail."""
    nonsense: bytes | None = None
    """Body of every answer."""
    exported: bytes | None = None
    """Body of every export."""
    breaking_off: bool = False
    """Exports end in the middle."""
    delay: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path with its query."""
    posts: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)
    """Bodies and headers (in lower case) of new predictions."""

    def reset(self) -> None:
        """Forget everything but the address."""
        self.__dict__.update(StubProxy(self.url).__dict__)

    def fill(self, predictions: int, *, days: int = 30, versions: int = 3) -> None:
        """Put about so many predictions into the statistics, and the newest 60 into the list."""
        each = predictions / (days * versions)
        for back in range(days):
            for number in range(versions):
                wave = 0.9 - 0.06 * (versions - number) + 0.03 * math.sin(back / 3 + number)
                right, wrong = each * 0.5 * wave, each * 0.5 * (1 - wave)
                shares = (
                    right * 0.6,
                    right * 0.4,
                    wrong * 0.7,
                    wrong * 0.3,
                    each * 0.3,
                    each * 0.2,
                )
                day = today() - timedelta(days=back)
                counts = {cell: round(share) for cell, share in zip(CELLS, shares, strict=True)}
                self.cells[day, str(8 + number)] = Counter(counts)
        for number in range(60):
            text, user = TEXTS[number % len(TEXTS)]
            self.items.append(
                self._item(number, text, user, datetime.now(UTC) - timedelta(minutes=37 * number))
            )

    def _item(self, number: int, text: str, user: bool | None, at: datetime) -> dict[str, Any]:
        score = SCORER.score(text) if self.score is None else self.score
        return {
            "id": f"{number:032x}",
            "text": text,
            "is_positive_user_answered": user,
            "is_positive_model_answered": score >= THRESHOLD,
            "mlflow_run_id": RUN_ID,
            "inference_elapsed": 0.00093,
            "timestamp": at.replace(tzinfo=None).isoformat(timespec="microseconds"),
            "score": score,
            "model_version": self.version if number % 5 else "9",
            "revision": "predict-00001-abc",
            "git_commit": "0ea995f0c8d1c1a6a5a9b7a80e9fbc8c2fd5ab10",
            "data_digest": None,
            "predict_elapsed": 0.004,
            "elapsed": 0.012,
        }

    # --- Answers

    def predict(self, body: dict[str, Any], *, explain: bool) -> dict[str, Any]:
        user = body["is_positive_user_answered"]
        item = self._item(len(self.items) * 5 + 1001, body["text"], user, datetime.now(UTC))
        self.items.insert(0, item)
        self._count(item, +1)
        created = {
            name: item[name]
            for name in ("id", "text", "score", "model_version", "revision", "git_commit")
        }
        created |= {
            "is_positive": {
                "user_answered": user,
                "model_answered": item["is_positive_model_answered"],
            },
            "details": {
                name: item[name] for name in ("mlflow_run_id", "inference_elapsed", "timestamp")
            },
        }
        if explain:
            explanation = SCORER.explain(body["text"])
            created["bias"] = explanation.bias
            if self.score is not None:
                # What no word accounts for: the shares must add up to the score's log-odds.
                words = math.fsum(item.contribution for item in explanation.contributions)
                created["bias"] = math.log(self.score / (1 - self.score)) - words
            created["explanation"] = [
                {
                    "token": item.token,
                    "start": item.start,
                    "end": item.end,
                    "contribution": item.contribution,
                }
                for item in explanation.contributions
            ]
        return created

    def answer(self, prediction_id: str, user: bool | None) -> dict[str, Any] | None:
        for item in self.items:
            if item["id"] == prediction_id:
                self._count(item, -1)
                item["is_positive_user_answered"] = user
                self._count(item, +1)
                return item
        return None

    def delete(self, prediction_id: str) -> bool:
        for item in self.items:
            if item["id"] == prediction_id:
                self.items.remove(item)
                self._count(item, -1)
                return True
        return False

    def _count(self, item: dict[str, Any], by: int) -> None:
        user, model = item["is_positive_user_answered"], item["is_positive_model_answered"]
        if user is None:
            cell = "yes" if model else "no"
        else:
            cell = ("true_" if user == model else "false_") + ("positive" if model else "negative")
        day = datetime.fromisoformat(item["timestamp"]).date()
        self.cells.setdefault((day, item["model_version"]), Counter())[cell] += by

    def found(self, query: dict[str, str]) -> list[dict[str, Any]]:
        return [
            item
            for item in self.items
            if query.get("model_version") in (None, item["model_version"])
            and item["timestamp"].startswith(query.get("day", ""))
            and (
                "disagreements" not in query
                or item["is_positive_user_answered"] == (not item["is_positive_model_answered"])
            )
        ]

    def statistics(self, query: dict[str, str]) -> dict[str, Any]:
        until = date.fromisoformat(query.get("until", today().isoformat()))
        since = date.fromisoformat(query.get("since", (until - timedelta(days=29)).isoformat()))
        ranged = {key: cell for key, cell in self.cells.items() if since <= key[0] <= until}
        counted = ranged if query else self.cells
        versions: dict[str, list[Counter[str]]] = defaultdict(list)
        for (_, version), cell in counted.items():
            versions[version].append(cell)
        by_version = [
            {
                **measures(cells),
                "model_version": version,
                "capped": {"answered": 0, "correct": 0},
            }
            for version, cells in sorted(versions.items(), key=lambda item: int(item[0]))
        ]
        by_day = []
        for day in sorted({day for day, _ in ranged}):
            cells = {version: cell for (at, version), cell in ranged.items() if at == day}
            of_versions = [
                {**measures([cell]), "model_version": version}
                for version, cell in sorted(cells.items())
            ]
            by_day.append(
                {
                    **measures(cells.values()),
                    "day": day.isoformat(),
                    "by_model_version": of_versions,
                }
            )
        return {
            "statistics": {
                **measures(counted.values()),
                "by_model_version": by_version,
                "by_day": by_day,
                "by_revision": [
                    {
                        "revision": "predict-00001-abc",
                        "model_version": "10",
                        "predictions": 1_000,
                        "failed": 3,
                    }
                ],
            }
        }


def measures(cells: Iterable[Counter[str]]) -> dict[str, Any]:
    counts = sum(cells, Counter())
    right = counts["true_positive"] + counts["true_negative"]
    answered = right + counts["false_positive"] + counts["false_negative"]
    total = answered + counts["yes"] + counts["no"]
    positive = counts["true_positive"] + counts["false_positive"] + counts["yes"]
    return {
        "correctness_rate": right / answered if answered else None,
        "correctness_interval": wilson(right, answered) if answered else None,
        "predictions": total,
        "answered": answered,
        "correct": right,
        "positive_rate": positive / total if total else None,
        "mean_score": positive / total if total else None,
        "confusion": {cell: counts[cell] for cell in CELLS[:4]},
        "latency": {"p50": 0.012, "p95": 0.048, "mean": 0.017} if total else None,
    }


def wilson(right: int, answered: int) -> tuple[float, float]:
    rate, z = right / answered, 1.959964
    centre = (rate + z * z / (2 * answered)) / (1 + z * z / answered)
    half = z / (1 + z * z / answered)
    half *= math.sqrt(rate * (1 - rate) / answered + z * z / (4 * answered**2))
    return max(0.0, centre - half), min(1.0, centre + half)


TEXTS: list[tuple[str, bool | None]] = [
    ("very good cafe", True),
    ("The soup was cold, and the waiter never came back.", False),
    ("Not bad, this cafe, not bad at all.", False),
    ("Lovely! <script>alert('lovely')</script> **not bold** [no link](http://example.com)", True),
    ("We will never again come here.", True),
    ("A place like any other.", None),
    ("Lovely evening. " * 40, True),
]


@contextmanager
def running() -> Iterator[StubProxy]:
    """Serve a stub on a free port of this machine."""
    stub = StubProxy()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            url = urlsplit(self.path)
            query = dict(parse_qsl(url.query))
            stub.requests.append((self.command, self.path))
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else {}
            if self.command == "POST":
                headers = {name.lower(): value for name, value in self.headers.items()}
                stub.posts.append((body, headers))
            time.sleep(stub.delay)
            if stub.failing and url.path.startswith(stub.failing_below):
                self._answer(stub.failing, {"detail": "It does not work."}, {"Retry-After": "7"})
            elif stub.nonsense is not None:
                self._answer(200, stub.nonsense)
            else:
                self._route(url.path, query, body)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815  # as the base class asks

        def _route(self, path: str, query: dict[str, str], body: dict[str, Any]) -> None:
            named = re.fullmatch(r"/predictions/([0-9a-f]{32})(/answer)?", path)
            if named and self.command == "PUT":
                item = stub.answer(named[1], body["is_positive_user_answered"])
                self._answer(200 if item else 404, item or {"detail": "Gone."})
            elif named and self.command == "DELETE":
                gone = stub.delete(named[1])
                self._answer(204 if gone else 404, b"" if gone else {"detail": "Gone."})
            elif path == "/predictions" and self.command == "POST":
                self._answer(201, stub.predict(body, explain=query.get("explain") == "true"))
            elif path == "/predictions":
                found, at = stub.found(query), int(query.get("cursor", 0))
                end = at + int(query["limit"])
                link = f'</predictions?cursor={quote(str(end))}>; rel="next"'
                headers = {"Link": link} if end < len(found) else {}
                self._answer(200, found[at:end], headers)
            elif path == "/predictions/export":
                content = export(stub.found(query), query["format"])
                content = content if stub.exported is None else stub.exported
                # Half of what the header promises.
                missing = len(content) // 2 if stub.breaking_off else 0
                self._answer(200, content, missing=missing)
            elif path == "/statistics":
                self._answer(200, stub.statistics(query))
            elif path == "/rollouts":
                self._answer(200, stub.rollouts)
            else:
                self._answer(404, {"detail": "There is no such thing."})

        def _answer(
            self,
            status: int,
            content: object,
            headers: dict[str, str] | None = None,
            *,
            missing: int = 0,
        ) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) - missing])

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # the page gave up waiting

    server = Server(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()


def export(items: list[dict[str, Any]], kind: str) -> bytes:
    if kind == "jsonl":
        return "".join(json.dumps(item) + "\n" for item in items).encode()
    out = io.StringIO()
    rows = csv.DictWriter(out, ["id", "text", "score"], extrasaction="ignore")
    rows.writeheader()
    rows.writerows(items)
    return out.getvalue().encode()


def _gates() -> list[dict[str, str]]:
    reasons = {
        "validation": "the version has no such tag",
        "metrics": "AUROC 0.9612, floor 0.9000",
        "behaviour": "349 of 352 tests passed",
        "bundle": "all digests are right",
        "golden": "24 texts, largest difference 2.1e-08",
        "latency": "median 1.4 ms, served version 1.3 ms",
    }
    return [
        {"gate": gate, "outcome": "skipped" if gate == "validation" else "passed", "reason": reason}
        for gate, reason in reasons.items()
    ]


def _entry(hours: float, event: str, version: str, **more: Any) -> dict[str, Any]:
    at = datetime.now(UTC) - timedelta(hours=hours)
    return {
        "schema_version": 1,
        "at": at.isoformat(),
        "event": event,
        "version": version,
        "run_id": RUN_ID,
        "revision": f"predict-000{version.zfill(2)}-abc",
        "from_version": str(int(version) - 1),
        "from_revision": "predict-00001-abc",
        "because": "alias:production",
        "gate": None,
        "reason": None,
        "gates": [],
        "percent": None,
        "since": (at - timedelta(minutes=7)).isoformat(),
        **more,
    }


def rolling_out() -> dict[str, Any]:
    """Return what promote says while version 11 has a tenth of the requests."""
    now = datetime.now(UTC)
    ago = [(now - timedelta(minutes=minutes)).isoformat() for minutes in (1, 4, 9)]
    return {
        "status": {
            "schema_version": 1,
            "at": ago[0],
            "error": None,
            "desired": {"version": "11", "run_id": RUN_ID, "because": "alias:production"},
            "served": {"revision": "predict-00010-abc", "version": "10"},
            "traffic": [
                {"revision": "predict-00010-abc", "percent": 90},
                {"revision": "predict-00011-abc", "percent": 10},
            ],
            "candidate": {
                "version": "11",
                "since": ago[2],
                "step": {
                    "revision": "predict-00011-abc",
                    "percent": 10,
                    "since": ago[1],
                    "gates": _gates(),
                },
            },
            "blocked": [
                {
                    "scope": "model",
                    "version": "9",
                    "gate": "golden",
                    "reason": "3 of 24 texts differ by more than 1e-06, <b>the first</b> by 0.2",
                    "at": ago[2],
                }
            ],
            "action": {
                "kind": "wait",
                "detail": "version 11 has had 3 of 5 minutes at 10 %",
            },
        },
        "ledger": [
            _entry(0.1, "stepped", "11", percent=10, gates=_gates()),
            _entry(20, "promoted", "10", percent=100, gates=_gates()),
            _entry(26, "blocked", "9", gate="golden", reason="3 of 24 texts differ", percent=0),
            _entry(50, "withdrawn", "7", reason="version 8 is wanted instead", percent=0),
            _entry(51, "promoted", "8", percent=100, gates=_gates(), because="stage:Production"),
            {"event": "sunrise", "nobody": "knows"},
        ],
    }
