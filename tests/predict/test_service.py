"""Predict over HTTP: what it answers, what it refuses, how it starts and ends."""

import json
import math
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from functions.predict.bundle import GOLDEN, MANIFEST, SCORES, VOCABULARY, digest
from functions.predict.settings import Settings
from local.settings import free_port
from tests.bundles import make_bundle
from tests.emulators import StorageEmulator
from tests.predict.conftest import (
    BUCKET,
    BUNDLE,
    PYTHON,
    REVISION,
    ROOT,
    RUN_ID,
    Service,
    folder,
    running_predict,
    start_predict,
)

MIB = 1024**2

# Texts and any other JSON, lone surrogates among them.
STRINGS = st.text(st.characters(codec=None), max_size=50)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | STRINGS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["text", "texts"]) | STRINGS, inner, max_size=5)
    ),
    max_leaves=20,
)


def assert_problem(response: httpx.Response, status: int) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]


class TestAnswers:
    def test_one_text(self, client: httpx.Client) -> None:
        response = client.post("/predict", json={"text": "very cool restaurant!"})

        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        answer = response.json()
        elapsed = answer["details"].pop("inference_elapsed")
        assert 0 < elapsed < 1
        # 4 tokens and 3 pairs; two of the seven are known.
        logit = (5.0 + 0.5) / 7 + 0.25
        assert answer == {
            "text": "very cool restaurant!",
            "is_positive_review": 1,
            "details": {"mlflow_run_id": RUN_ID},
            "score": pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12),
            "model_version": "10",
            "revision": REVISION,
        }

    def test_a_negative_text(self, client: httpx.Client) -> None:
        answer = client.post("/predict", json={"text": "not good, bad"}).json()
        assert answer["is_positive_review"] == 0
        assert answer["score"] < 0.5

    @pytest.mark.parametrize(
        "text",
        [
            "very cool restaurant!",
            'İstanbul: "quo"ted, not good <br /> bad',
            "😀 cool 👍🏽 not good",
            "",
            " \n ",
        ],
    )
    def test_an_explanation_adds_up(self, client: httpx.Client, text: str) -> None:
        plain = client.post("/predict", json={"text": text}).json()
        answer = client.post("/predict", params={"explain": "true"}, json={"text": text}).json()

        logit = answer["bias"] + math.fsum(item["contribution"] for item in answer["explanation"])
        assert answer["bias"] == 0.25
        assert answer["score"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12)
        assert answer["score"] == pytest.approx(plain["score"], abs=1e-12)
        assert answer.keys() - plain.keys() == {"bias", "explanation"}
        for item in answer["explanation"]:
            assert item.keys() == {"token", "start", "end", "contribution"}

    def test_offsets_are_code_points_of_the_text_as_it_was_sent(self, client: httpx.Client) -> None:
        text = '😀 İ "co"ol, not good!'
        answer = client.post("/predict", params={"explain": "true"}, json={"text": text}).json()

        pieces = {
            item["token"]: text[item["start"] : item["end"]] for item in answer["explanation"]
        }
        # The tokenizer drops quotes: the place of the word still has those inside it.
        assert pieces["cool"] == 'co"ol'
        assert pieces["not good"] == "not good"
        assert pieces["i̇"] == "İ"
        assert pieces["😀"] == "😀"

    def test_explain_takes_true_and_false_only(self, client: httpx.Client) -> None:
        body = {"text": "cool"}
        off = client.post("/predict", params={"explain": "false"}, json=body)
        assert "explanation" not in off.json()
        assert_problem(client.post("/predict", params={"explain": "maybe"}, json=body), 422)

    def test_a_batch_is_answered_in_order(self, client: httpx.Client) -> None:
        texts = [f"{word} number {number}" for number in range(50) for word in ("cool", "bad", "")]
        response = client.post("/predict:batch", json={"texts": texts})

        predictions = response.json()["predictions"]
        assert response.json().keys() == {"predictions"}
        assert [answer["text"] for answer in predictions] == texts
        single = client.post("/predict", json={"text": texts[1]}).json()
        del single["details"], predictions[1]["details"]
        assert predictions[1] == single

    def test_a_batch_of_none_and_of_the_most(self, client: httpx.Client) -> None:
        assert client.post("/predict:batch", json={"texts": []}).json() == {"predictions": []}
        most = client.post("/predict:batch", json={"texts": ["cool"] * 1000})
        assert len(most.json()["predictions"]) == 1000

    def test_a_batch_is_explained(self, client: httpx.Client) -> None:
        response = client.post("/predict:batch", params={"explain": "1"}, json={"texts": ["cool"]})
        [answer] = response.json()["predictions"]
        assert answer["explanation"] == [
            {"token": "cool", "start": 0, "end": 4, "contribution": 5.0}
        ]

    def test_the_model(self, client: httpx.Client) -> None:
        response = client.get("/model")
        assert response.status_code == 200
        assert response.json() == {
            "manifest": json.loads(BUNDLE[MANIFEST]),
            "manifest_sha256": digest(BUNDLE[MANIFEST]),
            "model_version": "10",
            "revision": REVISION,
        }

    @pytest.mark.parametrize(
        ("path", "answer"),
        [
            ("/health", {"status": "ok"}),
            ("/ready", {"status": "ready", "model_version": "10"}),
            ("/ping", {"ping": "pong"}),
        ],
    )
    def test_probes(self, client: httpx.Client, path: str, answer: dict[str, str]) -> None:
        response = client.get(path)
        assert response.status_code == 200
        assert response.json() == answer

    @pytest.mark.parametrize(
        ("method", "path", "body", "status"),
        [
            ("POST", "/predict", b'{"text": "cool"}', 200),
            ("POST", "/predict:batch", b'{"texts": ["cool"]}', 200),
            ("HEAD", "/health", b"", 200),
            ("GET", "/nowhere", b"", 404),
            ("GET", "/predict", b"", 405),
            ("POST", "/predict", b" " * (MIB + 1), 413),
            ("POST", "/predict", b"{}", 422),
        ],
    )
    def test_every_answer_names_its_revision(
        self, client: httpx.Client, method: str, path: str, body: bytes, status: int
    ) -> None:
        response = client.request(method, path, content=body)
        assert response.status_code == status
        assert response.headers.get_list("x-greenroom-revision") == [REVISION]

    def test_the_log_says_that_the_compiled_scorer_serves(self, service: Service) -> None:
        entries = [json.loads(line) for line in service.log.read_text().splitlines()]
        [message] = [item["message"] for item in entries if "serving model" in item["message"]]
        assert message == "serving model version 10 (scorer: compiled)"

    def test_each_request_is_logged_with_its_trace(
        self, service: Service, client: httpx.Client
    ) -> None:
        trace = "0af7651916cd43dd8448eb211c80319c"
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        client.post("/predict", params={"explain": "maybe"}, json={"text": ""}, headers=headers)
        client.get("/ping")  # the line before has been written by then
        entries = [json.loads(line) for line in service.log.read_text().splitlines()]
        [entry] = [item for item in entries if item.get("logging.googleapis.com/trace") == trace]
        latency = entry["httpRequest"].pop("latency")
        assert 0 < float(latency.removesuffix("s")) < 10
        assert entry["httpRequest"] == {
            "requestMethod": "POST",
            "requestUrl": "/predict",
            "status": 422,
        }

    @pytest.mark.parametrize("query", ["", "?explain=true"])
    @pytest.mark.parametrize(
        ("path", "body", "expected"),
        [
            # "very" is not known.
            ("/predict", {"text": "very bad!"}, {"tokens": 3, "unknown_share": 0.3333}),
            ("/predict", {"text": ""}, {"tokens": 0, "unknown_share": 0.0}),
            (
                "/predict:batch",
                {"texts": ["very bad!", "cool"]},
                {"tokens": 4, "unknown_share": 0.25, "texts": 2},
            ),
        ],
    )
    def test_what_a_prediction_rested_on_is_logged(
        self,
        service: Service,
        client: httpx.Client,
        path: str,
        body: object,
        expected: dict[str, float],
        query: str,
    ) -> None:
        trace = uuid.uuid4().hex
        headers = {"x-cloud-trace-context": f"{trace}/1;o=1"}
        assert client.post(path + query, json=body, headers=headers).status_code == 200
        client.get("/ping")  # the line before has been written by then
        [line] = [line for line in service.log.read_text().splitlines() if trace in line]
        entry = json.loads(line)
        assert entry["severity"] == "INFO"
        assert expected.items() <= entry.items()
        assert entry["model_version"] == "10"
        assert datetime.fromisoformat(entry["time"]).tzinfo is not None

    def test_texts_do_not_reach_the_log(self, service: Service, client: httpx.Client) -> None:
        client.post("/predict", json={"text": "a secret that no log may hold"})
        client.post("/predict", json={"text": ["a secret that no log may hold"]})
        assert "secret" not in service.log.read_text()


class TestWithoutAModel:
    def test_the_process_is_healthy(self, empty_service: Service) -> None:
        assert httpx.get(f"{empty_service.url}/health").status_code == 200
        assert httpx.get(f"{empty_service.url}/ping").status_code == 200

    @pytest.mark.parametrize(
        ("method", "path"),
        [("GET", "/ready"), ("GET", "/model"), ("POST", "/predict"), ("POST", "/predict:batch")],
    )
    def test_nothing_is_answered(self, empty_service: Service, method: str, path: str) -> None:
        response = httpx.request(method, f"{empty_service.url}{path}")
        assert_problem(response, 503)
        assert int(response.headers["retry-after"]) > 0


class TestLimits:
    @pytest.mark.parametrize("text", ["", "x" * 20_000, "é" * 20_000, "😀" * 20_000, "\0"])
    def test_accepted(self, client: httpx.Client, text: str) -> None:
        response = client.post("/predict", json={"text": text})
        assert response.status_code == 200
        assert response.json()["text"] == text

    @pytest.mark.parametrize("text", ["x" * 20_001, "😀" * 20_001])
    def test_a_character_too_many(self, client: httpx.Client, text: str) -> None:
        assert_problem(client.post("/predict", json={"text": text}), 422)
        assert_problem(client.post("/predict:batch", json={"texts": ["", text]}), 422)

    @pytest.mark.parametrize(
        "body",
        [
            rb'{"text": "\ud800"}',
            rb'{"text": "a\udc00b"}',
            b'{"text": "\xed\xa0\x80"}',
            b'{"text": "\xff"}',
            '{"text": "é"}'.encode("latin-1"),
            '{"text": "cool"}'.encode("utf-16"),
            b'{"text": 1}',
            b'{"text": null}',
            b'{"text": ["cool"]}',
            b"{}",
            b'{"text": "cool", "stars": 5}',
            b'{"texts": ["cool"]}',
            b'{"text": "cool"',
            b"text=cool",
            b"",
            b"null",
            b'"cool"',
            b'["cool"]',
            b"[" * 100_000,
            b'{"text":' * 100_000,
            b'{"other": ' + b"[" * 100_000 + b"]" * 100_000 + b', "text": "cool"}',
        ],
    )
    def test_not_a_question(self, client: httpx.Client, body: bytes) -> None:
        assert_problem(client.post("/predict", content=body), 422)

    @pytest.mark.parametrize(
        "body", [b'{"texts": "cool"}', b'{"texts": [1]}', rb'{"texts": ["\ud800"]}', b"[]"]
    )
    def test_not_a_batch(self, client: httpx.Client, body: bytes) -> None:
        assert_problem(client.post("/predict:batch", content=body), 422)

    @pytest.mark.parametrize(
        "item",
        [
            b"1",
            b"null",
            b"[]",
            rb'"\ud800"',
            rb'"a\udc00b"',
            b'"\xff"',
            b'"\xed\xa0\x80"',
            b'"' + b"x" * 20_001 + b'"',
        ],
    )
    def test_the_bad_text_of_a_batch_is_named(self, client: httpx.Client, item: bytes) -> None:
        """Guards against "Input data was truncated" for a lone surrogate in a whole batch."""
        response = client.post("/predict:batch", content=b'{"texts": ["cool", "", %s, 1]}' % item)
        assert_problem(response, 422)
        assert "$.texts[2]" in response.json()["detail"]

    @pytest.mark.parametrize(("path", "limit"), [("/predict", MIB), ("/predict:batch", 8 * MIB)])
    @pytest.mark.parametrize("chunked", [False, True])
    def test_the_largest_body(
        self, client: httpx.Client, path: str, limit: int, chunked: bool
    ) -> None:
        content = b'{"text": "cool"}' if path == "/predict" else b'{"texts": ["cool"]}'

        def send(size: int) -> httpx.Response:
            body = content.ljust(size)
            pieces = (body[at : at + 65_536] for at in range(0, size, 65_536))
            return client.post(path, content=pieces if chunked else body)

        assert send(limit).status_code == 200
        assert_problem(send(limit + 1), 413)

    def test_a_text_too_many(self, client: httpx.Client) -> None:
        assert_problem(client.post("/predict:batch", json={"texts": [""] * 1001}), 413)

    @pytest.mark.parametrize(
        ("texts", "status"),
        [
            ([""] * 100, 200),
            ([""] * 101, 413),
            (["x" * 20_000] * 5, 200),
            (["x" * 20_000] * 5 + ["x"], 413),
        ],
    )
    def test_a_batch_to_explain_is_smaller(
        self, client: httpx.Client, texts: list[str], status: int
    ) -> None:
        """Guards against 221 MiB of memory for a batch of 40 long texts."""
        response = client.post("/predict:batch", params={"explain": "1"}, json={"texts": texts})
        assert response.status_code == status
        if status == 200:
            assert len(response.json()["predictions"]) == len(texts)
        else:
            assert_problem(response, status)
            assert client.post("/predict:batch", json={"texts": texts}).status_code == 200

    @pytest.mark.parametrize("path", ["/", "/predictions", "/predict:other", "/Predict", "/%00"])
    def test_unknown_path(self, client: httpx.Client, path: str) -> None:
        assert_problem(client.get(path), 404)

    @pytest.mark.parametrize(
        ("method", "path"),
        [("GET", "/predict"), ("PUT", "/predict:batch"), ("POST", "/model"), ("DELETE", "/ready")],
    )
    def test_wrong_method(self, client: httpx.Client, method: str, path: str) -> None:
        response = client.request(method, path)
        assert_problem(response, 405)
        assert response.headers["allow"]

    # One service answers every example.
    @settings(
        max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(body=JSON | st.builds(dict, text=STRINGS) | st.builds(dict, texts=st.lists(STRINGS)))
    @example(body={"text": "\ud83d\ude00"})
    @example(body={"text": "", "text\0": ""})
    def test_any_json_is_answered_or_refused(self, client: httpx.Client, body: object) -> None:
        content = json.dumps(body).encode()
        for path in ("/predict", "/predict:batch"):
            response = client.post(path, content=content)
            if response.status_code != 200:
                assert_problem(response, 422)

    @settings(
        max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(body=st.binary(max_size=200))
    def test_any_bytes_are_refused(self, client: httpx.Client, body: bytes) -> None:
        assert_problem(client.post("/predict", content=body), 422)


class TestStart:
    """A bundle that is not whole ends the process, so that its revision gets no traffic."""

    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        return tmp_path / "output.log"

    def assert_fails(self, emulator: StorageEmulator, log: Path, uri: str, *words: str) -> None:
        process = start_predict(
            log,
            f"--model-uri={uri}",
            "--model-version=10",
            f"--port={free_port()}",
            STORAGE_EMULATOR_HOST=emulator.url,
        )
        assert process.wait(30) not in (0, None)
        critical = [json.loads(line) for line in log.read_text().splitlines() if "CRITICAL" in line]
        assert len(critical) == 1
        for word in words:
            assert word in critical[0]["message"]

    @pytest.mark.parametrize("name", [VOCABULARY, SCORES, GOLDEN])
    def test_a_damaged_file(self, storage_emulator: StorageEmulator, log: Path, name: str) -> None:
        damaged = bytes([BUNDLE[name][0] ^ 1]) + BUNDLE[name][1:]
        files = {**BUNDLE, name: damaged}
        uri = storage_emulator.upload("damaged", f"{name}/{folder(files)}", files)
        digests = digest(damaged), digest(BUNDLE[name])
        self.assert_fails(storage_emulator, log, uri, name, *digests)

    def test_a_longer_file(self, storage_emulator: StorageEmulator, log: Path) -> None:
        files = {**BUNDLE, GOLDEN: BUNDLE[GOLDEN] + b"\n"}
        uri = storage_emulator.upload("longer", folder(files), files)
        self.assert_fails(storage_emulator, log, uri, GOLDEN, str(len(files[GOLDEN])))

    @pytest.mark.parametrize("name", [MANIFEST, SCORES])
    def test_a_missing_file(self, storage_emulator: StorageEmulator, log: Path, name: str) -> None:
        files = {key: content for key, content in BUNDLE.items() if key != name}
        uri = storage_emulator.upload("incomplete", f"{name}/{folder(BUNDLE)}", files)
        self.assert_fails(storage_emulator, log, uri, name, uri)

    def test_a_manifest_that_is_not_the_folders(
        self, storage_emulator: StorageEmulator, log: Path
    ) -> None:
        other = make_bundle(bias=1.0)
        uri = storage_emulator.upload("swapped", folder(BUNDLE), other)
        digests = digest(other[MANIFEST]), digest(BUNDLE[MANIFEST])
        self.assert_fails(storage_emulator, log, uri, MANIFEST, *digests)

    def test_no_such_bucket(self, storage_emulator: StorageEmulator, log: Path) -> None:
        uri = f"gs://no-such-bucket/{folder(BUNDLE)}"
        self.assert_fails(storage_emulator, log, uri, MANIFEST, uri)

    def test_a_storage_that_does_not_answer(
        self, storage_emulator: StorageEmulator, log: Path
    ) -> None:
        start = time.monotonic()
        process = start_predict(
            log,
            f"--model-uri=gs://{BUCKET}/x",
            "--model-version=10",
            "--storage-timeout-seconds=1",
            STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{free_port()}",
        )
        assert process.wait(30) not in (0, None)
        assert time.monotonic() - start < 15
        assert MANIFEST in log.read_text()

    def test_no_credentials(self, log: Path, tmp_path: Path) -> None:
        """Guards against a traceback where the message about the bundle was promised."""
        process = start_predict(
            log,
            f"--model-uri=gs://{BUCKET}/x",
            "--model-version=10",
            HOME=str(tmp_path),
            NO_GCE_CHECK="true",
        )
        assert process.wait(30) == 1
        output = log.read_text()
        assert "Traceback" not in output
        [critical] = [json.loads(line) for line in output.splitlines() if "CRITICAL" in line]
        assert f"gs://{BUCKET}/x: can't be read: " in critical["message"]
        assert "credentials" in critical["message"]

    @pytest.mark.parametrize(
        ("argument", "word"),
        [
            ("--unknown=1", "--unknown"),
            ("--model-uri=s3://bucket/model", "--model-uri"),
            ("--model-uri=gs://bucket", "--model-uri"),
            ("--port=many", "--port"),
            ("--workers=0", "--workers"),
            (f"--model-uri=gs://{BUCKET}/x", "--model-version"),
            ("--k-revision=two\r\nlines", "--k-revision"),
        ],
    )
    def test_a_wrong_argument(self, log: Path, argument: str, word: str) -> None:
        """Guards against pydantic's traceback, and against answers that name no version.

        The proxy refuses those, so that such a revision would fail every prediction.
        """
        assert start_predict(log, argument).wait(30) == 2
        output = log.read_text()
        *_, last = output.splitlines()
        assert last.startswith("python -m functions.predict: error: ")
        assert word in last
        assert "Traceback" not in output

    def test_the_help_names_every_setting(self, log: Path) -> None:
        assert start_predict(log, "--help").wait(30) == 0
        text = " ".join(log.read_text().split())
        for name in Settings._fields:
            assert f"--{name.replace('_', '-')} " in text
            assert f"(or {name.upper()}" in text

    @pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "221", "many", ""])
    def test_a_time_that_cloud_run_does_not_give(self, log: Path, value: str) -> None:
        assert start_predict(log, f"--storage-timeout-seconds={value}").wait(30) == 2
        [line] = log.read_text().splitlines()
        assert "--storage-timeout-seconds or STORAGE_TIMEOUT_SECONDS: " in line

    def test_every_wrong_value_has_a_line(self, log: Path) -> None:
        assert start_predict(log, "--port=many", WORKERS="0").wait(30) == 2
        port, workers = log.read_text().splitlines()
        assert "--port or PORT: " in port
        assert "'many'" in port
        assert "--workers or WORKERS: " in workers

    def test_a_wrong_environment_of_the_bare_framework_command(self, log: Path) -> None:
        command = (str(PYTHON.with_name("functions-framework")),)
        arguments = ("--source", "functions/predict/main.py", "--target", "predict", "--asgi")
        environment = {"PYTHONPATH": str(ROOT), "MODEL_URI": f"gs://{BUCKET}/x"}
        assert start_predict(log, *arguments, command=command, **environment).wait(30) == 2
        [line] = log.read_text().splitlines()
        assert "MODEL_VERSION" in line

    def test_an_argument_goes_before_the_environment(
        self, storage_emulator: StorageEmulator, model_uri: str, log: Path
    ) -> None:
        with running_predict(
            log,
            f"--model-uri={model_uri}",
            "--model-version=10",
            STORAGE_EMULATOR_HOST=storage_emulator.url,
            MODEL_URI="gs://no-such-bucket/model",
            MODEL_VERSION="9",
        ) as service:
            assert httpx.get(f"{service.url}/model").json()["model_version"] == "10"

    def test_the_bare_framework_command_reads_the_environment(
        self, storage_emulator: StorageEmulator, model_uri: str, log: Path
    ) -> None:
        with running_predict(
            log,
            *("--source", "functions/predict/main.py", "--target", "predict", "--asgi"),
            command=(str(PYTHON.with_name("functions-framework")),),
            PYTHONPATH=str(ROOT),
            STORAGE_EMULATOR_HOST=storage_emulator.url,
            MODEL_URI=model_uri,
            MODEL_VERSION="10",
        ) as service:
            answer = httpx.post(f"{service.url}/predict", json={"text": "cool"}).json()
            assert answer["model_version"] == "10"

    def test_the_environment_holds_nothing_of_the_trainer(self) -> None:
        names = ["torch", "torchtext", "mlflow", "pandas", "numpy", "lightning", "sklearn"]
        program = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
        found = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "[]"


class TestEnd:
    @pytest.fixture
    def service(
        self, storage_emulator: StorageEmulator, model_uri: str, tmp_path: Path
    ) -> Iterator[Service]:
        with running_predict(
            tmp_path / "output.log",
            f"--model-uri={model_uri}",
            "--model-version=10",
            STORAGE_EMULATOR_HOST=storage_emulator.url,
        ) as service:
            yield service

    def test_a_request_under_way_is_answered(self, service: Service) -> None:
        body = b'{"text": "cool"}'
        idle = httpx.Client(base_url=service.url)
        idle.get("/ping")
        with socket.create_connection(("127.0.0.1", httpx.URL(service.url).port or 0)) as caller:
            head = f"POST /predict HTTP/1.1\r\nHost: predict\r\nContent-Length: {len(body)}\r\n\r\n"
            caller.sendall(head.encode() + body[:5])
            time.sleep(0.5)  # until the service has read that much
            start = time.monotonic()
            service.process.terminate()
            time.sleep(0.5)  # until it has got the signal
            assert service.process.poll() is None
            caller.sendall(body[5:])
            answer = b""
            while piece := caller.recv(65_536):
                answer += piece

        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["text"] == "cool"
        # The connection that a front end keeps open and idle does not hold it up.
        assert service.process.wait(10) == 0
        assert time.monotonic() - start < 5
        idle.close()

    def test_several_workers_answer_and_end(
        self, storage_emulator: StorageEmulator, model_uri: str, tmp_path: Path
    ) -> None:
        with running_predict(
            tmp_path / "workers.log",
            f"--model-uri={model_uri}",
            "--model-version=10",
            STORAGE_EMULATOR_HOST=storage_emulator.url,
            WORKERS="2",
        ) as service:
            supervisor = psutil.Process(service.process.pid)
            deadline = time.monotonic() + 10
            while len(workers := supervisor.children()) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(workers) == 2
            # One that is killed is replaced: the other answers meanwhile.
            workers[0].kill()
            workers[0].wait(10)
            for _ in range(20):
                answer = httpx.post(f"{service.url}/predict", json={"text": "cool"})
                assert answer.json()["model_version"] == "10"

    def test_one_worker_is_one_process(self, service: Service) -> None:
        """Guards against a supervisor, or a reader of the bundle, that stays in memory."""
        assert psutil.Process(service.process.pid).children() == []

    def test_a_request_that_never_ends_is_cut(self, service: Service) -> None:
        """Cloud Run kills after ten seconds: the process ends by itself before that."""
        with socket.create_connection(("127.0.0.1", httpx.URL(service.url).port or 0)) as caller:
            caller.sendall(b"POST /predict HTTP/1.1\r\nHost: predict\r\nContent-Length: 9\r\n\r\n{")
            time.sleep(0.5)
            service.process.terminate()
            assert service.process.wait(10) == 0
