"""Read reviews from files as people have them, and split them without leaks."""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAX_STARS = 5
POSITIVE_STARS = 3

# A field of a CSV file may be as long as the longest text that we accept, and more.
csv.field_size_limit(16 * 1024**2)

_GZIP_MAGIC = b"\x1f\x8b"


class DataError(ValueError):
    """The data can't be trained on; the message says why and what to do."""


class Review(NamedTuple):
    """One review."""

    text: str
    stars: float

    @property
    def is_positive(self) -> bool:
        """Whether the review has at least three stars, as the model's labels define it."""
        return self.stars >= POSITIVE_STARS


@dataclass
class Reviews:
    """The usable reviews of a file, and what was left out."""

    reviews: list[Review] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""
    duplicates: int = 0
    """Reviews left out since the same text stands earlier in the file."""
    digest: str = ""
    """SHA-256 of the uncompressed content, lower-case hex."""

    @property
    def rows(self) -> int:
        """Rows in the file, usable or not."""
        return len(self.reviews) + self.duplicates + self.skipped.total()


class Splits(NamedTuple):
    """Reviews by use; no text is in two of them."""

    train: list[Review]
    validation: list[Review]
    test: list[Review]


class _HashingReader(io.RawIOBase):
    """Hash what is read through it, so that the digest costs no second pass."""

    def __init__(self, source: BinaryIO | gzip.GzipFile) -> None:
        self._source = source
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # as io calls it
        content = self._source.read(len(buffer))
        buffer[: len(content)] = content
        self.sha256.update(content)
        return len(content)


def read_reviews(path: Path, *, max_bad_share: float = 0.05) -> Reviews:
    """Read a CSV file with the columns ``stars`` and ``text``, or Yelp's JSON lines.

    Either may be compressed with gzip. The form is told from the content, not the
    name. Rows without a usable text or with stars outside 0 to 5 are left out and
    counted by reason, as are repeated texts.

    Args:
        path: the file.
        max_bad_share: refuse the file when more than this share of its rows is unusable.

    Raises:
        DataError: the file can't be read, has no known form, too many bad rows, or
            too few reviews of one kind to train on.
    """
    result = Reviews()
    seen: set[bytes] = set()
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            reader = _HashingReader(gzip.GzipFile(fileobj=raw) if compressed else raw)
            for row in _rows(io.BufferedReader(reader, 1024**2)):
                if isinstance(row, str):
                    result.skipped[row] += 1
                    continue
                key = _key(row.text)
                if key in seen:
                    result.duplicates += 1
                else:
                    seen.add(key)
                    result.reviews.append(row)
            result.digest = reader.sha256.hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: can't be read: {error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    _check(result, path, max_bad_share)
    return result


def split(reviews: list[Review], *, validation_share: float, test_share: float) -> Splits:
    """Split reviews by a digest of their text.

    The same text always lands in the same split, in any file and in any order, so
    that a model never meets in its test what an earlier one was trained on.

    Args:
        reviews: the reviews.
        validation_share: share for early stopping, 0 to 1.
        test_share: share for the evaluation, 0 to 1.

    Raises:
        DataError: a split lacks positive or negative reviews.
    """
    splits = Splits([], [], [])
    for review in reviews:
        position = int.from_bytes(_key(review.text)[:8], "big") / 2**64
        if position < test_share:
            splits.test.append(review)
        elif position < test_share + validation_share:
            splits.validation.append(review)
        else:
            splits.train.append(review)
    for name, part in splits._asdict().items():
        if len({review.is_positive for review in part}) < 2:
            raise DataError(
                f"the {name} split has {len(part)} reviews, all of one kind: give more data"
            )
    return splits


def _key(text: str) -> bytes:
    # Texts that differ in case or blanks only are the same review to the model.
    return hashlib.sha256(" ".join(text.lower().split()).encode()).digest()


def _check(result: Reviews, path: Path, max_bad_share: float) -> None:
    bad = result.skipped.total()
    if not result.rows:
        raise DataError(f"{path}: no reviews in it")
    if bad > max_bad_share * result.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in result.skipped.most_common())
        raise DataError(
            f"{path}: {bad} of {result.rows} rows are unusable ({reasons}); "
            f"mend the file or allow more with --max-bad-share"
        )
    kinds = Counter(review.is_positive for review in result.reviews)
    if len(kinds) < 2:
        raise DataError(
            f"{path}: all reviews are of one kind (positive means at least {POSITIVE_STARS} stars)"
        )


def _rows(source: io.BufferedReader) -> Iterator[Review | str]:
    """Yield each row as a review, or as the reason why it is none."""
    start = source.peek(4096).lstrip(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"{"):
        return _json_rows(source)
    return _csv_rows(source)


def _csv_rows(source: io.BufferedReader) -> Iterator[Review | str]:
    text = io.TextIOWrapper(source, encoding="utf-8-sig", errors="replace", newline="")
    rows = csv.DictReader(text)
    columns = {name.strip().lower(): name for name in rows.fieldnames or ()}
    if not {"stars", "text"} <= columns.keys():
        first = ", ".join(rows.fieldnames or ())
        # Of a binary file, the first line may be all of it.
        raise DataError(
            "neither CSV with the columns stars,text nor JSON lines with these keys: "
            f"it begins with {first[:80]!r}"
        )
    try:
        for row in rows:
            yield _review(row[columns["stars"]], row[columns["text"]])
    except csv.Error as error:
        raise DataError(f"CSV, near line {rows.line_num}: {error}") from error


def _json_rows(source: io.BufferedReader) -> Iterator[Review | str]:
    for line in source:
        if not line.strip():
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


def _review(stars: object, text: object) -> Review | str:
    if not isinstance(text, str) or not text.strip():
        return "without text"
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
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
