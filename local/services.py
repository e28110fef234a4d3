"""The three Cloud Run services of the local stack, deployed as Terraform deploys them."""

import json
from collections.abc import Mapping
from pathlib import Path

import grpc
from google.api_core.exceptions import NotFound
from google.cloud import run_v2
from google.cloud.run_v2.services.services.transports import ServicesGrpcTransport

from local.cloud_run.config import CloudRunConfig, Image
from local.programs import environment_python
from local.settings import (
    ARTIFACTS_BUCKET,
    MODEL,
    PROJECT,
    PROJECT_NUMBER,
    REGION,
    ROOT,
    SERVING_BUCKET,
    LocalSettings,
)

SERVICES = ("predict", "proxy", "promote")
# Two builds of predict: the second stands for new code.
IMAGES = ("predict:1", "predict:2", "proxy:1", "promote:1")
_REGISTRY = f"{REGION}-docker.pkg.dev/{PROJECT}/greenroom"
_PARENT = f"projects/{PROJECT}/locations/{REGION}"


def image(name: str) -> str:
    """Return the full reference of an image such as ``predict:1``."""
    return f"{_REGISTRY}/{name}"


def write_config(settings: LocalSettings) -> Path:
    """Write the configuration of the local Cloud Run, and return the file."""
    front = settings.url("cloud_run_front")
    config = CloudRunConfig(
        project=PROJECT,
        project_number=PROJECT_NUMBER,
        region=REGION,
        data_dir=settings.data_dir / "cloud_run",
        api_port=settings.ports["cloud_run"],
        port=settings.ports["cloud_run_front"],
        service_ports={name: settings.ports[name] for name in SERVICES},
        images={
            image(name): Image(
                entrypoint=[
                    environment_python(name.partition(":")[0]),
                    "-m",
                    f"functions.{name.partition(':')[0]}",
                ],
                working_directory=ROOT,
            )
            for name in IMAGES
        },
        environment={
            "STORAGE_EMULATOR_HOST": settings.url("storage"),
            "FIRESTORE_EMULATOR_HOST": settings.address("firestore"),
            # A service's own address, http://SERVICE.localhost:PORT, is not one that
            # Python resolves: the front end is its requests' proxy.
            "HTTP_PROXY": front,
            "NO_PROXY": "127.0.0.1",
        },
    )
    path = settings.data_dir / "cloud_run.json"
    path.write_text(config.model_dump_json(indent=2))
    return path


def client(settings: LocalSettings) -> run_v2.ServicesClient:
    """Return Google's client of the local Cloud Run's API."""
    channel = grpc.insecure_channel(settings.address("cloud_run"))
    return run_v2.ServicesClient(transport=ServicesGrpcTransport(channel=channel))


def deploy(settings: LocalSettings) -> None:
    """Create the services, or bring them to what they should be, as Terraform does.

    What promote owns is left as it is: arguments, labels and traffic.

    Raises:
        google.api_core.exceptions.GoogleAPICallError: a service does not become ready.
    """
    services = client(settings)
    predict = _apply(services, "predict", {})
    _apply(services, "proxy", {"PREDICT_URL": predict.uri, "FIRESTORE_PROJECT": PROJECT})
    _apply(
        services,
        "promote",
        {
            "PROJECT": PROJECT,
            "REGION": REGION,
            "SERVICE": "predict",
            "CLOUD_RUN_ENDPOINT": settings.url("cloud_run"),
            "MLFLOW_TRACKING_URI": settings.url("mlflow"),
            "MODEL_NAME": MODEL,
            "ARTIFACTS_BUCKET": ARTIFACTS_BUCKET,
            "SERVING_BUCKET": SERVING_BUCKET,
        },
    )


def _apply(
    services: run_v2.ServicesClient, name: str, environment: Mapping[str, str]
) -> run_v2.Service:
    wanted = [run_v2.EnvVar(name=key, value=value) for key, value in environment.items()]
    full_name = f"{_PARENT}/services/{name}"
    try:
        service = services.get_service(name=full_name)
    except NotFound:
        service = run_v2.Service(
            template=run_v2.RevisionTemplate(
                containers=[run_v2.Container(image=image(f"{name}:1"), env=wanted)],
                max_instance_request_concurrency=80,
            )
        )
        services.create_service(parent=_PARENT, service=service, service_id=name).result(timeout=60)
    else:
        container = service.template.containers[0]
        if list(container.env) != wanted:
            container.env = wanted
            service.template.revision = ""
            service.etag = ""
            services.update_service(service=service).result(timeout=60)
    return services.get_service(name=full_name)


def write_endpoints(settings: LocalSettings) -> Path:
    """Write ``endpoints.json``, and return it."""
    path = settings.data_dir / "endpoints.json"
    path.write_text(json.dumps(settings.endpoints, indent=2) + "\n")
    return path
