"""``python -m local.scheduler``: call promote again and again, as Cloud Scheduler does."""

import argparse
import logging
import time

import httpx

from functions.identity import GoogleAuthError, IdTokenAuth

# Cloud Scheduler's attempt deadline, as Terraform sets it for promote.
DEADLINE_SECONDS = 60.0


def main() -> None:
    """Post to the address until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m local.scheduler", description=__doc__)
    parser.add_argument("--url", required=True, help="service to POST to, as itself")
    parser.add_argument("--seconds", type=float, required=True, help="from one call to the next")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    last = ""
    # The audience is the service's URL, as Terraform must set it: by default it would be
    # the whole target's, path included.
    auth = IdTokenAuth(arguments.url)
    with httpx.Client(timeout=DEADLINE_SECONDS, auth=auth) as client:
        while True:
            started = time.monotonic()
            try:
                response = client.post(arguments.url)
                outcome = f"{response.status_code} {_summary(response)}"
            except (httpx.HTTPError, GoogleAuthError) as error:
                outcome = f"failed: {error!r}"
            if outcome != last:
                logging.info("%s", outcome)
                last = outcome
            time.sleep(max(0.0, arguments.seconds - (time.monotonic() - started)))


def _summary(response: httpx.Response) -> str:
    try:
        content = response.json()
    except ValueError:
        return response.text[:200]
    return str(content.get("action") or content.get("detail") or content)


if __name__ == "__main__":
    main()
