"""A predict that answers at once: what is measured is the proxy."""

import json
from typing import Any

WHO = {"model_version": "10", "revision": "predict-00010-abc"}
RUN = "3acade02674549b19044a59186d97db4"
LINEAGE = [
    (b"x-greenroom-git-commit", b"0ea995f1c0f3d1b2a4e5968778695a4b3c2d1e0f"),
    (
        b"x-greenroom-data-digest",
        b"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ),
]


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer ``POST /predict``; anything else, as ``GET /health``, with an empty object."""
    answer: dict[str, Any] = {}
    if scope["path"] == "/predict":
        answer = WHO | {
            "text": json.loads((await receive())["body"])["text"],
            "is_positive_review": 1,
            "details": {"mlflow_run_id": RUN, "inference_elapsed": 0.0001},
            "score": 0.75,
        }
    content = json.dumps(answer).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *LINEAGE,
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
