"""The API's description: problems and examples in ``/openapi.json``, and ``/docs``.

Swagger UI's files come with the package flask-swagger-ui and are served from here, so
that ``/docs`` needs no other host. Nothing of that package is imported.
"""

from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse

from functions.problem import Problem
from functions.proxy.cursor import write_cursor
from functions.proxy.export import EXAMPLES
from functions.proxy.prediction import Position
from functions.proxy.schemas import ITEM_EXAMPLE, ProblemDocument

Responses = dict[int | str, dict[str, Any]]

_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
_SECONDS_KEPT = 86_400

_PROBLEMS = {
    400: "The body is not JSON in UTF-8.",
    404: "There is no such thing.",
    405: "The path does not take this method.",
    413: "The body is too large.",
    422: "The request is not valid.",
    429: "Too many requests at once.",
    500: "Something went wrong here.",
    502: "The model's answer made no sense; nothing was stored.",
    503: "The model or the database can't be reached. Nothing was changed, except where the "
    "detail says that it may have been: the request is then safe to send again, a new "
    "prediction with the same Idempotency-Key.",
    504: "The model took too long; nothing was stored.",
}
_WAITS = (429, 502, 503, 504)
_RETRY_AFTER = {
    "description": "Seconds to wait before another try.",
    "schema": {"type": "integer", "minimum": 0},
}


def problems(*statuses: int) -> Responses:
    """Return the description of these answers, which are problem documents."""
    return {status: _problem(status) for status in sorted({429, 500, *statuses})}


def _problem(status: int) -> dict[str, Any]:
    content = {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}
    response: dict[str, Any] = {
        "description": _PROBLEMS[status],
        "content": {"application/problem+json": content},
    }
    if status in _WAITS:
        response["headers"] = {"Retry-After": _RETRY_AFTER}
    return response


CURSOR_EXAMPLE = write_cursor(
    Position(
        datetime.fromisoformat(ITEM_EXAMPLE["timestamp"]).replace(tzinfo=UTC), ITEM_EXAMPLE["id"]
    )
)

ALWAYS_ANSWERED: Responses = {500: _problem(500)}
"""Of what is answered also where too many requests are under way."""

CREATED: Responses = {
    201: {
        "description": "Stored; or the first answer again, for a retry with the same key.",
        "headers": {
            "Idempotent-Replayed": {
                "description": "`true` when it was stored by an earlier request.",
                "schema": {"type": "string", "enum": ["true"]},
            }
        },
    }
}
LISTED: Responses = {
    200: {
        "description": "Predictions, newest first.",
        "content": {"application/json": {"example": [ITEM_EXAMPLE]}},
        "headers": {
            "Link": {
                "description": 'The next page, `rel="next"`, if there is one.',
                "schema": {"type": "string"},
            }
        },
    }
}
EXPORTED: Responses = {
    200: {
        "description": "The file.",
        "content": {
            "text/csv": {"schema": {"type": "string"}, "example": EXAMPLES["csv"]},
            "application/jsonl": {"schema": {"type": "string"}, "example": EXAMPLES["jsonl"]},
        },
        "headers": {
            "Content-Disposition": {"description": "The file's name.", "schema": {"type": "string"}}
        },
    }
}


def describe(app: FastAPI) -> None:
    """Complete the application's description, and add the pages that show it.

    Args:
        app: an application without pages of its own for that.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schema = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
        definitions = schema.pop("$defs", {})
        document["components"]["schemas"].update({"ProblemDocument": schema} | definitions)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    folder = _swagger_ui()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon-32x32.png",
        )

    @app.get("/docs/{name}", include_in_schema=False)
    async def docs_file(name: str) -> FileResponse:
        if name not in _FILES:
            raise Problem(404, "There is no such file.")
        headers = {"Cache-Control": f"public, max-age={_SECONDS_KEPT}"}
        return FileResponse(folder / name, headers=headers)


def _swagger_ui() -> Path:
    # Importing it would import Flask.
    found = find_spec("flask_swagger_ui")
    if found is None or found.origin is None:
        raise RuntimeError("flask-swagger-ui is not installed: make setup")
    return Path(found.origin).parent / "dist"
