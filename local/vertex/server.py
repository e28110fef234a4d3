"""The two APIs over gRPC: JobService of Vertex AI, LoggingServiceV2 of Cloud Logging."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from google.cloud import aiplatform_v1 as vertex
from google.cloud.logging_v2.types import ListLogEntriesRequest, ListLogEntriesResponse
from google.protobuf.empty_pb2 import Empty

from local.cloud_run.validation import Refused
from local.vertex.jobs import Jobs, VertexConfig
from local.vertex.logs import Log

Request = TypeVar("Request")
Response = TypeVar("Response")


class VertexStandIn:
    """Both APIs on one port of 127.0.0.1, which the system chooses.

    Args:
        config: of the stand-in.
    """

    def __init__(self, config: VertexConfig) -> None:
        self.failures: dict[str, tuple[grpc.StatusCode, str]] = {}
        """Method, such as ``CreateCustomJob``, to the error that it answers with."""
        self.calls: Counter[str] = Counter()
        """Calls of each method."""
        self._log = Log(config.project, config.log_delay_seconds)
        self._jobs = Jobs(config, self._log)
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self._job_service(), self._logging_service()))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def close(self) -> None:
        """Stop answering, and end all jobs."""
        self._server.stop(grace=None).wait()
        self._jobs.close()

    def preempt(self, name: str) -> None:
        """Take the machine of a running job away, as happens to Spot machines."""
        self._jobs.preempt(name)

    def _job_service(self) -> grpc.GenericRpcHandler:
        def cancel(request: vertex.CancelCustomJobRequest) -> Empty:
            self._jobs.cancel(request)
            return Empty()

        to_job = vertex.CustomJob.serialize
        return grpc.method_handlers_generic_handler(
            "google.cloud.aiplatform.v1.JobService",
            {
                "CreateCustomJob": self._method(
                    "CreateCustomJob",
                    self._jobs.create,
                    vertex.CreateCustomJobRequest.deserialize,
                    to_job,
                ),
                "GetCustomJob": self._method(
                    "GetCustomJob",
                    self._jobs.get,
                    vertex.GetCustomJobRequest.deserialize,
                    to_job,
                ),
                "ListCustomJobs": self._method(
                    "ListCustomJobs",
                    self._jobs.list,
                    vertex.ListCustomJobsRequest.deserialize,
                    vertex.ListCustomJobsResponse.serialize,
                ),
                "CancelCustomJob": self._method(
                    "CancelCustomJob",
                    cancel,
                    vertex.CancelCustomJobRequest.deserialize,
                    Empty.SerializeToString,
                ),
            },
        )

    def _logging_service(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "google.logging.v2.LoggingServiceV2",
            {
                "ListLogEntries": self._method(
                    "ListLogEntries",
                    self._log.list,
                    ListLogEntriesRequest.deserialize,
                    ListLogEntriesResponse.serialize,
                )
            },
        )

    def _method(
        self,
        name: str,
        call: Callable[[Request], Response],
        deserialize: Callable[[bytes], Request],
        serialize: Callable[[Response], bytes],
    ) -> grpc.RpcMethodHandler:
        def handle(request: Request, context: Any) -> Response:
            self.calls[name] += 1
            try:
                if name in self.failures:
                    raise Refused(*self.failures[name])
                return call(request)
            except Refused as refusal:
                context.abort(refusal.code, refusal.message)
                raise

        return grpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=deserialize, response_serializer=serialize
        )
