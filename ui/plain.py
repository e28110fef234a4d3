"""Texts of others, shown as they are where Streamlit would read Markdown."""

import re
from urllib.parse import quote

_MARKS = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:&@/=])")


def plain(text: str) -> str:
    """Return Markdown, on one line, that shows `text` as it is."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


def link(text: str, url: str) -> str:
    """Return Markdown that shows `text` as a link to `url`."""
    return f"[{plain(text)}]({quote(url, safe=':/?#@&=%+,;~')})"
