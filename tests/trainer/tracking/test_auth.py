"""ID tokens on MLflow's requests, from each kind of credentials."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import crypt, jwt

from tests.trainer.tracking.conftest import Door, TrackingServer
from trainer.__main__ import main
from trainer.auth import AuthError, IdTokenAuth, IdTokenAuthProvider, require_provider

ACCOUNT = "trainer@greenroom-test.iam.gserviceaccount.com"
ROOT = Path(__file__).parents[3]
PROVIDER = "google-id-token"
AUDIENCE = "https://mlflow-api-123.a.run.app"

# A training that takes a while, seen from MLflow.
TRAINING = textwrap.dedent(
    """
    import sys, time
    from trainer.auth import require_provider

    require_provider()
    import mlflow

    with mlflow.start_run(run_id=sys.argv[1]):
        for step in range(12):
            mlflow.log_metric("loss", 1.0, step=step)
            time.sleep(0.25)
    """
)


class Google:
    """Issues ID tokens: as a metadata server, and as the token server of service accounts.

    Args:
        lifetime_seconds: of the tokens.
    """

    def __init__(self, lifetime_seconds: int = 3600) -> None:
        self.lifetime_seconds = lifetime_seconds
        self.issued: list[str] = []
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.key = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
        self._certificates = {
            "1": key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        }
        self._signer = crypt.RSASigner.from_string(self.key, key_id="1")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def verify(self, authorization: str | None, audience: str) -> bool:
        """Return whether a request with this header may come in now."""
        kind, _, token = (authorization or "").partition(" ")
        try:
            jwt.decode(token, self._certificates, audience=audience, clock_skew_in_seconds=0)
        except ValueError:
            return False
        return kind == "Bearer"

    def service_account(self, folder: Path) -> Path:
        """Return a key file whose tokens come from here."""
        path = folder / "key.json"
        path.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "project_id": "greenroom-test",
                    "private_key_id": "1",
                    "private_key": self.key,
                    "client_email": ACCOUNT,
                    "token_uri": f"http://{self.address}/token",
                }
            )
        )
        return path

    def issue(self, audience: str) -> str:
        now = int(time.time())
        claims = {"aud": audience, "email": ACCOUNT, "iat": now, "exp": now + self.lifetime_seconds}
        token: str = jwt.encode(self._signer, claims).decode()
        self.issued.append(token)
        return token

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        google = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                account = "/computeMetadata/v1/instance/service-accounts/default"
                if self.headers["Metadata-Flavor"] != "Google":
                    self.answer(403, "")
                elif url.path == f"{account}/identity":
                    self.answer(200, google.issue(parse_qs(url.query)["audience"][0]))
                elif url.path == f"{account}/":
                    self.answer(200, json.dumps({"email": ACCOUNT, "scopes": []}))
                elif url.path == "/computeMetadata/v1/project/project-id":
                    self.answer(200, "greenroom-test")
                else:
                    self.answer(200 if url.path == "/" else 404, "")

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                claims = jwt.decode(form["assertion"][0], google._certificates)
                self.answer(200, json.dumps({"id_token": google.issue(claims["target_audience"])}))

            def answer(self, status: int, content: str) -> None:
                self.send_response(status)
                self.send_header("Metadata-Flavor", "Google")
                kind = "application/json" if content.startswith("{") else "application/text"
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def google() -> Iterator[Google]:
    google = Google()
    yield google
    google.close()


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine that the tests run on."""
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_AUTH", raising=False)
    # Google itself is not asked.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")


def test_a_training_outlives_its_tokens(
    mlflow_server: TrackingServer, door: Door, google: Google
) -> None:
    """Each is good for two seconds; the door to MLflow lets nobody in with an expired one."""
    google.lifetime_seconds = 2
    door.check = lambda authorization: google.verify(authorization, audience=door.url)
    run_id = mlflow_server.create_run()
    # A process: google-auth looks for the metadata server when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, run_id],
        cwd=ROOT,
        env={
            **os.environ,
            "NO_GCE_CHECK": "",
            "GCE_METADATA_HOST": google.address,
            "GCE_METADATA_IP": google.address,
            "GCE_METADATA_ROOT": google.address,
            "MLFLOW_TRACKING_URI": door.url,
            "MLFLOW_TRACKING_AUTH": PROVIDER,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert door.statuses
    assert set(door.statuses) == {200}
    points = mlflow_server.client.get_metric_history(run_id, "loss")
    assert [point.step for point in points] == list(range(12))
    # The first had expired before the end, or the door was open all the time.
    assert not google.verify(f"Bearer {google.issued[0]}", audience=door.url)
    assert not google.verify(None, audience=door.url)


class TestTokens:
    @pytest.fixture
    def account(self, google: Google, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Google:
        """The credentials here are a service account's key."""
        path = google.service_account(tmp_path)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        return google

    def test_one_serves_all_requests_of_all_threads_until_it_expires(self, account: Google) -> None:
        auth = IdTokenAuth()
        with ThreadPoolExecutor(8) as pool:
            tokens = set(pool.map(auth.token, [f"{AUDIENCE}/api/2.0/mlflow/runs/log-batch"] * 20))
        assert tokens == set(account.issued)
        assert len(tokens) == 1
        assert account.verify(f"Bearer {tokens.pop()}", AUDIENCE)

    def test_one_about_to_expire_is_not_used(self, account: Google) -> None:
        """MLflow may try a request again for some minutes, with the token that it has."""
        account.lifetime_seconds = 200
        auth = IdTokenAuth()
        auth.token(AUDIENCE)
        account.lifetime_seconds = 3600
        assert account.verify(f"Bearer {auth.token(AUDIENCE)}", AUDIENCE)
        assert auth.token(AUDIENCE) == account.issued[1]
        assert len(account.issued) == 2

    def test_the_audience_is_the_host_that_is_called(self, account: Google) -> None:
        """A token sent to one server is worth nothing at another."""
        auth = IdTokenAuth()
        for url in ("https://mlflow.example.com/api/2.0", "http://127.0.0.1:5000/"):
            origin = url.partition("/api")[0].rstrip("/")
            assert account.verify(f"Bearer {auth.token(url)}", origin)

    def test_the_audience_may_have_another_name(
        self, account: Google, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_AUDIENCE", AUDIENCE)
        provider = IdTokenAuthProvider()
        token = provider.get_auth().token("https://mlflow.example.com/api/2.0")
        assert account.verify(f"Bearer {token}", AUDIENCE)
        assert provider.get_auth() is provider.get_auth()


class TestAtTheStart:
    def test_nothing_is_required_where_no_plugin_is_named(self) -> None:
        require_provider()

    def test_a_plugin_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """MLflow only warns, and its requests would be refused one by one."""
        monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "google-id-tokens")
        with pytest.raises(AuthError, match=r"=google-id-tokens: MLflow has no such plugin"):
            require_provider()

    def test_the_trainer_says_so_before_it_does_anything(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "google-id-tokens")
        done = CliRunner().invoke(main, ["train", "--tracking-uri=http://127.0.0.1:1"])
        assert done.exit_code == 1
        assert "Error: MLFLOW_TRACKING_AUTH=google-id-tokens: MLflow has no" in done.stderr

    @pytest.mark.parametrize(
        ("credentials", "words"),
        [
            (None, "no ID token for .*default credentials were not found"),
            (
                {
                    "type": "authorized_user",
                    "client_id": "id",
                    "client_secret": "secret",
                    "refresh_token": "token",
                },
                "gcloud auth application-default login --impersonate-service-account=ACCOUNT",
            ),
            (
                {
                    "type": "impersonated_service_account",
                    "service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/"
                    f"projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken",
                    "source_credentials": {
                        "type": "authorized_user",
                        "client_id": "id",
                        "client_secret": "secret",
                        "refresh_token": "token",
                    },
                },
                # Google was asked for the user's access token, by which it would impersonate.
                "no ID token for .*oauth2.googleapis.com",
            ),
        ],
        ids=["none", "user", "impersonated"],
    )
    def test_credentials_that_give_no_token(
        self,
        credentials: dict[str, object] | None,
        words: str,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_AUTH", PROVIDER)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", AUDIENCE)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "greenroom-test")
        if credentials:
            path = tmp_path / "application_default_credentials.json"
            path.write_text(json.dumps(credentials))
        with pytest.raises(AuthError, match=words):
            require_provider()
