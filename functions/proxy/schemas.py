"""What the API takes and returns."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, StrictBool, StrictStr

from functions.proxy.predictor import Answer, Contribution
from functions.proxy.statistics import Statistics
from functions.proxy.storage import Prediction


def format_timestamp(moment: datetime) -> str:
    """Return `moment` in UTC without a zone and always with microseconds."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")


Timestamp = Annotated[
    datetime,
    PlainSerializer(format_timestamp, return_type=str),
    Field(description="UTC, without a zone.", examples=["2021-02-04T20:46:49.484379"]),
]


class PredictionRequest(BaseModel):
    """A review, and what its author thinks of it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"text": "very good cafe", "is_positive_user_answered": True}]
        },
    )

    text: Annotated[StrictStr, Field(min_length=5, max_length=5120)]
    is_positive_user_answered: StrictBool | None = None


class IsPositive(BaseModel):
    """The user's answer, if given, beside the model's."""

    user_answered: bool | None
    model_answered: bool


class Details(BaseModel):
    """Where an answer comes from; `inference_elapsed` is in seconds."""

    mlflow_run_id: str
    inference_elapsed: float
    timestamp: Timestamp


class PredictionCreated(BaseModel):
    """The answer to a new prediction; `bias` and `explanation` with ``?explain=true``."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    text: str
    is_positive: IsPositive
    details: Details
    score: Annotated[float, Field(description="Probability of positive, 0 to 1.")]
    model_version: str
    revision: str | None
    bias: float | None = None
    explanation: list[Contribution] | None = None

    @classmethod
    def of(cls, prediction: Prediction, explanation: "Explanation | None") -> "PredictionCreated":
        """Return the answer for a stored prediction."""
        created = cls(
            id=prediction.id,
            text=prediction.text,
            is_positive=IsPositive(
                user_answered=prediction.is_positive_user_answered,
                model_answered=prediction.is_positive_model_answered,
            ),
            details=Details(
                mlflow_run_id=prediction.mlflow_run_id,
                inference_elapsed=prediction.inference_elapsed,
                timestamp=prediction.timestamp,
            ),
            score=prediction.score,
            model_version=prediction.model_version,
            revision=prediction.revision,
        )
        if explanation:
            created.bias = explanation.bias
            created.explanation = explanation.explanation
        return created


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


class PredictionItem(BaseModel):
    """A stored prediction."""

    model_config = ConfigDict(protected_namespaces=(), from_attributes=True)

    id: str
    text: str
    is_positive_user_answered: bool | None
    is_positive_model_answered: bool
    mlflow_run_id: str
    inference_elapsed: float
    timestamp: Timestamp
    score: float
    model_version: str
    revision: str | None


class StatisticsAnswer(BaseModel):
    """Statistics over all predictions."""

    statistics: Statistics


class RolloutsAnswer(BaseModel):
    """What promote says it serves, and what it did, newest first."""

    status: dict[str, object] | None
    ledger: list[dict[str, object]]


class FieldError(BaseModel):
    """One thing that is wrong with a request."""

    location: list[str | int]
    detail: str


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []
