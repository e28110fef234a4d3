"""Google ID tokens on MLflow's requests: the plugin that ``MLFLOW_TRACKING_AUTH`` names.

With ``MLFLOW_TRACKING_AUTH=google-id-token`` MLflow asks `IdTokenAuthProvider` before each
request. A token lives for an hour, a training may take longer: each request gets one that is
good for some minutes at least.
"""

import os
import warnings
from threading import Lock
from urllib.parse import urlsplit

import google.auth
import mlflow
from google.auth import compute_engine, impersonated_credentials
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.oauth2 import id_token, service_account
from mlflow.exceptions import MlflowException
from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider
from requests import PreparedRequest
from requests.auth import AuthBase

NAME = "google-id-token"

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class AuthError(Exception):
    """MLflow's requests can't be authenticated here; the message says what to do."""


class IdTokenAuth(AuthBase):
    """Adds a Google ID token to each request; safe to share between threads.

    The token comes from the application default credentials: of the metadata server, of a
    service account, or of a user who impersonates one.

    Args:
        audience: of the token, the callee's service URL; empty: scheme and host of each
            request.
    """

    def __init__(self, audience: str = "") -> None:
        self._audience = audience
        self._credentials: dict[str, Credentials] = {}
        self._refreshing = Lock()

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        """Set the request's ``Authorization`` header.

        Raises:
            AuthError: no token is to be had.
        """
        request.headers["Authorization"] = f"Bearer {self.token(str(request.url))}"
        return request

    def token(self, url: str) -> str:
        """Return a token for a request to `url`.

        It is renewed 3:45 minutes before it expires (google-auth's threshold).

        Raises:
            AuthError: none is to be had.
        """
        address = urlsplit(url)
        audience = self._audience or f"{address.scheme}://{address.netloc}"
        with self._refreshing:
            try:
                credentials = self._credentials.get(audience)
                if credentials is None:
                    credentials = _id_token_credentials(audience)
                    self._credentials[audience] = credentials
                if not credentials.valid:
                    credentials.refresh(Request())
            except GoogleAuthError as error:
                raise AuthError(f"no ID token for {audience}: {_one_line(error)}") from error
            return str(credentials.token)


class IdTokenAuthProvider(RequestAuthProvider):
    """MLflow's plugin ``google-id-token``.

    The audience is the service that is called, or ``MLFLOW_TRACKING_AUDIENCE`` where that
    has another name, such as a custom domain.
    """

    def __init__(self) -> None:
        self._auths: dict[str, IdTokenAuth] = {}

    def get_name(self) -> str:
        """Return what ``MLFLOW_TRACKING_AUTH`` calls it."""
        return NAME

    def get_auth(self) -> IdTokenAuth:
        """Return the same object for the same settings: it holds the token."""
        audience = os.environ.get("MLFLOW_TRACKING_AUDIENCE", "")
        return self._auths.setdefault(audience, IdTokenAuth(audience))


def require_provider() -> None:
    """Make sure that MLflow's requests will be authenticated as ``MLFLOW_TRACKING_AUTH`` says.

    MLflow only warns of a name that nobody registered, and sends its requests without a
    token. Does nothing where the variable is not set.

    Raises:
        AuthError: no installed plugin has that name, or it can't get a token.
    """
    name = os.environ.get("MLFLOW_TRACKING_AUTH", "")
    if not name:
        return
    # It loads the plugins when it is imported: this module, which must be whole by then.
    from mlflow.tracking.request_auth.registry import fetch_auth

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            auth = fetch_auth(name)
        except MlflowException as error:
            raise AuthError(f"MLFLOW_TRACKING_AUTH={name}: {error}") from error
    if auth is None:
        raise AuthError(
            f"MLFLOW_TRACKING_AUTH={name}: MLflow has no such plugin, and would send its requests "
            f"without a token; {NAME} comes with this project when it is installed (pip install "
            "--no-deps .)"
        )
    address = mlflow.get_tracking_uri()
    if isinstance(auth, IdTokenAuth) and urlsplit(address).scheme in ("http", "https"):
        auth.token(address)


def _id_token_credentials(audience: str) -> Credentials:
    credentials, _ = google.auth.default(scopes=[_SCOPE])
    # The library's own function does not look where `gcloud auth application-default login`
    # writes: nobody could impersonate a service account on a laptop.
    if isinstance(credentials, impersonated_credentials.Credentials):
        return impersonated_credentials.IDTokenCredentials(
            credentials, target_audience=audience, include_email=True
        )
    if isinstance(credentials, service_account.Credentials | compute_engine.Credentials):
        found: Credentials = id_token.fetch_id_token_credentials(audience, Request())
        return found
    raise AuthError(
        f"no ID token for {audience}: Google makes them for service accounts, and the credentials "
        "here are another kind's. Impersonate an account that may call MLflow: gcloud auth "
        "application-default login --impersonate-service-account=ACCOUNT"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
