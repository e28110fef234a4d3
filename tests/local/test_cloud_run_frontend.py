"""The front end, and what becomes of instances: nothing that it does fails a request."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.cloud import run_v2
from google.protobuf import duration_pb2
from hypothesis import given
from hypothesis import strategies as st

from local.cloud_run.config import CloudRunConfig
from local.cloud_run.frontend import is_reserved, parse_target
from tests.local.conftest import (
    CALLER,
    ROOT,
    StandIn,
    alive,
    latest,
    pinned,
    result,
    service_body,
    short,
    template,
    wait_for,
)

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def mortal_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    running = StandIn(tmp_path_factory.mktemp("mortal"))
    yield running
    running.close()


@pytest.fixture
def mortal(mortal_process: StandIn) -> StandIn:
    """A stand-in that tests may kill; it runs whatever the test before did."""
    if not mortal_process.runs():
        mortal_process.start()
    return mortal_process


@pytest.fixture(scope="module", autouse=True)
def stubborn(stand_in: StandIn) -> Iterator[Future[float]]:
    """Seconds that an instance which ignores SIGTERM lives; the other tests don't wait."""

    def drain() -> float:
        first = short(stand_in.create("stubborn", "--ignore-sigterm").latest_ready_revision)
        stand_in.route("stubborn", pinned(first))
        pid = stand_in.call("stubborn")["pid"]
        second = stand_in.new_revision("stubborn", "--second")
        started = time.monotonic()
        stand_in.route("stubborn", pinned(second))
        wait_for(lambda: not alive(pid))
        return time.monotonic() - started

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(drain)


# Reading a request


@pytest.mark.parametrize(
    ("host", "raw_path", "service", "tag", "path"),
    [
        ("predict.localhost:9090", "/a?b=c", "predict", None, "/a?b=c"),
        ("predict.localhost", "/", "predict", None, "/"),
        ("PREDICT.localhost", "/", "predict", None, "/"),
        ("new---predict.localhost:1", "/a", "predict", "new", "/a"),
        ("x", "http://predict.localhost:9090/a?b=http://c/d", "predict", None, "/a?b=http://c/d"),
        ("x", "http://new---predict.localhost", "predict", "new", "/"),
        ("x", "http://predict.localhost?q=1", "predict", None, "/?q=1"),
        ("x", "HTTP://predict.localhost/", "predict", None, "/"),
        ("predict.localhost", "/a://b/c", "predict", None, "/a://b/c"),
        ("127.0.0.1:9090", "/", None, None, "/"),
        ("localhost", "/", None, None, "/"),
        ("predict.example.com", "/", None, None, "/"),
        ("predict.localhost.example.com", "/", None, None, "/"),
        ("", "*", None, None, "*"),
    ],
)
def test_parse_target(
    host: str, raw_path: str, service: str | None, tag: str | None, path: str
) -> None:
    target = parse_target(host, raw_path)
    assert (target.service, target.tag, target.path) == (service, tag, path)


@given(st.text(alphabet="abz/?=&._", max_size=20))
def test_reserved_paths(path: str) -> None:
    assert is_reserved("/" + path) == path.partition("?")[0].endswith("z")


def test_absolute_form_origin_form_and_domain(stand_in: StandIn) -> None:
    revision = short(stand_in.create("predict").latest_ready_revision)
    direct = f"http://127.0.0.1:{stand_in.port}/a%2Fb?c=%20d"
    by_host = httpx.get(direct, headers={"Host": "predict.localhost"}).json()
    by_proxy = stand_in.call("predict", "/a%2Fb?c=%20d")
    own_port = stand_in.own_ports["predict"]
    by_domain = httpx.get(f"http://127.0.0.1:{own_port}/a%2Fb?c=%20d").json()
    for answer in (by_host, by_proxy, by_domain):
        assert answer["revision"] == revision
        assert answer["path"] == "/a%2Fb?c=%20d"
    assert by_host["headers"]["Host"] == "predict.localhost"
    assert by_proxy["headers"]["Host"] == f"predict.localhost:{stand_in.port}"
    assert by_domain["headers"]["Host"] == f"127.0.0.1:{own_port}"


def test_hosts_tags_and_paths_that_lead_nowhere(stand_in: StandIn, service_name: str) -> None:
    stand_in.create(service_name)
    for url in (
        stand_in.url("unknown"),
        stand_in.url(service_name, tag="unknown"),
        "http://example.com/",
        f"http://127.0.0.1:{stand_in.port}/",
        stand_in.url(service_name, "/healthz"),
        stand_in.url(service_name, "/a/statusz?x=y"),
        stand_in.url(service_name, "/eventlog"),
        stand_in.url(service_name, "/_ah/health"),
    ):
        response = stand_in.http.get(url)
        assert response.status_code == 404, url
        assert "revision" not in response.text
    for path in ("/healthz/", "/health", "/eventlogs", "/_ahx", "/x?y=z"):
        assert stand_in.call(service_name, path)["path"] == path


# Passing on


def test_container_environment(stand_in: StandIn, service_name: str) -> None:
    body = service_body("--last")
    container = body.template.containers[0]
    container.command = [sys.executable, str(stand_in.folder / "container.py"), "--first"]
    container.env = [
        run_v2.EnvVar(name="FROM_MACHINE", value="overridden"),
        run_v2.EnvVar(name="OWN", value="a b=c"),
    ]
    revision = short(stand_in.deploy(service_name, body).latest_ready_revision)
    answer = stand_in.call(service_name)
    assert answer["args"] == ["--first", "--last"]
    environment = answer["environment"]
    assert environment.pop("PORT").isdigit()
    assert environment.pop("CLOUD_RUN_STAND_IN")
    environment.pop("LC_CTYPE", None)
    metadata = environment.pop("GCE_METADATA_HOST")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", metadata)
    assert environment.pop("GCE_METADATA_IP") == environment.pop("GCE_METADATA_ROOT") == metadata
    assert environment == {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "LANG": "C.UTF-8",
        "FROM_MACHINE": "overridden",
        "OWN": "a b=c",
        "HOST": "127.0.0.1",
        "K_SERVICE": service_name,
        "K_REVISION": revision,
        "K_CONFIGURATION": service_name,
    }


def test_headers_on_the_way_in(stand_in: StandIn, service_name: str) -> None:
    stand_in.create(service_name)
    headers = stand_in.http.get(
        stand_in.url(service_name),
        headers={"Connection": "close, X-Hop", "X-Hop": "1", "TE": "trailers", "X-End": "2"},
    ).json()["headers"]
    assert headers["X-Forwarded-For"] == "127.0.0.1"
    assert headers["X-Forwarded-Proto"] == "http"
    assert headers["X-End"] == "2"
    assert not {"X-Hop", "TE", "Proxy-Connection"} & set(headers)
    version, trace, span, _ = headers["traceparent"].split("-")
    assert (version, len(trace), len(span)) == ("00", 32, 16)
    assert headers["X-Cloud-Trace-Context"] == f"{trace}/{int(span, 16)};o=1"
    given = {
        "traceparent": f"00-{'a' * 32}-{'0' * 15}b-01",
        "X-Forwarded-For": "10.0.0.1",
        "X-Forwarded-Proto": "https",
    }
    kept = stand_in.http.get(stand_in.url(service_name), headers=given).json()["headers"]
    assert {key: kept[key] for key in given} == given
    assert kept["X-Cloud-Trace-Context"] == f"{'a' * 32}/11;o=1"


def test_bodies_and_methods(stand_in: StandIn, service_name: str) -> None:
    stand_in.create(service_name)
    url = stand_in.url(service_name, "/echo")
    for size in (0, 1, 300_000, 3_000_000):
        content = os.urandom(size)
        assert stand_in.http.post(url, content=content).content == content
        chunked = stand_in.http.put(url, content=iter([content[: size // 2], content[size // 2 :]]))
        assert chunked.content == content
    assert stand_in.http.get(stand_in.url(service_name, "/chunked")).text == "one two three"
    head = stand_in.http.head(stand_in.url(service_name))
    assert int(head.headers["Content-Length"]) > 100
    assert not head.content
    moved = stand_in.http.get(stand_in.url(service_name, "/redirect"))
    assert (moved.status_code, moved.headers["Location"]) == (302, "/elsewhere")
    assert stand_in.http.delete(stand_in.url(service_name)).json()["method"] == "DELETE"


def test_body_above_the_limit(stand_in: StandIn, service_name: str) -> None:
    stand_in.create(service_name)
    url = stand_in.url(service_name, "/x")
    assert stand_in.http.post(url, content=bytes(32 * MIB)).json()["length"] == 32 * MIB
    with socket.create_connection(("127.0.0.1", stand_in.port)) as connection:
        head = f"POST /x HTTP/1.1\r\nHost: {service_name}.localhost\r\nContent-Length: "
        connection.sendall(f"{head}{32 * MIB + 1}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    with httpx.Client(proxy=f"http://127.0.0.1:{stand_in.port}", timeout=30) as client:
        try:
            status = client.post(url, content=iter([bytes(MIB)] * 33)).status_code
        except httpx.WriteError:
            # The connection was closed while the client still wrote.
            status = 413
        assert status == 413


def test_expect_continue(stand_in: StandIn, service_name: str) -> None:
    stand_in.create(service_name)
    with socket.create_connection(("127.0.0.1", stand_in.port)) as connection:
        connection.sendall(
            f"POST /echo HTTP/1.1\r\nHost: {service_name}.localhost\r\nContent-Length: 5\r\n"
            "Expect: 100-continue\r\nConnection: close\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"hello")
        answer = b""
        while part := connection.recv(1000):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"hello")


def test_websocket_is_relayed(stand_in: StandIn) -> None:
    # Streamlit talks to its browser over one.
    stand_in.create("socket", image="socket:1")

    async def talk() -> tuple[str | None, list[str]]:
        import aiohttp

        url = f"ws://127.0.0.1:{stand_in.own_ports['socket']}/stream?a=b"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, protocols=["first", "second"]) as connection,
        ):
            answers = []
            for number in range(3):
                await connection.send_str(str(number))
                answers.append(await connection.receive_str(timeout=5))
            return connection.protocol, answers

    assert asyncio.run(talk()) == ("second", ["/stream?a=b 0", "/stream?a=b 1", "/stream?a=b 2"])


def test_request_time_out(stand_in: StandIn, service_name: str) -> None:
    body = service_body()
    body.template.timeout = duration_pb2.Duration(seconds=1)
    stand_in.deploy(service_name, body)
    started = time.monotonic()
    assert stand_in.http.get(stand_in.url(service_name, "/?sleep=5")).status_code == 504
    assert time.monotonic() - started < 3
    assert stand_in.call(service_name)["path"] == "/"


def test_requests_are_logged(stand_in: StandIn, service_name: str) -> None:
    revision = short(stand_in.create(service_name).latest_ready_revision)
    stand_in.route(service_name, pinned(revision, tag="stable"))
    stand_in.call(service_name, "/counted?x=y")
    stand_in.call(service_name, "/counted", tag="stable")
    log = stand_in.folder / "data" / "requests.jsonl"

    def read() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return [line for line in lines if line["service"] == service_name]

    # Written after the answer.
    mine = wait_for(read, lambda found: len(found) == 2)
    assert [(m["revision"], m["tag"], m["path"], m["status"]) for m in mine] == [
        (revision, None, "/counted", 200),
        (revision, "stable", "/counted", 200),
    ]
    assert all(0 < m["latency_seconds"] < 5 for m in mine)


# Traffic changes


def _two_revisions(stand_in: StandIn, service: str) -> tuple[str, str]:
    first = short(stand_in.create(service).latest_ready_revision)
    stand_in.route(service, pinned(first))
    return first, stand_in.new_revision(service, "--second")


def test_no_request_fails_while_traffic_flips(stand_in: StandIn) -> None:
    first, second = _two_revisions(stand_in, "flips")
    failures: list[str] = []
    served: Counter[str] = Counter()
    stop = False

    def stream() -> None:
        for number in count():
            if stop:
                return
            # A connection of its own for each request, now and then a slow one.
            connection = HTTPConnection("127.0.0.1", stand_in.own_ports["flips"], timeout=30)
            try:
                connection.request("GET", "/?sleep=0.3" if number % 20 == 0 else "/")
                response = connection.getresponse()
                answer = response.read()
                if response.status == 200:
                    served[json.loads(answer)["revision"]] += 1
                else:
                    failures.append(f"{response.status} {answer!r}")
            except (OSError, HTTPException) as error:
                failures.append(repr(error))
            finally:
                connection.close()

    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(stream) for _ in range(4)]
        try:
            for number in range(20):
                stand_in.route("flips", pinned(second if number % 2 == 0 else first))
                time.sleep(0.05)
        finally:
            stop = True
        for each in streams:
            each.result()

    assert failures == []
    # Few on a busy machine: at each flip requests wait for an instance to start.
    assert served[first] > 5
    assert served[second] > 5


def test_request_in_flight_outlives_its_revisions_traffic(
    stand_in: StandIn, service_name: str
) -> None:
    first, second = _two_revisions(stand_in, service_name)
    pid = stand_in.call(service_name)["pid"]
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(stand_in.call, service_name, "/?sleep=2")
        time.sleep(0.3)
        stand_in.route(service_name, pinned(second))
        assert stand_in.call(service_name)["revision"] == second
        assert not slow.done()
        assert alive(pid)
        assert slow.result()["revision"] == first
    wait_for(lambda: not alive(pid))


def test_drained_instance_that_ignores_sigterm_is_killed(stubborn: Future[float]) -> None:
    assert 9.5 < stubborn.result() < 13


def test_drain_time_is_limited(impatient: StandIn, service_name: str) -> None:
    _, second = _two_revisions(impatient, service_name)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(impatient.http.get, impatient.url(service_name, "/?sleep=20"))
        time.sleep(0.3)
        impatient.route(service_name, pinned(second))
        assert slow.result().status_code == 503


def test_percentages_hold(impatient: StandIn, service_name: str) -> None:
    first, second = _two_revisions(impatient, service_name)
    impatient.route(service_name, pinned(first, 70), pinned(second, 20), latest(10, "newest"))
    total = 400
    served: Counter[str] = Counter()
    connection = HTTPConnection("127.0.0.1", impatient.port, timeout=30)
    for _ in range(total):
        connection.request("GET", "/", headers={"Host": f"{service_name}.localhost"})
        response = connection.getresponse()
        assert response.status == 200
        served[json.loads(response.read())["revision"]] += 1
    connection.close()
    # Four standard deviations either way.
    assert abs(served[first] - 0.7 * total) < 4 * (total * 0.7 * 0.3) ** 0.5
    # The tenth that goes to LATEST is the second revision's, too.
    assert served[first] + served[second] == total


# Instances


def test_scale_to_zero_and_back(impatient: StandIn, service_name: str) -> None:
    impatient.create(service_name)
    pid = impatient.call(service_name)["pid"]
    wait_for(lambda: impatient.containers(service_name), lambda pids: not pids)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(impatient.call, [service_name] * 8))
    assert {answer["pid"] for answer in answers} != {pid}
    assert len({answer["pid"] for answer in answers}) == 1
    # Requests that come while it is being stopped for being idle.
    for pause in (0.35, 0.4, 0.45, 0.5, 0.4):
        time.sleep(pause)
        impatient.call(service_name)


def test_minimum_of_instances_is_kept(impatient: StandIn, service_name: str) -> None:
    body = service_body()
    body.template.scaling.min_instance_count = 1
    impatient.deploy(service_name, body)
    pid = impatient.call(service_name)["pid"]
    time.sleep(1.2)
    assert impatient.call(service_name)["pid"] == pid


def test_crash_fails_its_own_requests_only(stand_in: StandIn, service_name: str) -> None:
    stand_in.create(service_name)
    pid = stand_in.call(service_name)["pid"]
    assert stand_in.http.get(stand_in.url(service_name, "/exit")).status_code == 503
    # At once, without waiting for the back-off.
    assert stand_in.call(service_name)["pid"] != pid
    with pytest.raises(httpx.RemoteProtocolError):
        stand_in.http.get(stand_in.url(service_name, "/broken"))
    assert stand_in.call(service_name)["path"] == "/"


def test_instance_killed_while_idle_is_started_again(stand_in: StandIn, service_name: str) -> None:
    stand_in.create(service_name)
    pid = stand_in.call(service_name)["pid"]
    os.kill(pid, 9)
    # A dying process still takes connections for a moment: wait until it is buried.
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    assert stand_in.call(service_name)["pid"] != pid
    before = set(stand_in.containers())
    os.kill(stand_in.call(service_name)["pid"], 9)
    # With traffic it comes back without a request.
    wait_for(lambda: set(stand_in.containers()) - before)


# The process


def test_state_survives_sigkill(mortal: StandIn) -> None:
    first, second = _two_revisions(mortal, "predict")
    mortal.route("predict", pinned(first), pinned(second, 0, "candidate"))
    mortal.create("broken", "--exit=1")
    policy = mortal.grant("predict", f"serviceAccount:{CALLER}")
    before = mortal.get("predict")
    token = mortal.id_token(CALLER, before.uri)
    revisions = list(mortal.revisions.list_revisions(parent=before.name))
    broken = mortal.get("broken")
    pids = mortal.containers()
    # Killed in the middle of a reconciliation, too.
    mortal.create("late")
    unfinished = mortal.write(
        run_v2.Service(name=mortal.name("late"), template=template("--delay=1", "--new")),
        "template",
    )

    mortal.kill()
    wait_for(lambda: not any(alive(pid) for pid in pids), seconds=3)
    mortal.start()

    assert mortal.get("predict") == before
    assert list(mortal.revisions.list_revisions(parent=before.name)) == revisions
    assert mortal.get("broken") == broken
    assert mortal.http.get(before.uri).status_code == 401
    mortal.http.headers["Authorization"] = f"Bearer {token}"
    assert mortal.call("predict")["revision"] == first
    assert mortal.call("predict", tag="candidate")["revision"] == second
    assert mortal.policy("predict") == policy
    before.description = "the etag is still good"
    assert mortal.update(before, "description").generation == before.generation + 1
    assert mortal.settled("late").terminal_condition.state == (
        run_v2.Condition.State.CONDITION_SUCCEEDED
    )
    assert mortal.call("late")["args"] == ["--delay=1", "--new"]
    assert result(unfinished).generation == 2


def test_leftover_processes_are_killed_at_start(mortal: StandIn) -> None:
    mortal.kill()
    marker = str((mortal.folder / "data").resolve())
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours = subprocess.Popen(sleeper, env={"CLOUD_RUN_STAND_IN": marker})
    other = subprocess.Popen(sleeper, env={"CLOUD_RUN_STAND_IN": marker + "-other"})
    try:
        mortal.start()
        assert ours.wait(5) == -9
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_sigterm_stops_everything(mortal: StandIn, service_name: str) -> None:
    _two_revisions(mortal, service_name)
    assert len(mortal.containers(service_name)) == 2
    assert mortal.terminate() == 0
    assert mortal.containers() == []


def test_second_process_on_the_same_folder_is_refused(stand_in: StandIn) -> None:
    command = [sys.executable, "-m", "local.cloud_run", "--config"]
    second = subprocess.run(
        [*command, str(stand_in.folder / "config.json")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        check=False,
    )
    assert second.returncode != 0
    assert "in use by another stand-in" in second.stderr


def test_unknown_setting_is_refused(stand_in: StandIn) -> None:
    CloudRunConfig.model_validate(stand_in.config)
    with pytest.raises(ValueError, match="Extra inputs"):
        CloudRunConfig.model_validate({**stand_in.config, "no_such_setting": 1})
