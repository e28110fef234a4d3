"""The gRPC channel between the proxy and the Firestore emulator, watched.

Refuses a query whose index Terraform does not install, as Firestore does and the
emulator does not; counts what Firestore bills as reads; and can break off a call.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.cloud.firestore_v1.types import (
    BatchGetDocumentsResponse,
    RunQueryRequest,
    RunQueryResponse,
)

from tests.proxy.indexes import missing_index, read_indexes

_SERVICE = "/google.firestore.v1.Firestore/"
_THREADS = 64


class FirestoreRelay(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Passes every call on.

    Args:
        upstream: host:port of the emulator.

    Attributes:
        host: host:port to connect to.
        reads: reads that Firestore would have billed.
        calls: names of the calls, in order.
        before: called with a call's name before it is passed on.
        after: called with a call's name once the emulator has answered, before the answer
            is passed back; `ConnectionError` loses the answer.
    """

    def __init__(self, upstream: str) -> None:
        self.reads = 0
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda _: None
        self.after: Callable[[str], None] = lambda _: None
        self._indexes = read_indexes()
        self._channel = grpc.insecure_channel(upstream)
        self._server = grpc.server(ThreadPoolExecutor(_THREADS), handlers=[self])
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.host = f"127.0.0.1:{port}"
        self._server.start()

    def close(self) -> None:
        """Take no more calls."""
        self._server.stop(0).wait()
        self._channel.close()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Return what handles a call: all are passed on as bytes, in one form for each."""
        method = details.method
        call = self._channel.unary_stream(method)
        name = method.removeprefix(_SERVICE)

        def handle(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.calls.append(name)
            self._check(name, request, context)
            self.before(name)
            metadata = [
                (key, value)
                for key, value in context.invocation_metadata()
                if not key.startswith(("user-agent", "grpc-"))
            ]
            answers = []
            try:
                for answer in call(request, metadata=metadata, timeout=context.time_remaining()):
                    self._count(name, answer)
                    answers.append(answer)
            except grpc.RpcError as error:
                self.after(name)
                failure: Any = error
                context.abort(failure.code(), failure.details())
            try:
                self.after(name)
            except ConnectionError:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            yield from answers

        return grpc.unary_stream_rpc_method_handler(handle)

    def _check(self, name: str, request: bytes, context: grpc.ServicerContext) -> None:
        if name == "RunQuery":
            query = RunQueryRequest.deserialize(request).structured_query
            if missing := missing_index(query, self._indexes):
                context.abort(
                    grpc.StatusCode.FAILED_PRECONDITION, f"The query requires an index: {missing}"
                )

    def _count(self, name: str, answer: bytes) -> None:
        match name:
            case "RunQuery":
                self.reads += RunQueryResponse.deserialize(answer).document.name != ""
            case "BatchGetDocuments":
                found = BatchGetDocumentsResponse.deserialize(answer)
                # A document that is not there is billed as well.
                self.reads += bool(found.found.name or found.missing)
            case "RunAggregationQuery":
                # Billed by index entries, which only Firestore knows.
                raise AssertionError("the proxy's reads are documents, no aggregation")
