"""Ask a deployed proxy as a caller would: ``python -m cloudbuild.smoke --url https://...``.

Leaves nothing behind: what it stored is deleted again, and counted no more.
"""

import secrets
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import click
import httpx

from functions.client import Client, ClientError

GOOD = "Very good cafe, great coffee, lovely and friendly staff!"
BAD = "Terrible service, cold food, rude staff, never again."

_T = TypeVar("_T")

_COLD_START_SECONDS = 60.0
_PAUSE_SECONDS = 2.0


class SmokeError(Exception):
    """The deployment does not do what it should."""


def smoke(url: str, *, patience: float, say: Callable[[str], object], public: bool = False) -> None:
    """Ask the proxy at `url` for predictions, and delete them again.

    Args:
        url: address of the proxy; ``https://`` is called with an ID token for it.
        patience: seconds until it must answer.
        say: takes a line for people.
        public: everybody may call it; else strangers must be refused.

    Raises:
        SmokeError: it does not answer as it should.
    """
    secured = url.startswith("https://")
    if secured and not public:
        _refuses_strangers(url)
        say("strangers are refused")
    with Client(url, audience=url if secured else None, timeout=_COLD_START_SECONDS) as client:
        rollouts = _until(patience, client.rollouts)
        served = ((rollouts.status or {}).get("served") or {}).get("version")
        if served is None:
            say("nothing is served yet: no version was promoted")
            return
        say(f"version {served} is served")
        scores = {}
        for text in (GOOD, BAD):
            key = f"smoke-{secrets.token_hex(8)}"
            # A second try, after an answer that was lost, counts once.
            made = _until(patience, partial(client.predict, text, key=key))
            try:
                if client.get(made.id).text != text:
                    raise SmokeError("another text is stored than the one that was sent")
            finally:
                client.delete(made.id)
            scores[text] = made.score
            say(f"version {made.model_version}, {made.revision}: {made.score:.3f} for {text!r}")
        if scores[GOOD] <= scores[BAD]:
            raise SmokeError("a rave is scored no higher than a complaint")


def _refuses_strangers(url: str) -> None:
    try:
        status = httpx.get(f"{url}/statistics", timeout=_COLD_START_SECONDS).status_code
    except httpx.HTTPError as error:
        raise SmokeError(f"{url} can't be reached: {error}") from error
    if status not in (401, 403):
        raise SmokeError(f"{url} answers a stranger with {status}; is it meant to? --public")


def _until(patience: float, call: Callable[[], _T]) -> _T:
    """Return what `call` gives, once what is being deployed answers."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return call()
        except ClientError as error:
            if error.kind in ("refused", "invalid") or time.monotonic() > deadline:
                raise SmokeError(f"the proxy: {error}") from error
            time.sleep(_PAUSE_SECONDS)


@click.command()
@click.option("--url", required=True, help="Address of the proxy.")
@click.option(
    "--patience",
    type=click.FloatRange(0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="Until the proxy must answer.",
)
@click.option("--public", is_flag=True, help="Everybody may call it.")
def main(url: str, patience: float, public: bool) -> None:
    """Ask a deployed proxy for predictions, check them, and delete them again."""
    try:
        smoke(url.rstrip("/"), patience=patience, say=click.echo, public=public)
    except (SmokeError, ClientError) as error:
        click.echo(f"failed: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m cloudbuild.smoke")
