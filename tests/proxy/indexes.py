"""Which indexes a query needs, as Firestore documents it ("Index types", "Queries")."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.cloud.firestore_v1.types import StructuredQuery

INDEXES = Path(__file__).parents[2] / "terraform" / "firestore_indexes.json"

_EQUAL = StructuredQuery.FieldFilter.Operator.EQUAL
_NAME = "__name__"


def read_indexes() -> dict[str, Any]:
    """Return what Terraform installs."""
    indexes: dict[str, Any] = json.loads(INDEXES.read_text())
    return indexes


def missing_index(query: StructuredQuery, indexes: Mapping[str, Any]) -> str | None:
    """Return in words the index that `query` needs and Terraform does not install."""
    collection = query.from_[0].collection_id
    equal: set[str] = set()
    ranged: set[str] = set()
    for field, operator in _filters(query.where):
        (equal if operator == _EQUAL else ranged).add(field)
    order = [(item.field.field_path, item.direction.name) for item in query.order_by]
    if not order:
        # Firestore adds the order of a range's field, and always that of the name.
        order = [(field, "ASCENDING") for field in sorted(ranged)]
    if not order or order[-1][0] != _NAME:
        order.append((_NAME, order[-1][1] if order else "ASCENDING"))
    exempt = {item["field"] for item in indexes["exempt"] if item["collection"] == collection}
    if not equal and len(order) <= 2 and order[0][1] == order[-1][1]:
        used = {order[0][0]} | ranged
        return f"single field {used & exempt}" if used & exempt else None
    if order == [(_NAME, "ASCENDING")]:
        return f"single field {equal & exempt}" if equal & exempt else None
    for index in indexes["composite"]:
        fields = [(name, direction) for name, direction in index["fields"]]
        first = {name for name, _ in fields[: len(equal)]}
        if index["collection"] == collection and first == equal and fields[len(equal) :] == order:
            return None
    return f"composite {sorted(equal)} then {order}"


def _filters(where: StructuredQuery.Filter) -> list[tuple[str, int]]:
    if where.composite_filter.filters:
        return [found for part in where.composite_filter.filters for found in _filters(part)]
    if where.field_filter.field.field_path:
        return [(where.field_filter.field.field_path, where.field_filter.op)]
    return []
