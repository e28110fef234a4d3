"""What the API takes and returns."""

import re
from datetime import UTC, date, datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    StrictStr,
)

from functions.proxy.prediction import Prediction
from functions.proxy.predictor import Answer, Contribution
from functions.proxy.statistics import Statistics

_TIME = "2021-02-04T20:46:49.484379"
_ID = "5b3cd1b1f0a04f9f8c0b2d9a8f5c7e11"
_LINEAGE = {
    "score": 0.9731,
    "model_version": "10",
    "revision": "predict-00010-abc",
    "git_commit": "0ea995f1c0f3d1b2a4e5968778695a4b3c2d1e0f",
    "data_digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "predict_elapsed": 0.0121,
    "elapsed": 0.0154,
}
_CREATED: dict[str, Any] = {
    "id": _ID,
    "text": "very good cafe",
    "is_positive": {"user_answered": True, "model_answered": True},
    "details": {
        "mlflow_run_id": "3acade02674549b19044a59186d97db4",
        "inference_elapsed": 0.00093,
        "timestamp": _TIME,
    },
    **_LINEAGE,
}
ITEM_EXAMPLE: dict[str, Any] = {
    "id": _ID,
    "text": "very good cafe",
    "is_positive_user_answered": True,
    "is_positive_model_answered": True,
    "mlflow_run_id": "3acade02674549b19044a59186d97db4",
    "inference_elapsed": 0.00093,
    "timestamp": _TIME,
    **_LINEAGE,
}


def format_timestamp(moment: datetime) -> str:
    """Return `moment` in UTC without a zone and always with microseconds."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")


def _only_days(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        return value
    raise ValueError("must be a day such as 2026-11-23")


Timestamp = Annotated[
    datetime,
    PlainSerializer(format_timestamp, return_type=str),
    Field(description="UTC, without a zone.", examples=[_TIME]),
]
Day = Annotated[date, BeforeValidator(_only_days)]
"""A UTC day; pydantic alone would take a number of seconds as well."""


class _Document(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), from_attributes=True)


class PredictionRequest(BaseModel):
    """A review, and what its author thinks of it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"text": "very good cafe", "is_positive_user_answered": True}]
        },
    )

    text: Annotated[StrictStr, Field(min_length=5, max_length=5120)]
    is_positive_user_answered: Annotated[
        StrictBool | None, Field(description="The user's own answer; null: none yet.")
    ] = None


class AnswerRequest(BaseModel):
    """What the user thinks of a review; null takes an answer back."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"is_positive_user_answered": False}]}
    )

    is_positive_user_answered: StrictBool | None


class IsPositive(BaseModel):
    """The user's answer, if given, beside the model's."""

    user_answered: bool | None
    model_answered: bool


class Details(BaseModel):
    """Where an answer comes from; `inference_elapsed` is in seconds."""

    mlflow_run_id: str
    inference_elapsed: float
    timestamp: Timestamp


class Explanation(BaseModel):
    """Bias and shares, which add up to the logit of the score."""

    bias: float
    explanation: list[Contribution]

    @classmethod
    def of(cls, answer: Answer) -> "Explanation | None":
        """Return the explanation in predict's answer, if it has one."""
        if answer.bias is None or answer.explanation is None:
            return None
        return cls(bias=answer.bias, explanation=answer.explanation)


class PredictionCreated(_Document):
    """The answer to a new prediction; `bias` and `explanation` with ``?explain=true``."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CREATED]})

    id: str
    text: str
    is_positive: IsPositive
    details: Details
    score: Annotated[float, Field(description="Probability of positive, 0 to 1.")]
    model_version: Annotated[str, Field(description="Version in the model registry.")]
    revision: Annotated[str | None, Field(description="Cloud Run revision that answered.")]
    git_commit: Annotated[
        str | None, Field(description="Commit that the model was trained from; null: not known.")
    ]
    data_digest: Annotated[
        str | None, Field(description="Digest of the data it was trained on; null: not known.")
    ]
    predict_elapsed: Annotated[
        float | None, Field(description="Seconds until predict's answer was there.")
    ]
    elapsed: Annotated[
        float | None, Field(description="Seconds of the whole request, until it was written.")
    ]
    bias: float | None = None
    explanation: list[Contribution] | None = None

    @classmethod
    def of(
        cls, prediction: Prediction, user: bool | None, explanation: Explanation | None
    ) -> "PredictionCreated":
        """Return the answer for a stored prediction.

        Args:
            prediction: as it is stored.
            user: the answer that came with the request; another may have come since.
            explanation: to be returned as well.
        """
        created = cls(
            id=prediction.id,
            text=prediction.text,
            is_positive=IsPositive(
                user_answered=user, model_answered=prediction.is_positive_model_answered
            ),
            details=Details(
                mlflow_run_id=prediction.mlflow_run_id,
                inference_elapsed=prediction.inference_elapsed,
                timestamp=prediction.timestamp,
            ),
            score=prediction.score,
            model_version=prediction.model_version,
            revision=prediction.revision,
            git_commit=prediction.git_commit,
            data_digest=prediction.data_digest,
            predict_elapsed=prediction.predict_elapsed,
            elapsed=prediction.elapsed,
        )
        if explanation:
            created.bias = explanation.bias
            created.explanation = explanation.explanation
        return created


class PredictionItem(_Document):
    """A stored prediction."""

    model_config = ConfigDict(json_schema_extra={"examples": [ITEM_EXAMPLE]})

    id: str
    text: str
    is_positive_user_answered: bool | None
    is_positive_model_answered: bool
    mlflow_run_id: str
    inference_elapsed: float
    timestamp: Timestamp
    score: Annotated[float, Field(description="Probability of positive, 0 to 1.")]
    model_version: str
    revision: str | None
    git_commit: str | None
    data_digest: str | None
    predict_elapsed: float | None
    elapsed: float | None


_MEASURES: dict[str, Any] = {
    "correctness_rate": 0.85,
    "correctness_interval": [0.6396, 0.9476],
    "predictions": 31,
    "answered": 20,
    "correct": 17,
    "positive_rate": 0.5806,
    "mean_score": 0.5733,
    "confusion": {
        "true_positive": 10,
        "true_negative": 7,
        "false_positive": 2,
        "false_negative": 1,
    },
    "latency": {"p50": 0.021, "p95": 0.058, "mean": 0.0274},
}
_VERSION = _MEASURES | {"model_version": "10"}
_REVISION = {
    "revision": "predict-00010-abc",
    "model_version": "10",
    "predictions": 31,
    "failed": 0,
}


class StatisticsAnswer(BaseModel):
    """Statistics over all predictions, or over those of a range of days."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "statistics": _MEASURES
                    | {
                        "by_model_version": [
                            _VERSION | {"capped": {"answered": 18, "correct": 15}}
                        ],
                        "by_day": [
                            _MEASURES | {"day": "2021-02-04", "by_model_version": [_VERSION]}
                        ],
                        "by_revision": [_REVISION],
                    }
                }
            ]
        }
    )

    statistics: Statistics


class RolloutsAnswer(BaseModel):
    """What promote says it serves, and what it did, newest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": {"phase": "stable", "served": "10", "at": "2021-02-04T20:46:49Z"},
                    "ledger": [{"id": "0001", "at": "2021-02-04T20:46:49Z", "action": "finish"}],
                }
            ]
        }
    )

    status: dict[str, object] | None
    ledger: list[dict[str, object]]


class Health(BaseModel):
    """The process answers."""

    status: Annotated[str, Field(examples=["ok"])]


class Pong(BaseModel):
    """The answer to a ping."""

    ping: Annotated[str, Field(examples=["pong"])]


class FieldError(BaseModel):
    """One thing that is wrong with a request."""

    location: list[str | int]
    detail: str


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not Found",
                    "status": 404,
                    "detail": "There is no prediction with this id.",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []
