"""Who the operator is, and what to do when something refuses: in one line."""

import getpass
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import google.auth
from google.api_core import exceptions
from google.auth import compute_engine, impersonated_credentials, jwt
from google.auth.credentials import Credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.auth.transport.requests import Request
from google.oauth2 import id_token, service_account

SIGN_IN = "sign in with: gcloud auth application-default login"

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_GCLOUD_SECONDS = 60
# What gRPC says, as UNAVAILABLE, when the credentials can't be refreshed.
_NO_CREDENTIALS = "Getting metadata from plugin failed"


class OperatorError(Exception):
    """It can't be asked or done; the message says what to do."""


class Identity:
    """ID tokens of the operator for Cloud Run services.

    Google makes ID tokens with an audience for service accounts only. A user
    impersonates one, or uses the token that gcloud has of them, which Cloud Run
    accepts from users who may invoke the service:
    https://cloud.google.com/run/docs/authenticating/developers

    Args:
        impersonate: service account to act as; empty: the credentials as they are.
    """

    def __init__(self, impersonate: str = "") -> None:
        self._impersonate = impersonate
        self._tokens: dict[str, str] = {}

    def token(self, url: str) -> str | None:
        """Return an ID token for the service at `url`; None for ``http://``, which takes none.

        Raises:
            OperatorError: none is to be had.
        """
        if not url.startswith("https://"):
            return None
        if url not in self._tokens:
            self._tokens[url] = self._fetch(url)
        return self._tokens[url]

    def name(self, url: str) -> str:
        """Return who the service at `url` takes the operator for: an e-mail address.

        Raises:
            OperatorError: there are no credentials.
        """
        token = self.token(url)
        if token is None:
            return getpass.getuser()
        return str(jwt.decode(token, verify=False).get("email", "unknown"))

    def _fetch(self, audience: str) -> str:
        try:
            credentials = self._credentials(audience)
            if credentials is None:
                return _gcloud_token(audience)
            credentials.refresh(Request())
            return str(credentials.token)
        except GoogleAuthError as error:
            raise OperatorError(f"no ID token for {audience}: {one_line(error)}; {SIGN_IN}") from (
                error
            )

    def _credentials(self, audience: str) -> Credentials | None:
        """Return what makes ID tokens; None: only gcloud can."""
        try:
            source, _ = google.auth.default(scopes=[_SCOPE])
        except DefaultCredentialsError:
            if self._impersonate:
                raise
            return None
        if self._impersonate:
            source = impersonated_credentials.Credentials(
                source_credentials=source,
                target_principal=self._impersonate,
                target_scopes=[_SCOPE],
            )
        if isinstance(source, impersonated_credentials.Credentials):
            return impersonated_credentials.IDTokenCredentials(
                source, target_audience=audience, include_email=True
            )
        if isinstance(source, service_account.Credentials | compute_engine.Credentials):
            found: Credentials = id_token.fetch_id_token_credentials(audience, Request())
            return found
        return None


@contextmanager
def explained(what: str, *, role: str, missing: str) -> Iterator[None]:
    """Turn what Google's libraries raise into an `OperatorError`.

    Args:
        what: the API, and what it is asked for, such as "Cloud Scheduler".
        role: that lets the operator do it.
        missing: what to say when it is not found.

    Raises:
        OperatorError: in place of any of their errors.
    """
    try:
        yield
    except (GoogleAuthError, exceptions.Unauthenticated) as error:
        raise OperatorError(f"{what} does not know you: {one_line(error)}; {SIGN_IN}") from error
    except exceptions.Forbidden as error:
        raise OperatorError(
            f"{what} refuses you: {one_line(error)}; ask the project's owner for {role}"
        ) from error
    except exceptions.NotFound as error:
        raise OperatorError(missing) from error
    except (
        exceptions.ServiceUnavailable,
        exceptions.GatewayTimeout,
        exceptions.RetryError,
    ) as error:
        if _NO_CREDENTIALS in str(error):
            raise OperatorError(f"no access token for {what}: {one_line(error)}; {SIGN_IN}") from (
                error
            )
        raise OperatorError(
            f"{what} can't be reached: {one_line(error)}; check the network, then try again"
        ) from error
    except exceptions.GoogleAPICallError as error:
        raise OperatorError(f"{what}: {one_line(error)}") from error


def one_line(error: object) -> str:
    """Return an error's words without line breaks, at most 300 characters."""
    words = " ".join(str(error).split())
    return words if len(words) <= 300 else f"{words[:297]}..."


def _gcloud_token(audience: str) -> str:
    gcloud = shutil.which("gcloud")
    advice = (
        "sign in with: gcloud auth login (and gcloud auth application-default login), "
        "or name a service account that may call it with --impersonate"
    )
    if gcloud is None:
        raise OperatorError(
            f"no ID token for {audience}: a user's own come from the Google Cloud CLI, which is "
            f"not installed; {advice}"
        )
    try:
        result = subprocess.run(  # noqa: S603  # fixed words
            [gcloud, "auth", "print-identity-token", "--quiet"],
            capture_output=True,
            text=True,
            timeout=_GCLOUD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OperatorError(f"no ID token for {audience}: {one_line(error)}; {advice}") from error
    if result.returncode != 0 or not result.stdout.strip():
        raise OperatorError(f"no ID token for {audience}: {_reason(result.stderr)}; {advice}")
    return result.stdout.strip()


def _reason(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith("ERROR")]
    return one_line(lines[0] if lines else "gcloud gave none")
