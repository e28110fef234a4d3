"""Predictions as a file: CSV, or JSON lines."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal

from functions.proxy.prediction import Prediction
from functions.proxy.schemas import PredictionItem

Format = Literal["csv", "jsonl"]

MEDIA_TYPES: dict[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/jsonl; charset=utf-8",
}

_COLUMNS = tuple(PredictionItem.model_fields)
# With these a spreadsheet would take a cell for a formula (OWASP, "CSV Injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


async def write_file(
    format: Format, pages: AsyncIterator[list[Prediction]]
) -> AsyncIterator[bytes]:
    """Yield the file, UTF-8, a page at a time.

    A cell of the CSV that a spreadsheet could take for a formula begins with an
    apostrophe, which is to be left out by who reads the texts by program.
    """
    write: Callable[[Sequence[PredictionItem]], str] = _csv if format == "csv" else _jsonl
    if format == "csv":
        yield _rows([_COLUMNS]).encode()
    async for page in pages:
        if page:
            yield write([PredictionItem.model_validate(item) for item in page]).encode()


def _jsonl(items: Sequence[PredictionItem]) -> str:
    return "".join(f"{item.model_dump_json()}\n" for item in items)


def _csv(items: Sequence[PredictionItem]) -> str:
    return _rows([[_cell(value) for value in item.model_dump().values()] for item in items])


def _rows(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_NONNUMERIC).writerows(rows)
    return text.getvalue()


def _cell(value: object) -> object:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str() if value.startswith(_FORMULA_STARTS):
            return f"'{value}"
        case _:
            return value
