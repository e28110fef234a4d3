"""The HTTP API of promote."""

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from functions.access_log import AccessLog
from functions.problem import Problem, answer_http_exception, answer_problem
from functions.promote.bundles import StorageUnavailable
from functions.promote.cloud_run import ServiceUnavailable
from functions.promote.deadline import OutOfTime
from functions.promote.reconciler import Reconciler
from functions.promote.registry import RegistryUnavailable

RETRY_AFTER_SECONDS = 60


def create_app(reconciler: Reconciler) -> Starlette:
    """Return the ASGI application around `reconciler`."""

    async def tick(*, act: bool) -> Response:
        try:
            return JSONResponse(await run_in_threadpool(reconciler.tick, act=act))
        except (RegistryUnavailable, ServiceUnavailable, StorageUnavailable, OutOfTime) as error:
            raise Problem(
                503,
                f"{error}. What is served stays served; the next tick tries again.",
                retry_after=RETRY_AFTER_SECONDS,
            ) from error

    async def reconcile(_request: Request) -> Response:
        return await tick(act=True)

    async def status(_request: Request) -> Response:
        return await tick(act=False)

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/", reconcile, methods=["POST"]),
            Route("/status", status),
            Route("/health", health),
        ],
        middleware=[Middleware(AccessLog)],
        exception_handlers={Problem: answer_problem, HTTPException: answer_http_exception},
    )
