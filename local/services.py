"""The Cloud Run services of the local stack, deployed as Terraform deploys them.

Who may call whom comes from the table that Terraform reads as well,
``terraform/callers.json``: `invokers` names the service accounts that may call a
service, `people` the services that are for signed-in people (IAP) and no program.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc
import httpx
from google.api_core.exceptions import NotFound
from google.api_core.operation import Operation
from google.cloud import run_v2, scheduler_v1
from google.cloud.run_v2.services.services.transports import ServicesGrpcTransport
from google.cloud.scheduler_v1.services.cloud_scheduler.transports import (
    CloudSchedulerGrpcTransport,
)
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from local.cloud_run.config import CloudRunConfig, Image
from local.programs import database_environment, environment_python
from local.settings import (
    ARTIFACTS_BUCKET,
    JOB,
    MLFLOW_HOST,
    MODEL,
    PROJECT,
    PROJECT_NUMBER,
    REGION,
    ROOT,
    SERVING_BUCKET,
    LocalSettings,
)

SERVICES = ("predict", "proxy", "promote", "ui", "mlflow", "mlflow-api")
START_SECONDS = 180.0

# Image -> environment (the folder under .venvs) and module. Two builds of predict: the
# second stands for new code.
_BUILDS = {
    "predict:1": ("predict", "functions.predict"),
    "predict:2": ("predict", "functions.predict"),
    "proxy:1": ("proxy", "functions.proxy"),
    "promote:1": ("promote", "functions.promote"),
    "mlflow:1": ("mlflow-server", "mlflow_server"),
    "ui:1": ("ui", "ui"),
}
HEALTH_PATHS = {
    "predict": "/health",
    "proxy": "/health",
    "promote": "/health",
    "mlflow": "/health",
    "ui": "/_stcore/health",
}
_REGISTRY = f"{REGION}-docker.pkg.dev/{PROJECT}/greenroom"
_PARENT = f"projects/{PROJECT}/locations/{REGION}"
_JOB = f"{_PARENT}/jobs/{JOB}"


@dataclass(frozen=True)
class Callers:
    """Who may call whom."""

    invokers: Mapping[str, Sequence[str]]
    """Service -> names of the service accounts that may call it."""
    people: Sequence[str]
    """Services for signed-in people."""


@dataclass(frozen=True)
class _Service:
    name: str
    image: str
    environment: Mapping[str, str] = field(default_factory=dict)
    args: Sequence[str] = ()


def read_callers() -> Callers:
    """Return the table of who may call whom."""
    return Callers(**json.loads((ROOT / "terraform" / "callers.json").read_text()))


def account(name: str) -> str:
    """Return the e-mail address of a service account."""
    return f"{name}@{PROJECT}.iam.gserviceaccount.com"


def image(name: str) -> str:
    """Return the full reference of an image such as ``predict:1``."""
    return f"{_REGISTRY}/{name}"


def service_url(settings: LocalSettings, name: str) -> str:
    """Return a service's own address, which ID tokens for it name as their audience."""
    return f"http://{name}.localhost:{settings.ports['cloud_run_front']}"


def caller_environment(settings: LocalSettings) -> dict[str, str]:
    """Return the variables by which a program in this stack reaches services by their address.

    Python does not resolve ``http://SERVICE.localhost:PORT``: the front end is the
    requests' proxy.
    """
    return {"HTTP_PROXY": settings.url("cloud_run_front"), "NO_PROXY": "127.0.0.1"}


def write_config(settings: LocalSettings, images: Mapping[str, Image]) -> Path:
    """Write the configuration of the local Cloud Run, and return the file.

    Args:
        settings: of the stack.
        images: further images, such as ``predict:3``, and what they run.
    """
    config = CloudRunConfig(
        project=PROJECT,
        project_number=PROJECT_NUMBER,
        region=REGION,
        data_dir=settings.data_dir / "cloud_run",
        api_port=settings.ports["cloud_run"],
        port=settings.ports["cloud_run_front"],
        # What `gcloud run services proxy` is in the cloud: a person at this machine,
        # who owns the project, may call everything.
        service_ports={name: settings.ports[name] for name in SERVICES if name in settings.ports},
        images={
            image(name): Image(
                entrypoint=[environment_python(environment), "-m", module],
                working_directory=ROOT,
            )
            for name, (environment, module) in _BUILDS.items()
        }
        | {image(name): content for name, content in images.items()},
        environment={
            "STORAGE_EMULATOR_HOST": settings.url("storage"),
            "FIRESTORE_EMULATOR_HOST": settings.address("firestore"),
            **caller_environment(settings),
        },
        metadata_ports={account("scheduler"): settings.ports["scheduler_identity"]},
        check_callers=True,
        startup_timeout_seconds=START_SECONDS,
    )
    path = settings.data_dir / "cloud_run.json"
    path.write_text(config.model_dump_json(indent=2))
    return path


def client(settings: LocalSettings) -> run_v2.ServicesClient:
    """Return Google's client of the local Cloud Run's API."""
    channel = grpc.insecure_channel(settings.address("cloud_run"))
    return run_v2.ServicesClient(transport=ServicesGrpcTransport(channel=channel))


def service_name(name: str) -> str:
    """Return a service's full resource name."""
    return f"{_PARENT}/services/{name}"


def deploy(settings: LocalSettings, *, with_postgres: bool) -> None:
    """Create the services, or bring them to what they should be, as Terraform does.

    What promote owns is left as it is: arguments, labels and traffic.

    Args:
        settings: of the stack.
        with_postgres: MLflow's database is PostgreSQL, else SQLite.

    Raises:
        google.api_core.exceptions.GoogleAPICallError: a service does not become ready.
    """
    services, callers = client(settings), read_callers()

    def url(name: str) -> str:
        return service_url(settings, name)

    mlflow = {
        **database_environment(settings, with_postgres=with_postgres),
        "ARTIFACT_ROOT": f"gs://{ARTIFACTS_BUCKET}/mlflow",
    }
    first = [_Service("mlflow-api", "mlflow:1", mlflow | _hosts(url("mlflow-api")), ["serve"])]
    others = [
        _Service(
            "mlflow",
            "mlflow:1",
            mlflow
            | _hosts(
                url("mlflow"),
                *(
                    f"http://{host}:{settings.ports['mlflow']}"
                    for host in (MLFLOW_HOST, "127.0.0.1", "localhost")
                ),
            ),
            ["serve"],
        ),
        _Service("predict", "predict:1"),
        _Service(
            "proxy",
            "proxy:1",
            {
                "PREDICT_URL": url("predict"),
                "PREDICT_AUDIENCE": url("predict"),
                "FIRESTORE_PROJECT": PROJECT,
                "TRUSTED_FRONTS": account("ui"),
            },
        ),
        _Service(
            "promote",
            "promote:1",
            {
                "PROJECT": PROJECT,
                "REGION": REGION,
                "SERVICE": "predict",
                "CLOUD_RUN_ENDPOINT": settings.url("cloud_run"),
                "MONITORING_ENDPOINT": settings.url("monitoring"),
                "MLFLOW_TRACKING_URI": url("mlflow-api"),
                "MLFLOW_AUDIENCE": url("mlflow-api"),
                "MODEL_NAME": MODEL,
                "PROXY_URL": url("proxy"),
                "ARTIFACTS_BUCKET": ARTIFACTS_BUCKET,
                "SERVING_BUCKET": SERVING_BUCKET,
                # The sample's 209 test texts can't show one version as good as another.
                "HEED_VALIDATION": "false",
                # All parts share this machine's cores, and are slow by turns.
                "LATENCY_FLOOR_SECONDS": "3",
            },
        ),
        _Service(
            "ui",
            "ui:1",
            {
                "PROXY_URL": url("proxy"),
                "PROXY_AUDIENCE": url("proxy"),
                # For a browser of this machine, by MLflow's own port.
                "MLFLOW_URL": settings.url("mlflow"),
                "MODEL_NAME": MODEL,
            },
        ),
    ]
    # mlflow-api first and alone: two servers at once would both make the database's tables.
    for group in (first, others):
        operations = [_apply(services, service, callers) for service in group]
        for operation in filter(None, operations):
            operation.result(timeout=START_SECONDS)
    for name in SERVICES:
        _allow(services, name, callers.invokers[name])


def schedule(settings: LocalSettings) -> bool:
    """Create the job that calls promote, or bring it to what it should be, as Terraform does.

    Whether it is paused is left as it is, and returned.
    """
    url = service_url(settings, "promote")
    job = scheduler_v1.Job(
        name=_JOB,
        schedule="* * * * *",
        attempt_deadline=timedelta(seconds=60),
        http_target=scheduler_v1.HttpTarget(
            uri=f"{url}/",
            http_method=scheduler_v1.HttpMethod.POST,
            oidc_token=scheduler_v1.OidcToken(
                service_account_email=account("scheduler"), audience=url
            ),
        ),
    )
    with _scheduler(settings) as jobs:
        try:
            before = jobs.get_job(name=job.name)
        except NotFound:
            jobs.create_job(parent=_PARENT, job=job)
            return False
        if before.http_target.uri != job.http_target.uri:
            jobs.update_job(job=job, update_mask=FieldMask(paths=["http_target"]))
        return before.state == scheduler_v1.Job.State.PAUSED


def is_paused(settings: LocalSettings) -> bool:
    """Return whether the job that calls promote is paused.

    Raises:
        google.api_core.exceptions.GoogleAPICallError: the scheduler does not answer.
    """
    with _scheduler(settings) as jobs:
        return jobs.get_job(name=_JOB).state == scheduler_v1.Job.State.PAUSED


@contextmanager
def _scheduler(settings: LocalSettings) -> Iterator[scheduler_v1.CloudSchedulerClient]:
    with grpc.insecure_channel(settings.address("scheduler")) as channel:
        yield scheduler_v1.CloudSchedulerClient(
            transport=CloudSchedulerGrpcTransport(channel=channel)
        )


def _hosts(*origins: str) -> dict[str, str]:
    """Return MLflow's settings for the addresses under which it is reached."""
    return {
        "ALLOWED_HOSTS": ",".join(origin.removeprefix("http://") for origin in origins),
        "CORS_ALLOWED_ORIGINS": ",".join(origins),
    }


def _apply(services: run_v2.ServicesClient, wanted: _Service, callers: Callers) -> Operation | None:
    environment = [run_v2.EnvVar(name=k, value=v) for k, v in wanted.environment.items()]
    try:
        service = services.get_service(name=service_name(wanted.name))
    except NotFound:
        service = run_v2.Service(
            template=run_v2.RevisionTemplate(
                containers=[
                    run_v2.Container(
                        image=image(wanted.image), args=list(wanted.args), env=environment
                    )
                ],
                service_account=account(wanted.name),
                max_instance_request_concurrency=80,
            ),
            iap_enabled=wanted.name in callers.people,
        )
        return services.create_service(parent=_PARENT, service=service, service_id=wanted.name)
    container = service.template.containers[0]
    if list(container.env) == environment:
        return None
    container.env = environment
    service.template.revision = ""
    service.etag = ""
    return services.update_service(service=service)


def _allow(services: run_v2.ServicesClient, name: str, invokers: Sequence[str]) -> None:
    """Give the role of invoker to these service accounts, and to nobody else."""
    binding = policy_pb2.Binding(
        role="roles/run.invoker",
        members=[f"serviceAccount:{account(invoker)}" for invoker in invokers],
    )
    services.set_iam_policy(
        request=iam_policy_pb2.SetIamPolicyRequest(
            resource=service_name(name),
            policy=policy_pb2.Policy(bindings=[binding] if invokers else []),
        )
    )


def answer(settings: LocalSettings, name: str) -> str:
    """Return in words whether a service answers at its own port."""
    try:
        response = httpx.get(f"{settings.url(name)}{HEALTH_PATHS[name]}", timeout=30)
    except httpx.HTTPError:
        return "does not answer"
    return "answers" if response.is_success else f"answers {response.status_code}"


def write_endpoints(settings: LocalSettings) -> Path:
    """Write ``endpoints.json``, and return it."""
    path = settings.data_dir / "endpoints.json"
    path.write_text(json.dumps(settings.endpoints, indent=2) + "\n")
    return path
