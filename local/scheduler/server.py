"""The API over gRPC: ``google.cloud.scheduler.v1.CloudScheduler``."""

from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.cloud import scheduler_v1
from google.protobuf.empty_pb2 import Empty

from local.cloud_run.validation import Refused
from local.scheduler.jobs import Jobs

Request = TypeVar("Request")
Response = TypeVar("Response")


def create_server(jobs: Jobs, port: int) -> grpc.aio.Server:
    """Return a gRPC server on 127.0.0.1, not yet started.

    Args:
        jobs: what it reads and changes.
        port: where it listens.

    Raises:
        RuntimeError: the port is taken.
    """
    to_job = scheduler_v1.Job.serialize
    # Without SO_REUSEPORT a second stand-in on the same port fails instead of
    # taking half of the calls.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "google.cloud.scheduler.v1.CloudScheduler",
                {
                    "GetJob": _method(jobs.get, scheduler_v1.GetJobRequest.deserialize, to_job),
                    "ListJobs": _method(
                        jobs.list,
                        scheduler_v1.ListJobsRequest.deserialize,
                        scheduler_v1.ListJobsResponse.serialize,
                    ),
                    "CreateJob": _method(
                        jobs.create, scheduler_v1.CreateJobRequest.deserialize, to_job
                    ),
                    "UpdateJob": _method(
                        jobs.update, scheduler_v1.UpdateJobRequest.deserialize, to_job
                    ),
                    "DeleteJob": _method(
                        jobs.delete,
                        scheduler_v1.DeleteJobRequest.deserialize,
                        Empty.SerializeToString,
                    ),
                    "PauseJob": _method(
                        jobs.pause, scheduler_v1.PauseJobRequest.deserialize, to_job
                    ),
                    "ResumeJob": _method(
                        jobs.resume, scheduler_v1.ResumeJobRequest.deserialize, to_job
                    ),
                    "RunJob": _method(jobs.run, scheduler_v1.RunJobRequest.deserialize, to_job),
                },
            ),
        )
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    return server


def _method(
    call: Callable[[Request], Response],
    deserialize: Callable[[bytes], Request],
    serialize: Callable[[Response], bytes],
) -> grpc.RpcMethodHandler:
    async def handle(request: Request, context: Any) -> Response:
        try:
            return call(request)
        except Refused as refusal:
            await context.abort(refusal.code, refusal.message)
            raise

    return grpc.unary_unary_rpc_method_handler(
        handle, request_deserializer=deserialize, response_serializer=serialize
    )
