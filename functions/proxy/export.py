"""Predictions as a file: CSV, or JSON lines."""

import csv
import io
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal

from functions.proxy.prediction import Prediction
from functions.proxy.schemas import ITEM_EXAMPLE, PredictionItem

Format = Literal["csv", "jsonl"]

MEDIA_TYPES: dict[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/jsonl; charset=utf-8",
}

_COLUMNS = tuple(PredictionItem.model_fields)
# What a spreadsheet may drop before it looks for a formula (OWASP, "CSV Injection").
_DROPPED = ("\t", "\r", "\n")
# Where a cell may begin, with what is passed over there - spaces, quotes, what no one sees -
# and the start of a formula. Where ";" or a tab separates, a text's quotes enclose nothing.
# Each run is looked at once.
_CELL_BEGIN = re.compile(
    r"""(?:\A|[;\t\r\n])[;"\s\0-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]*+"""
    r"""([=+\-@\uff1d\uff0b\uff0d\uff20])?"""
)


async def write_file(
    format: Format, pages: AsyncIterator[list[Prediction]]
) -> AsyncIterator[bytes]:
    """Yield the file, UTF-8, a page at a time.

    No cell of the CSV can be taken for a formula, whether the spreadsheet separates by
    ``,``, ``;`` or tab: an apostrophe stands before ``=``, ``+``, ``-`` or ``@``, also
    full-width ones, with which a text begins, or which come next after a ``;``, a tab or a
    line break in it, spaces, quotes and invisible characters passed over; and before a text
    that begins with a tab or a line break. JSON lines have the texts as they are.
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
        case str():
            safe = _CELL_BEGIN.sub(_defuse, value)
            return f"'{safe}" if safe.startswith(_DROPPED) else safe
        case _:
            return value


def _defuse(begin: re.Match[str]) -> str:
    return f"{begin[0][:-1]}'{begin[1]}" if begin[1] else begin[0]


_ITEMS = [PredictionItem.model_validate(ITEM_EXAMPLE)]
EXAMPLES: dict[Format, str] = {
    "csv": _rows([_COLUMNS]) + _csv(_ITEMS),
    "jsonl": _jsonl(_ITEMS),
}
"""A file of one prediction, in each format."""
