"""The form of the documents in Firestore.

- ``predictions/ID``: the fields of `Prediction` that `prediction_fields` names, and
  ``schema_version``. Deleted by Firestore after ``expire_at``, where that is set.
- ``statistics/shards``: see `functions.proxy.sharding`.
- ``statistics/SHARD``: counters of all time, ``versions``: model version -> counter.
- ``statistics_months/MONTH_SHARD``: counters of a month, ``days``: day -> model version ->
  counter; and ``revisions``: day -> Cloud Run revision -> ``predictions``, ``failed`` and
  ``model_version``.
- ``callers/CALLER_DAY_VERSION``: see `functions.proxy.slots`.
- ``rollouts``: written by promote; ``rollouts/status``, and one document a ledger entry.

A prediction of schema version 1 can be read; the statistics don't count it.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from google.cloud import firestore

from functions.proxy.connection import Snapshot
from functions.proxy.counters import Changes
from functions.proxy.prediction import Prediction

PREDICTIONS = "predictions"
TOTALS = "statistics"
MONTHS = "statistics_months"
ROLLOUTS = "rollouts"

SCHEMA_VERSION = 2

_STORED = tuple(
    field.name for field in fields(Prediction) if field.name not in ("id", "is_counted")
)
_OPTIONAL = ("explanation", "expire_at")


def prediction_fields(prediction: Prediction) -> dict[str, Any]:
    """Return the document of a new prediction."""
    document = {name: getattr(prediction, name) for name in _STORED}
    for name in _OPTIONAL:
        if document[name] is None:
            del document[name]
    document["disagrees"] = prediction.disagrees
    document["schema_version"] = SCHEMA_VERSION
    return document


def read_prediction(snapshot: Snapshot) -> Prediction:
    """Return the prediction of a document that exists.

    Raises:
        TypeError: it is not a prediction.
    """
    document = snapshot.to_dict() or {}
    # Only the fields of this version: a later one may store more.
    known = {name: document[name] for name in _STORED if name in document}
    return Prediction(
        id=snapshot.id,
        is_counted=document.get("schema_version", 1) >= SCHEMA_VERSION,
        **known,
    )


def total_increments(changes: Changes) -> dict[str, Any]:
    """Return what to merge into a shard of the totals; empty: nothing."""
    versions = {version: _increments(counts) for version, counts in changes.totals().items()}
    versions = {version: counts for version, counts in versions.items() if counts}
    return {"versions": versions, "schema_version": SCHEMA_VERSION} if versions else {}


def month_increments(changes: Changes, month: str) -> dict[str, Any]:
    """Return what to merge into a shard of a month, ``2021-02``; empty: nothing.

    It has no empty map: merged, one takes the place of all that is stored there.
    """
    days: dict[str, dict[str, Any]] = {}
    for (day, version), counts in changes.versions.items():
        increments = _increments(counts)
        if day.startswith(month) and increments:
            days.setdefault(day, {})[version] = increments
    revisions: dict[str, dict[str, Any]] = {}
    for (day, revision), counts in changes.revisions.items():
        if day.startswith(month):
            members = _increments(counts)
            if revision in changes.version_of:
                members["model_version"] = changes.version_of[revision]
            if members:
                revisions.setdefault(day, {})[revision] = members
    maps = {name: value for name, value in (("days", days), ("revisions", revisions)) if value}
    return maps | {"schema_version": SCHEMA_VERSION} if maps else {}


def _increments(counts: Mapping[str, int]) -> dict[str, Any]:
    return {name: firestore.Increment(value) for name, value in counts.items() if value}
