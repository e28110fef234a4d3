"""Read reviews from files as people have them, and split them without leaks."""

import codecs
import csv
import hashlib
import io
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from trainer.sources import SourceError, open_source

SAMPLE = Path(__file__).with_name("sample_reviews.csv")
"""Reviews written for this project, to begin with."""

MAX_STARS = 5
POSITIVE_STARS = 3

# A field of a CSV file may be as long as the longest text that we accept, and more.
csv.field_size_limit(16 * 1024**2)

_PEEK_BYTES = 4096
_POLARITY_ROW = re.compile(r'"?[12]"?\s*,')
# What surrogateescape makes of a byte that is no UTF-8 (PEP 383).
_ESCAPED = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class DataError(ValueError):
    """The data can't be trained on; the message says why and what to do."""


class Review(NamedTuple):
    """One review."""

    text: str
    stars: float | None
    """0 to 5; None: the data tells positive from negative and no more."""
    polarity: bool | None = None
    """Whether it is positive, where the data says so itself."""

    @property
    def is_positive(self) -> bool:
        """Whether the review is positive: at least three stars, if the data has stars."""
        if self.stars is None:
            return bool(self.polarity)
        return self.stars >= POSITIVE_STARS


@dataclass
class Tally:
    """What was found in a source, and what was left out."""

    usable: int = 0
    positive: int = 0
    """Usable reviews that are positive."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""
    duplicates: int = 0
    """Reviews left out since the same text stands earlier in the file."""
    digest: str = ""
    """SHA-256 of the uncompressed content, lower-case hex."""
    generation: int | None = None
    """Generation of the object in Cloud Storage; None: a file."""

    @property
    def rows(self) -> int:
        """Rows in the file, usable or not."""
        return self.usable + self.duplicates + self.skipped.total()


@dataclass
class Reviews(Tally):
    """The usable reviews of a source, with its tally."""

    reviews: list[Review] = field(default_factory=list)


class Split(IntEnum):
    """What a review is used for."""

    TRAIN = 0
    VALIDATION = 1
    """Early stopping, calibration, threshold."""
    TEST = 2
    """The evaluation, and nothing else."""


def read_reviews(
    source: Path | str,
    *,
    generation: int | None = None,
    max_bad_share: float = 0.05,
    progress: bool = False,
) -> Reviews:
    """Return all reviews of a source; see `stream_reviews`."""
    result = Reviews()
    result.reviews.extend(
        review
        for review, _ in stream_reviews(
            source, result, generation=generation, max_bad_share=max_bad_share, progress=progress
        )
    )
    return result


def stream_reviews(
    source: Path | str,
    tally: Tally,
    *,
    generation: int | None = None,
    max_bad_share: float = 0.05,
    progress: bool = False,
) -> Iterator[tuple[Review, float]]:
    """Yield reviews from a file on this machine or in Cloud Storage, in one pass.

    Known forms, told from the content and not the name, each plain or gzip:

    - CSV with a header that has ``stars`` and ``text``, by comma, semicolon or tab;
    - JSON lines with the keys ``stars`` and ``text``, as Yelp gives them out;
    - CSV without a header, ``"1","text"`` for a negative review and ``"2","text"`` for
      a positive one, as fastText and torchtext read it: the polarity data of Zhang,
      Zhao and LeCun (2015), whose newlines are written ``\\n``.

    UTF-8, or UTF-16 with a byte order mark; in CSV, a field that is neither is read
    as Windows-1252. Rows without a usable text or label are left out and counted by
    reason, as are repeated texts.

    Args:
        source: path, or ``gs://BUCKET/OBJECT``.
        tally: filled on the way; complete when the last review was taken.
        generation: of the object in Cloud Storage; None: the newest.
        max_bad_share: refuse the data when more than this share of its rows is unusable.
        progress: show a bar over the bytes read.

    Yields:
        Each review with its position, 0 to 1, for `split_of`.

    Raises:
        DataError: the data can't be read, has no known form, too many bad rows, or
            reviews of one kind only. The last two show after the last review.
    """
    seen: set[bytes] = set()
    try:
        with open_source(source, generation=generation, progress=progress) as content:
            tally.generation = content.generation
            for row in _rows(content.reader):
                if isinstance(row, str):
                    tally.skipped[row] += 1
                    continue
                key = _key(row.text)
                if key in seen:
                    tally.duplicates += 1
                    continue
                seen.add(key)
                tally.usable += 1
                tally.positive += row.is_positive
                yield row, _position(key)
            tally.digest = content.digest()
    except (OSError, EOFError, zlib.error, SourceError) as error:
        raise DataError(f"{source}: can't be read: {error}") from error
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    _check(tally, source, max_bad_share)


def position_of(text: str) -> float:
    """Return a number from 0 to 1 that depends on the text only, not on case or blanks."""
    return _position(_key(text))


def split_of(position: float, *, validation_share: float, test_share: float) -> Split:
    """Return the split of a review by its position, which a digest of its text gives.

    The same text always lands in the same split, in any file and in any order, so
    that a model never meets in its test what an earlier one was trained on.

    Args:
        position: from `stream_reviews` or `position_of`, 0 to 1.
        validation_share: share of the validation split, 0 to 1.
        test_share: share of the test split, 0 to 1.
    """
    if position < test_share:
        return Split.TEST
    return Split.VALIDATION if position < test_share + validation_share else Split.TRAIN


def check_splits(source: Path | str, kinds: Mapping[tuple[Split, bool], int]) -> None:
    """Refuse splits that can't be learned from or judged by.

    Args:
        source: as messages name it.
        kinds: reviews by split and by whether they are positive.

    Raises:
        DataError: a split lacks positive or negative reviews.
    """
    for split in Split:
        counts = [kinds.get((split, positive), 0) for positive in (False, True)]
        if not all(counts):
            raise DataError(
                f"{source}: the {split.name.lower()} split has {counts[0]} negative and "
                f"{counts[1]} positive reviews and needs both: give more data"
            )


def _key(text: str) -> bytes:
    # Texts that differ in case or blanks only are the same review to the model.
    return hashlib.sha256(" ".join(text.lower().split()).encode()).digest()


def _position(key: bytes) -> float:
    return int.from_bytes(key[:8], "big") / 2**64


def _check(result: Tally, path: Path | str, max_bad_share: float) -> None:
    bad = result.skipped.total()
    if not result.rows:
        raise DataError(f"{path}: no reviews in it")
    if bad > max_bad_share * result.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in result.skipped.most_common())
        raise DataError(
            f"{path}: {bad} of {result.rows} rows are unusable ({reasons}); "
            f"mend the file or allow more with --max-bad-share"
        )
    if result.positive in (0, result.usable):
        kind = "positive" if result.positive else "negative"
        repeated = f", without {result.duplicates:,} repeated" if result.duplicates else ""
        raise DataError(
            f"{path}: all reviews are of one kind: {result.usable:,} {kind}{repeated} "
            f"(positive means at least {POSITIVE_STARS} stars)"
        )


def _rows(source: "io.BufferedReader[Any]") -> Iterator[Review | str]:
    """Yield each row as a review, or as the reason why it is none."""
    start = source.peek(_PEEK_BYTES)[:_PEEK_BYTES]
    utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = io.TextIOWrapper(
        source,
        encoding="utf-16" if utf16 else "utf-8-sig",
        # What is no UTF-8 is marked, for `_mend` to look at row by row.
        errors="replace" if utf16 else "surrogateescape",
        newline="",
    )
    head = start.decode("utf-16" if utf16 else "utf-8-sig", errors="ignore").lstrip()
    if head.startswith("{"):
        return _json_rows(text)
    if _POLARITY_ROW.match(head):
        return _polarity_rows(text)
    return _csv_rows(text)


def _csv_rows(text: io.TextIOWrapper) -> Iterator[Review | str]:
    header = ""
    while not header.strip():
        header = text.readline()
        if not header:
            raise DataError("no reviews in it")
    # With newline="" a lone carriage return ends no line for readline.
    header, _, rest = header.partition("\r")
    for delimiter in ",;\t":
        names = [
            name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])
        ]
        if {"stars", "text"} <= set(names):
            break
    else:
        # Of a binary file, the first line may be all of it.
        shown = _mend(header.strip()[:80])
        if sum(map(str.isprintable, shown.replace("\t", " "))) < len(shown) * 3 / 4:
            raise DataError("not text: give CSV or JSON lines, plain or gzip")
        raise DataError(
            "neither CSV with the columns stars,text nor JSON lines with these keys: "
            f"it begins with {shown!r}"
        )
    stars, texts = names.index("stars"), names.index("text")
    lines = itertools.chain([rest.lstrip("\n")] if rest.strip() else [], text)
    for row in _read_csv(lines, delimiter):
        values = dict(enumerate(map(_mend, row)))
        yield _review(values.get(stars), values.get(texts))


def _polarity_rows(text: io.TextIOWrapper) -> Iterator[Review | str]:
    for row in _read_csv(text, ","):
        label, *parts = row
        if label not in ("1", "2"):
            yield "with a label that is neither 1 nor 2"
            continue
        # More fields, as some of these data sets have a title: all of it is text.
        content = _mend(" ".join(parts)).replace("\\n", "\n")
        yield Review(content, None, label == "2") if content.strip() else "without text"


def _read_csv(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    rows = csv.reader(lines, delimiter=delimiter)
    try:
        yield from filter(None, rows)
    except csv.Error as error:
        raise DataError(f"CSV, near line {rows.line_num}: {error}") from error


def _json_rows(text: io.TextIOWrapper) -> Iterator[Review | str]:
    for line in text:
        if not line.strip():
            continue
        if _ESCAPED.search(line):
            yield "not UTF-8"
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield "not JSON"
            continue
        if not isinstance(row, dict):
            yield "not an object"
            continue
        yield _review(row.get("stars"), row.get("text"))


def _mend(text: str) -> str:
    """Read what is no UTF-8 as Windows-1252, the usual culprit in spreadsheets' exports."""
    if text.isascii() or not _ESCAPED.search(text):
        return text
    return text.encode("utf-8", "surrogateescape").decode("cp1252", "replace")


def _review(stars: object, text: object) -> Review | str:
    if not isinstance(text, str) or not text.strip():
        return "without text"
    if _SURROGATE.search(text):
        return "with lone surrogates"
    if isinstance(stars, bool) or not isinstance(stars, int | float | str):
        return "without stars"
    try:
        number = float(stars)
    except ValueError:
        return "with stars that are no number"
    except OverflowError:
        return "with stars outside 0 to 5"
    if not 0 <= number <= MAX_STARS:
        return "with stars outside 0 to 5"
    return Review(text, number)
