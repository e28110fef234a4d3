"""What is stored of one answered request."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answered request.

    Attributes:
        id: the document's name, 32 hex digits.
        text: the review.
        is_positive_user_answered: what the user said, or None.
        is_positive_model_answered: what the model said.
        mlflow_run_id: run that trained the model.
        inference_elapsed: seconds that the model took.
        timestamp: when the request was answered; aware, UTC, microseconds.
        score: the model's probability of "positive".
        model_version: version in the model registry.
        revision: Cloud Run revision that answered, or None.
        git_commit: commit that the model was trained from, or None: not known.
        data_digest: digest of the data that it was trained on, or None: not known.
        predict_elapsed: seconds until predict's answer was there, retries included.
        elapsed: seconds of the whole request, until the prediction was to be written.
        request_digest: tells whether a retry is the same request.
        capped_answer: the answer that counts among its caller's first ones of a day, or
            None. What a caller says who has no more of them changes it not.
        capped_by: tells whether another answer comes from that caller.
        explanation: compressed explanation, kept only for a retry to return it.
        expire_at: when it is no longer shown, and Firestore may delete it, or None: never.
        is_counted: the statistics count it; false for documents of schema version 1.
    """

    id: str
    text: str
    is_positive_user_answered: bool | None
    is_positive_model_answered: bool
    mlflow_run_id: str
    inference_elapsed: float
    timestamp: datetime
    score: float
    model_version: str
    revision: str | None
    request_digest: str
    git_commit: str | None = None
    data_digest: str | None = None
    predict_elapsed: float | None = None
    elapsed: float | None = None
    capped_answer: bool | None = None
    capped_by: str | None = None
    explanation: bytes | None = None
    expire_at: datetime | None = None
    is_counted: bool = True

    @property
    def day(self) -> str:
        """The UTC day on which it was made, ``2021-02-04``."""
        return self.timestamp.date().isoformat()

    @property
    def disagrees(self) -> bool:
        """The user gave an answer, and it is not the model's."""
        return self.is_positive_user_answered is (not self.is_positive_model_answered)

    def is_expired(self, now: datetime) -> bool:
        """Tell whether its time is over; Firestore deletes it up to days later."""
        return self.expire_at is not None and self.expire_at <= now


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the list of predictions, which is ordered by time and then id."""

    timestamp: datetime
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which predictions to list; each None or False: whatever it is.

    Attributes:
        model_version: those of this version.
        day: midnight, UTC, at which the wanted day begins.
        disagreements: those whose user does not agree with the model.
    """

    model_version: str | None = None
    day: datetime | None = None
    disagreements: bool = False
