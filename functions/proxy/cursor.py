"""The opaque `cursor` of the list of predictions."""

import base64
import binascii
import re
from datetime import UTC, datetime, timedelta

from functions.proxy.prediction import Position

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLAIN = re.compile(rb"([0-9a-f]{32})@([0-9]{1,18})")


def write_cursor(position: Position) -> str:
    """Return `position` as a string that is safe in a URL."""
    microseconds = (position.timestamp - _EPOCH) // timedelta(microseconds=1)
    plain = f"{position.id}@{microseconds}"
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> Position:
    """Return the position that `write_cursor` wrote.

    Raises:
        ValueError: `cursor` is not one of ours.
    """
    try:
        plain = base64.b64decode(
            cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True
        )
        if match := _PLAIN.fullmatch(plain):
            moment = _EPOCH + timedelta(microseconds=int(match[2]))
            return Position(moment, match[1].decode())
    except (binascii.Error, UnicodeEncodeError, OverflowError) as error:
        raise ValueError("not a cursor") from error
    raise ValueError("not a cursor")
