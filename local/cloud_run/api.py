"""The admin API over gRPC: Services with their IAM policies, Revisions and Operations."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.cloud import run_v2
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.longrunning import operations_pb2

from local.cloud_run.control import ControlPlane
from local.cloud_run.validation import Refused, invalid

Request = TypeVar("Request")
Response = TypeVar("Response")

_LONGEST_WAIT_SECONDS = 300.0


def create_server(plane: ControlPlane, port: int) -> grpc.aio.Server:
    """A gRPC server on 127.0.0.1, not yet started.

    Args:
        plane: what it reads and changes.
        port: where it listens.

    Raises:
        RuntimeError: the port is taken.
    """
    # Without SO_REUSEPORT a second stand-in on the same port fails instead of
    # taking half of the calls.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_services(plane), _revisions(plane), _operations(plane)))
    server.add_insecure_port(f"127.0.0.1:{port}")
    return server


def _services(plane: ControlPlane) -> grpc.GenericRpcHandler:
    def get(request: run_v2.GetServiceRequest) -> run_v2.Service:
        return plane.state.get_service(request.name)

    to_operation = operations_pb2.Operation.SerializeToString
    return grpc.method_handlers_generic_handler(
        "google.cloud.run.v2.Services",
        {
            "GetService": _method(
                get, run_v2.GetServiceRequest.deserialize, run_v2.Service.serialize
            ),
            "ListServices": _method(
                plane.state.list_services,
                run_v2.ListServicesRequest.deserialize,
                run_v2.ListServicesResponse.serialize,
            ),
            "CreateService": _method(
                plane.create_service, run_v2.CreateServiceRequest.deserialize, to_operation
            ),
            "UpdateService": _method(
                plane.update_service, run_v2.UpdateServiceRequest.deserialize, to_operation
            ),
            "DeleteService": _method(
                plane.delete_service, run_v2.DeleteServiceRequest.deserialize, to_operation
            ),
            "GetIamPolicy": _method(
                plane.state.get_iam_policy,
                iam_policy_pb2.GetIamPolicyRequest.FromString,
                policy_pb2.Policy.SerializeToString,
            ),
            "SetIamPolicy": _method(
                plane.set_iam_policy,
                iam_policy_pb2.SetIamPolicyRequest.FromString,
                policy_pb2.Policy.SerializeToString,
            ),
            "TestIamPermissions": _method(
                plane.state.test_iam_permissions,
                iam_policy_pb2.TestIamPermissionsRequest.FromString,
                iam_policy_pb2.TestIamPermissionsResponse.SerializeToString,
            ),
        },
    )


def _revisions(plane: ControlPlane) -> grpc.GenericRpcHandler:
    def get(request: run_v2.GetRevisionRequest) -> run_v2.Revision:
        return plane.state.get_revision(request.name)

    return grpc.method_handlers_generic_handler(
        "google.cloud.run.v2.Revisions",
        {
            "GetRevision": _method(
                get, run_v2.GetRevisionRequest.deserialize, run_v2.Revision.serialize
            ),
            "ListRevisions": _method(
                plane.state.list_revisions,
                run_v2.ListRevisionsRequest.deserialize,
                run_v2.ListRevisionsResponse.serialize,
            ),
            "DeleteRevision": _method(
                plane.delete_revision,
                run_v2.DeleteRevisionRequest.deserialize,
                operations_pb2.Operation.SerializeToString,
            ),
        },
    )


def _operations(plane: ControlPlane) -> grpc.GenericRpcHandler:
    def get(request: operations_pb2.GetOperationRequest) -> operations_pb2.Operation:
        return plane.state.get_operation(request.name)

    def list_(
        request: operations_pb2.ListOperationsRequest,
    ) -> operations_pb2.ListOperationsResponse:
        if request.filter:
            raise invalid("filter: the stand-in lists all operations or none")
        plane.state.scope.check_parent(request.name)
        return operations_pb2.ListOperationsResponse(
            operations=[record.operation for record in plane.state.operations.values()]
        )

    async def wait(request: operations_pb2.WaitOperationRequest) -> operations_pb2.Operation:
        seconds = _LONGEST_WAIT_SECONDS
        if request.HasField("timeout"):
            seconds = min(seconds, request.timeout.ToTimedelta().total_seconds())
        return await plane.wait_operation(request.name, seconds)

    to_operation = operations_pb2.Operation.SerializeToString
    return grpc.method_handlers_generic_handler(
        "google.longrunning.Operations",
        {
            "GetOperation": _method(
                get, operations_pb2.GetOperationRequest.FromString, to_operation
            ),
            "ListOperations": _method(
                list_,
                operations_pb2.ListOperationsRequest.FromString,
                operations_pb2.ListOperationsResponse.SerializeToString,
            ),
            "WaitOperation": _method(
                wait, operations_pb2.WaitOperationRequest.FromString, to_operation
            ),
        },
    )


def _method(
    call: Callable[[Request], Response | Awaitable[Response]],
    deserialize: Callable[[bytes], Request],
    serialize: Callable[[Response], bytes],
) -> grpc.RpcMethodHandler:
    async def handle(request: Request, context: Any) -> Response:
        try:
            answer = call(request)
            return await answer if isinstance(answer, Awaitable) else answer
        except Refused as refusal:
            await context.abort(refusal.code, refusal.message)
            raise

    return grpc.unary_unary_rpc_method_handler(
        handle, request_deserializer=deserialize, response_serializer=serialize
    )
