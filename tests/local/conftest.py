"""A stand-in of Cloud Run as a process of its own, and tiny containers for it."""

import json
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.api_core import operation as operations
from google.api_core.future import polling
from google.cloud import run_v2
from google.cloud.run_v2.services.revisions.transports import RevisionsGrpcTransport
from google.cloud.run_v2.services.services.transports import ServicesGrpcTransport
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.protobuf import field_mask_pb2

from local.settings import free_port

PROJECT = "greenroom-test"
NUMBER = "123456789012"
REGION = "europe-west1"
PARENT = f"projects/{PROJECT}/locations/{REGION}"
ROOT = Path(__file__).parents[2]

# Accounts with a metadata server for this process: it can be any of them.
CALLER = f"caller@{PROJECT}.iam.gserviceaccount.com"
STRANGER = f"stranger@{PROJECT}.iam.gserviceaccount.com"
# Services with a port of their own.
WITH_PORTS = ("predict", "flips", "socket", "person", "guarded")

LATEST = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST
REVISION = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION

# A container: says who it is; `?sleep=` makes it slow, `/exit` ends it, `/echo` gives
# the body back, `/identity?audience=` fetches an ID token of its own. Arguments:
# --exit=N, --deaf (never listens), --ignore-sigterm, --delay=SECONDS (until it
# listens), --unready=SECONDS (503 on /ready).
CONTAINER = textwrap.dedent(
    """
    import json, os, signal, sys, time
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    options = dict(a.lstrip("-").partition("=")[::2] for a in sys.argv[1:])
    born = time.monotonic()
    print("hello from", os.environ["K_REVISION"], flush=True)
    if "exit" in options:
        sys.exit(int(options["exit"]))
    if "deaf" in options:
        time.sleep(600)
    if "ignore-sigterm" in options:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(float(options.get("delay", 0)))


    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do(self):
            body = self.read()
            path, _, query = self.path.partition("?")
            if query.startswith("sleep="):
                time.sleep(float(query[6:]))
            if path == "/exit":
                os._exit(7)
            status = 200
            if path == "/ready" and time.monotonic() - born < float(options.get("unready", 0)):
                status = 503
            if path == "/redirect":
                status = 302
            if path == "/identity":
                body = self.identity(query)
            answer = body if path in ("/echo", "/identity") else json.dumps({
                "revision": os.environ["K_REVISION"], "args": sys.argv[1:],
                "environment": dict(os.environ), "path": self.path, "method": self.command,
                "headers": dict(self.headers.items()), "length": len(body), "pid": os.getpid(),
            }).encode()
            self.send_response(status)
            if path == "/chunked":
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for part in (b"one ", b"two ", b"three"):
                    self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(part), part))
                    self.wfile.flush()
                self.wfile.write(b"0\\r\\n\\r\\n")
                return
            if path == "/broken":
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                self.wfile.write(b"half")
                self.wfile.flush()
                os._exit(9)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        def identity(self, query):
            from urllib.request import Request, urlopen

            account = "computeMetadata/v1/instance/service-accounts/default"
            url = f"http://{os.environ['GCE_METADATA_HOST']}/{account}/identity?{query}"
            with urlopen(Request(url, headers={"Metadata-Flavor": "Google"})) as answer:
                return answer.read()

        def read(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do

        def log_message(self, *args):
            pass


    class Server(ThreadingHTTPServer):
        request_queue_size = 200
        daemon_threads = True


    Server((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
    """
)

# A container that sends each message of a WebSocket back.
SOCKET_CONTAINER = textwrap.dedent(
    """
    import os
    from aiohttp import web

    async def handle(request):
        socket = web.WebSocketResponse(protocols=["second"])
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"{request.path_qs} {message.data}")
        return socket

    app = web.Application()
    app.router.add_get("/stream", handle)
    web.run_app(app, host=os.environ["HOST"], port=int(os.environ["PORT"]))
    """
)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    ports: list[int] = []
    for _ in range(count):
        ports.append(free_port(exclude=ports))
    return ports


class StandIn:
    """One stand-in process, Google's clients for it, and what tests do all the time."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "container.py"
        script.write_text(CONTAINER)
        self.folder = folder
        socket_script = folder / "socket_container.py"
        socket_script.write_text(SOCKET_CONTAINER)
        self.api_port, self.port, caller_port, stranger_port, *own = free_ports(4 + len(WITH_PORTS))
        self.own_ports = dict(zip(WITH_PORTS, own, strict=True))
        self.metadata_ports = {CALLER: caller_port, STRANGER: stranger_port}
        image = {"entrypoint": [sys.executable, str(script)], "working_directory": str(folder)}
        self.config: dict[str, Any] = {
            "project": PROJECT,
            "project_number": NUMBER,
            "region": REGION,
            "data_dir": str(folder / "data"),
            "api_port": self.api_port,
            "port": self.port,
            "service_ports": self.own_ports,
            "metadata_ports": self.metadata_ports,
            "check_callers": True,
            "images": {
                "predict:1": image,
                "predict:2": image,
                "socket:1": {**image, "entrypoint": [sys.executable, str(socket_script)]},
                "nothing:1": {**image, "entrypoint": ["/no/such/program"]},
            },
            "environment": {"FROM_MACHINE": "yes"},
            "startup_timeout_seconds": 10,
            "random_seed": 7,
            **settings,
        }
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.api_port}")
        self.services = run_v2.ServicesClient(transport=ServicesGrpcTransport(channel=self.channel))
        self.revisions = run_v2.RevisionsClient(
            transport=RevisionsGrpcTransport(channel=self.channel)
        )
        self.http = httpx.Client(proxy=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        path = self.folder / "config.json"
        path.write_text(json.dumps(self.config))
        with (self.folder / "stderr.log").open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "local.cloud_run", "--config", str(path)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.folder / "stderr.log").read_text()
        assert json.loads(line)["message"] == "ready"

    def terminate(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(5)

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def close(self) -> None:
        self.http.close()
        self.channel.close()
        if self.runs():
            self.terminate()

    # The API

    def name(self, service: str) -> str:
        return f"{PARENT}/services/{service}"

    def get(self, service: str) -> run_v2.Service:
        return self.services.get_service(name=self.name(service))

    def create(self, service: str, *args: str, **fields: Any) -> run_v2.Service:
        """Create a service that everybody may call; wait until it is settled, ready or not."""
        return self.deploy(service, service_body(*args, **fields))

    def deploy(self, service: str, body: run_v2.Service) -> run_v2.Service:
        """The same with a body of the test's own."""
        self.services.create_service(parent=PARENT, service_id=service, service=body)
        self.grant(service, "allUsers")
        return self.settled(service)

    def grant(self, service: str, *members: str) -> policy_pb2.Policy:
        """Make these members all of the service's invokers."""
        binding = policy_pb2.Binding(role="roles/run.invoker", members=members)
        return self.set_policy(service, policy_pb2.Policy(bindings=[binding]))

    def policy(self, service: str) -> policy_pb2.Policy:
        return self.services.get_iam_policy(
            iam_policy_pb2.GetIamPolicyRequest(resource=self.name(service))
        )

    def set_policy(self, service: str, policy: policy_pb2.Policy) -> policy_pb2.Policy:
        return self.services.set_iam_policy(
            iam_policy_pb2.SetIamPolicyRequest(resource=self.name(service), policy=policy)
        )

    def update(self, service: run_v2.Service, *mask: str) -> run_v2.Service:
        """Update, wait until settled, return the service as it is then."""
        self.write(service, *mask)
        return self.settled(service.name.rpartition("/")[2])

    def write(self, service: run_v2.Service, *mask: str, **fields: Any) -> Any:
        """Update and return at once."""
        request = run_v2.UpdateServiceRequest(
            service=service, update_mask=field_mask_pb2.FieldMask(paths=mask), **fields
        )
        return self.services.update_service(request=request)

    def settled(self, service: str) -> run_v2.Service:
        found: run_v2.Service = wait_for(lambda: self.get(service), lambda s: not s.reconciling)
        return found

    def new_revision(self, service: str, *args: str, image: str = "predict:1") -> str:
        """Write a template with other arguments; the new revision's short name."""
        body = run_v2.Service(name=self.name(service), template=template(*args, image=image))
        settled = self.update(body, "template")
        return short(settled.latest_created_revision)

    def route(self, service: str, *targets: run_v2.TrafficTarget) -> run_v2.Service:
        return self.update(run_v2.Service(name=self.name(service), traffic=targets), "traffic")

    # The front end

    def url(self, service: str, path: str = "/", tag: str = "") -> str:
        host = f"{tag}---{service}" if tag else service
        return f"http://{host}.localhost:{self.port}{path}"

    def call(self, service: str, path: str = "/", tag: str = "") -> dict[str, Any]:
        response = self.http.get(self.url(service, path, tag))
        assert response.status_code == 200, (response.status_code, response.text)
        answer: dict[str, Any] = response.json()
        return answer

    def id_token(self, account: str, audience: str) -> str:
        """What the account's metadata server gives."""
        response = httpx.get(
            f"http://127.0.0.1:{self.metadata_ports[account]}/computeMetadata/v1/instance/"
            "service-accounts/default/identity",
            params={"audience": audience, "format": "full"},
            headers={"Metadata-Flavor": "Google"},
            trust_env=False,
        )
        assert response.status_code == 200, response.text
        return response.text

    def containers(self, service: str | None = None) -> list[int]:
        """Process ids of all containers of this stand-in, or of one service, that run."""
        wanted = {f"CLOUD_RUN_STAND_IN={(self.folder / 'data').resolve()}".encode()}
        if service is not None:
            wanted.add(f"K_SERVICE={service}".encode())
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and wanted <= set(
                    (entry / "environ").read_bytes().split(b"\0")
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found


def template(*args: str, image: str = "predict:1", **fields: Any) -> run_v2.RevisionTemplate:
    return run_v2.RevisionTemplate(containers=[run_v2.Container(image=image, args=args)], **fields)


def service_body(*args: str, image: str = "predict:1", **fields: Any) -> run_v2.Service:
    return run_v2.Service(**{"template": template(*args, image=image), **fields})


def pinned(revision: str, percent: int = 100, tag: str = "") -> run_v2.TrafficTarget:
    return run_v2.TrafficTarget(type_=REVISION, revision=revision, percent=percent, tag=tag)


def latest(percent: int = 100, tag: str = "") -> run_v2.TrafficTarget:
    return run_v2.TrafficTarget(type_=LATEST, percent=percent, tag=tag)


def short(name: str) -> str:
    return name.rpartition("/")[2]


def wait_for(
    read: Callable[[], Any], until: Callable[[Any], bool] = bool, seconds: float = 20
) -> Any:
    """What `read` gives once `until` accepts it."""
    end = time.monotonic() + seconds
    while True:
        value = read()
        if until(value):
            return value
        assert time.monotonic() < end, f"still {value!r} after {seconds} s"
        time.sleep(0.02)


def result(operation: operations.Operation, seconds: float = 20) -> Any:
    """What the operation gives; Google's own pace would wait a second between two looks."""
    pace = polling.DEFAULT_POLLING.with_delay(initial=0.05, multiplier=1).with_timeout(seconds)
    return operation.result(polling=pace)


def alive(pid: int) -> bool:
    """Whether the process runs; a dead one that nobody waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """One stand-in for all tests that change no setting; each uses a service of its own."""
    running = StandIn(tmp_path_factory.mktemp("cloud-run"))
    running.start()
    yield running
    running.close()


@pytest.fixture(scope="session")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """One that stops idle instances at once and drains briefly; each test with its service."""
    running = StandIn(
        tmp_path_factory.mktemp("impatient"), idle_seconds=0.4, drain_seconds=0.5, random_seed=11
    )
    running.start()
    yield running
    running.close()


@pytest.fixture
def make_stand_in(tmp_path: Path) -> Iterator[Callable[..., StandIn]]:
    """Stand-ins with other settings, not shared."""
    made: list[StandIn] = []

    def make(**settings: Any) -> StandIn:
        running = StandIn(tmp_path / str(len(made)), **settings)
        made.append(running)
        running.start()
        return running

    yield make
    for running in made:
        running.close()


@pytest.fixture
def service_name(request: pytest.FixtureRequest) -> str:
    """A service name of the test's own."""
    return f"t{zlib.crc32(request.node.name.encode()):08x}"
