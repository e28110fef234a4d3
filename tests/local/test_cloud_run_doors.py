"""Who may call a service: policies, ID tokens, the metadata server, the front end's doors."""

import base64
import hashlib
import hmac
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.api_core import exceptions
from google.auth import crypt, jwt
from google.cloud import run_v2
from google.iam.v1 import iam_policy_pb2, policy_pb2

from local.cloud_run import identity
from local.cloud_run.identity import InvalidToken, Issuer
from tests.local.conftest import (
    CALLER,
    NUMBER,
    PARENT,
    PROJECT,
    REGION,
    ROOT,
    STRANGER,
    StandIn,
    latest,
    service_body,
    template,
    wait_for,
)

INVOKER = "roles/run.invoker"
DEFAULT_ACCOUNT = f"{NUMBER}-compute@developer.gserviceaccount.com"


@pytest.fixture(scope="module")
def guarded(stand_in: StandIn) -> run_v2.Service:
    """A service that one account may invoke."""
    service = stand_in.deploy("private", service_body(custom_audiences=["https://api.example.com"]))
    stand_in.grant("private", f"serviceAccount:{CALLER}")
    stand_in.route("private", latest(tag="candidate"))
    return service


def ask(stand_in: StandIn, service: str, *, tag: str = "", **headers: str) -> httpx.Response:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return stand_in.http.get(stand_in.url(service, "/asked", tag), headers=named)


def bearer(token: str) -> str:
    return f"Bearer {token}"


def assert_unauthorized(response: httpx.Response) -> None:
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')
    assert "revision" not in response.text


def own_key(stand_in: StandIn) -> bytes:
    return (stand_in.folder / "data" / identity.KEY_FILE).read_bytes()


def public_key(private: bytes) -> bytes:
    key = serialization.load_pem_private_key(private, password=None)
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def claims(audience: str, **changes: Any) -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": "https://accounts.google.com",
        "aud": audience,
        "azp": "1",
        "sub": "1",
        "email": CALLER,
        "email_verified": True,
        "iat": now,
        "exp": now + 3600,
        **changes,
    }


def signed(key: bytes, content: dict[str, Any]) -> str:
    token: bytes = jwt.encode(crypt.RSASigner.from_string(key), content)
    return token.decode()


def assembled(header: dict[str, Any], content: dict[str, Any], key: bytes = b"") -> str:
    """A token with any header: HMAC of `key`, or no signature."""
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in (header, content)
    ]
    signature = hmac.digest(key, ".".join(parts).encode(), hashlib.sha256) if key else b""
    return ".".join([*parts, base64.urlsafe_b64encode(signature).decode().rstrip("=")])


# Policies


def test_new_service_has_an_empty_policy_and_refuses_everyone(
    stand_in: StandIn, service_name: str
) -> None:
    operation = stand_in.services.create_service(
        parent=PARENT, service_id=service_name, service=service_body()
    )
    policy = stand_in.policy(service_name)
    assert not policy.bindings
    assert policy.etag
    uri = stand_in.settled(service_name).uri
    assert_unauthorized(ask(stand_in, service_name))
    token = stand_in.id_token(CALLER, uri)
    assert ask(stand_in, service_name, Authorization=bearer(token)).status_code == 403
    assert operation.operation.name


def test_policy_is_replaced_and_its_etag_honoured(
    stand_in: StandIn, guarded: run_v2.Service
) -> None:
    read = stand_in.policy("private")
    assert [(b.role, list(b.members)) for b in read.bindings] == [
        (INVOKER, [f"serviceAccount:{CALLER}"])
    ]
    # Others than the invoker's are kept, and open nothing.
    read.bindings.add(role="roles/run.viewer", members=["allUsers"])
    read.bindings.add(role=INVOKER, members=[f"serviceAccount:{CALLER.upper()}", "user:a@b.c"])
    read.bindings.add(role="roles/run.developer")
    written = stand_in.set_policy("private", read)
    assert written == stand_in.policy("private")
    assert written.etag != read.etag
    assert [(b.role, list(b.members)) for b in written.bindings] == [
        (INVOKER, [f"serviceAccount:{CALLER}", "user:a@b.c"]),
        ("roles/run.viewer", ["allUsers"]),
    ]
    assert_unauthorized(ask(stand_in, "private"))
    with pytest.raises(exceptions.Aborted):
        stand_in.set_policy("private", read)
    assert stand_in.policy("private") == written
    stand_in.set_policy("private", written)
    # Without an etag the last writer wins, as Terraform's iam_policy does.
    stand_in.grant("private", f"serviceAccount:{CALLER}")


@pytest.mark.parametrize(
    "member",
    [
        "",
        "everybody",
        "allusers",
        CALLER,
        f"serviceaccount:{CALLER}",
        "serviceAccount:",
        "serviceAccount:caller",
        "serviceAccount:someone@example.com",
        f"user:{CALLER}",
        "user:a@b",
        "user:a b@example.com",
        "domain:a@example.com",
    ],
)
def test_malformed_member(stand_in: StandIn, guarded: run_v2.Service, member: str) -> None:
    before = stand_in.policy("private")
    with pytest.raises(exceptions.InvalidArgument):
        stand_in.grant("private", "allUsers", member)
    assert stand_in.policy("private") == before


def test_policy_that_a_service_cannot_have(stand_in: StandIn, guarded: run_v2.Service) -> None:
    condition = {"expression": "true", "title": "always"}
    for policy, message in (
        (policy_pb2.Policy(bindings=[{"role": "invoker", "members": ["allUsers"]}]), "role"),
        (policy_pb2.Policy(bindings=[{"role": "", "members": ["allUsers"]}]), "role"),
        (policy_pb2.Policy(bindings=[{"role": INVOKER, "condition": condition}]), "condition"),
        (policy_pb2.Policy(version=2), "version"),
        (policy_pb2.Policy(audit_configs=[{"service": "allServices"}]), "audit"),
    ):
        with pytest.raises(exceptions.InvalidArgument, match=message):
            stand_in.set_policy("private", policy)


def test_policy_of_an_unknown_service(stand_in: StandIn, service_name: str) -> None:
    resource = stand_in.name(service_name)
    with pytest.raises(exceptions.NotFound):
        stand_in.policy(service_name)
    with pytest.raises(exceptions.NotFound):
        stand_in.grant(service_name, "allUsers")
    with pytest.raises(exceptions.NotFound):
        stand_in.services.test_iam_permissions(
            iam_policy_pb2.TestIamPermissionsRequest(resource=resource)
        )
    with pytest.raises(exceptions.InvalidArgument):
        stand_in.services.get_iam_policy(iam_policy_pb2.GetIamPolicyRequest(resource=service_name))


def test_permissions_of_the_owner(stand_in: StandIn, guarded: run_v2.Service) -> None:
    wanted = ["run.routes.invoke", "run.services.setIamPolicy"]
    request = iam_policy_pb2.TestIamPermissionsRequest(resource=guarded.name, permissions=wanted)
    assert list(stand_in.services.test_iam_permissions(request).permissions) == wanted
    for unknown in ("run.*", "storage.objects.get"):
        request = iam_policy_pb2.TestIamPermissionsRequest(
            resource=guarded.name, permissions=[unknown]
        )
        with pytest.raises(exceptions.InvalidArgument):
            stand_in.services.test_iam_permissions(request)


# The main port


def test_token_of_an_invoker_is_admitted(stand_in: StandIn, guarded: run_v2.Service) -> None:
    token = stand_in.id_token(CALLER, guarded.uri)
    for tag in ("", "candidate"):
        # The scheme's name may be written in any case.
        for scheme in ("Bearer", "bearer"):
            response = ask(stand_in, "private", tag=tag, Authorization=f"{scheme} {token}")
            assert response.status_code == 200
            # The container learns who called, and can't call others with it.
            seen = response.json()["headers"]["Authorization"]
            unsigned, _, signature = seen.rpartition(".")
            assert unsigned == f"Bearer {token.rpartition('.')[0]}"
            assert signature == "SIGNATURE_REMOVED_BY_GOOGLE"
    assert_unauthorized(ask(stand_in, "private", Authorization=seen))


def test_custom_audience(stand_in: StandIn, guarded: run_v2.Service) -> None:
    token = stand_in.id_token(CALLER, "https://api.example.com")
    assert ask(stand_in, "private", Authorization=bearer(token)).status_code == 200


def test_token_without_the_role(stand_in: StandIn, guarded: run_v2.Service) -> None:
    token = stand_in.id_token(STRANGER, guarded.uri)
    response = ask(stand_in, "private", Authorization=bearer(token))
    assert response.status_code == 403
    assert "revision" not in response.text


def test_token_for_another_audience(stand_in: StandIn, guarded: run_v2.Service) -> None:
    tag_url = stand_in.get("private").traffic_statuses[0].uri
    assert tag_url.startswith("http://candidate---private.")
    for audience in (
        tag_url,
        guarded.uri + "/",
        guarded.uri + "/asked",
        guarded.uri.replace("private", "other"),
        "private",
    ):
        token = stand_in.id_token(CALLER, audience)
        for tag in ("", "candidate"):
            assert_unauthorized(ask(stand_in, "private", tag=tag, Authorization=bearer(token)))


def test_missing_and_malformed_tokens(stand_in: StandIn, guarded: run_v2.Service) -> None:
    assert_unauthorized(ask(stand_in, "private"))
    token = stand_in.id_token(CALLER, guarded.uri)
    header, payload, signature = token.split(".")
    other = stand_in.id_token(STRANGER, guarded.uri).split(".")[1]
    deep = base64.urlsafe_b64encode(b"[" * 4000).decode()
    for value in (
        "",
        token,
        f"Basic {token}",
        f"Bearer{token}",
        "Bearer",
        "Bearer x",
        "Bearer ..",
        "Bearer a.b.c",
        f"Bearer {deep}.{deep}.{deep}",
        f"Bearer {header}.{payload}",
        f"Bearer {header}.{payload}.",
        f"Bearer {header}.{other}.{signature}",
        f"Bearer {token}x, Bearer {token}",
        "Bearer \xff\xfe",
    ):
        headers = httpx.Headers([(b"Authorization", value.encode("latin-1"))])
        assert_unauthorized(stand_in.http.get(guarded.uri, headers=headers))
    twice = [("Authorization", bearer(token)), ("Authorization", bearer(token))]
    assert_unauthorized(stand_in.http.get(guarded.uri, headers=twice))


def test_forged_and_outlived_tokens(stand_in: StandIn, guarded: run_v2.Service) -> None:
    ours = own_key(stand_in)
    another = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    good = claims(guarded.uri)
    now = int(time.time())
    token = stand_in.id_token(CALLER, guarded.uri)
    key_id = jwt.decode_header(token)["kid"]
    # What is refused below is refused for its one mistake.
    assert ask(stand_in, "private", Authorization=bearer(signed(ours, good))).status_code == 200
    for bad in (
        signed(another, good),
        assembled({"alg": "none", "typ": "JWT"}, good),
        assembled({"alg": "none", "typ": "JWT", "kid": key_id}, good),
        assembled({"alg": "HS256", "typ": "JWT"}, good, public_key(ours)),
        assembled({"alg": "HS256", "typ": "JWT", "kid": key_id}, good, public_key(ours)),
        assembled({"alg": "RS256", "typ": "JWT", "kid": key_id}, good, public_key(ours)),
        assembled({"alg": "ES256", "typ": "JWT", "kid": key_id}, good, public_key(ours)),
        assembled({"alg": ["RS256"], "kid": [key_id]}, good, public_key(ours)),
        signed(ours, {**good, "iat": now - 3620, "exp": now - 20}),
        signed(ours, {**good, "iat": now + 60}),
        signed(ours, {**good, "iss": "https://accounts.example.com"}),
        signed(ours, {**good, "email_verified": False}),
        signed(ours, {key: value for key, value in good.items() if key != "email"}),
        signed(ours, {key: value for key, value in good.items() if key != "exp"}),
        signed(ours, {**good, "aud": [guarded.uri]}),
    ):
        assert_unauthorized(ask(stand_in, "private", Authorization=bearer(bad)))


def test_a_clock_may_be_off_by_seconds(stand_in: StandIn, guarded: run_v2.Service) -> None:
    now = int(time.time())
    for times in ({"iat": now - 3600, "exp": now - 3}, {"iat": now + 5, "exp": now + 3605}):
        token = signed(own_key(stand_in), claims(guarded.uri, **times))
        assert ask(stand_in, "private", Authorization=bearer(token)).status_code == 200


def test_serverless_header_wins_and_is_removed(stand_in: StandIn, guarded: run_v2.Service) -> None:
    token = bearer(stand_in.id_token(CALLER, guarded.uri))
    response = ask(
        stand_in, "private", X_Serverless_Authorization=token, Authorization="Bearer of-the-app"
    )
    assert response.status_code == 200
    headers = response.json()["headers"]
    assert headers["Authorization"] == "Bearer of-the-app"
    assert "X-Serverless-Authorization" not in headers
    assert_unauthorized(
        ask(stand_in, "private", X_Serverless_Authorization="Bearer x", Authorization=token)
    )


def test_everybody_and_everybody_with_an_account(stand_in: StandIn, service_name: str) -> None:
    service = stand_in.create(service_name)
    # Its own tokens are the application's affair.
    response = ask(stand_in, service_name, Authorization="Bearer of-the-app")
    assert response.json()["headers"]["Authorization"] == "Bearer of-the-app"
    stand_in.grant(service_name, "allAuthenticatedUsers")
    assert_unauthorized(ask(stand_in, service_name))
    token = bearer(stand_in.id_token(STRANGER, service.uri))
    assert ask(stand_in, service_name, Authorization=token).status_code == 200
    stand_in.grant(service_name)
    assert ask(stand_in, service_name, Authorization=token).status_code == 403
    stand_in.grant(service_name, f"user:{CALLER.replace('gserviceaccount', 'example')}")
    person = claims(service.uri, email=CALLER.replace("gserviceaccount", "example"))
    token = bearer(signed(own_key(stand_in), person))
    assert ask(stand_in, service_name, Authorization=token).status_code == 200
    stand_in.grant(service_name)
    open_ = run_v2.Service(name=service.name, invoker_iam_disabled=True)
    stand_in.update(open_, "invoker_iam_disabled")
    assert ask(stand_in, service_name).status_code == 200


def test_unchecked_callers_are_all_admitted(make_stand_in: Callable[..., StandIn]) -> None:
    stand_in = make_stand_in(check_callers=False)
    stand_in.create("predict")
    stand_in.grant("predict")
    response = ask(stand_in, "predict", Authorization="Bearer of-the-app")
    assert response.json()["headers"]["Authorization"] == "Bearer of-the-app"


# The doors of people


def test_own_port_is_the_owners(stand_in: StandIn) -> None:
    stand_in.create("person")
    stand_in.grant("person")
    assert_unauthorized(ask(stand_in, "person"))
    response = httpx.get(
        f"http://127.0.0.1:{stand_in.own_ports['person']}/",
        headers={
            "Authorization": "Bearer of-the-app",
            "X-Goog-Authenticated-User-Email": "accounts.google.com:boss@example.com",
        },
    )
    headers = response.json()["headers"]
    assert headers["Authorization"] == "Bearer of-the-app"
    assert "X-Goog-Authenticated-User-Email" not in headers


def test_iap_lets_people_in_and_no_token(stand_in: StandIn) -> None:
    service = stand_in.deploy("guarded", service_body(iap_enabled=True))
    stand_in.grant("guarded", "allUsers", f"serviceAccount:{CALLER}")
    forged = {
        "X-Goog-Authenticated-User-Email": "accounts.google.com:boss@example.com",
        "X-Goog-Authenticated-User-Id": "accounts.google.com:7",
        "X-Goog-IAP-JWT-Assertion": "x",
    }
    door = f"http://127.0.0.1:{stand_in.own_ports['guarded']}/"
    for token in ("x", stand_in.id_token(CALLER, service.uri)):
        response = stand_in.http.get(
            service.uri, headers={**forged, "Authorization": bearer(token)}
        )
        assert response.status_code == 401
        assert response.headers["Content-Type"].startswith("text/html")
        assert door in response.text
    assert stand_in.http.get(service.uri, headers=forged).status_code == 401
    headers = httpx.get(door, headers=forged).json()["headers"]
    assert headers["X-Goog-Authenticated-User-Email"] == "accounts.google.com:owner@example.com"
    assert re.fullmatch(r"accounts\.google\.com:\d+", headers["X-Goog-Authenticated-User-Id"])
    assert "X-Goog-IAP-JWT-Assertion" not in headers


def test_no_caller_says_that_iap_knows_him(stand_in: StandIn, guarded: run_v2.Service) -> None:
    token = stand_in.id_token(CALLER, guarded.uri)
    response = ask(
        stand_in,
        "private",
        Authorization=bearer(token),
        X_Goog_Authenticated_User_Email="accounts.google.com:boss@example.com",
        x_goog_authenticated_user_id="accounts.google.com:7",
    )
    assert not [key for key in response.json()["headers"] if key.lower().startswith("x-goog")]


# The metadata server


def metadata(stand_in: StandIn, path: str, **changes: Any) -> httpx.Response:
    response = httpx.request(
        changes.pop("method", "GET"),
        f"http://127.0.0.1:{stand_in.metadata_ports[CALLER]}/{path}",
        headers=changes.pop("headers", {"Metadata-Flavor": "Google"}),
        trust_env=False,
    )
    assert response.headers["Metadata-Flavor"] == "Google"
    assert response.headers["Content-Type"]
    return response


def test_metadata_of_project_and_instance(stand_in: StandIn) -> None:
    values = {
        "project/project-id": PROJECT,
        "project/numeric-project-id": NUMBER,
        "instance/region": f"projects/{NUMBER}/regions/{REGION}",
        "instance/service-accounts/": f"default/\n{CALLER}/\n",
        "instance/service-accounts/default/email": CALLER,
        f"instance/service-accounts/{CALLER}/email": CALLER,
    }
    for path, value in values.items():
        response = metadata(stand_in, f"computeMetadata/v1/{path}")
        assert (response.status_code, response.text) == (200, value), path
    assert metadata(stand_in, "").status_code == 200
    assert metadata(stand_in, "computeMetadata/v1/instance/id").text
    account = "computeMetadata/v1/instance/service-accounts/default"
    about = metadata(stand_in, f"{account}/?recursive=true").json()
    assert about.pop("scopes")
    assert about == {"email": CALLER, "aliases": ["default"]}
    token = metadata(stand_in, f"{account}/token").json()
    assert token["access_token"]
    assert token["token_type"] == "Bearer"
    assert 0 < token["expires_in"] <= 3600


def test_metadata_id_token(stand_in: StandIn) -> None:
    path = "computeMetadata/v1/instance/service-accounts/default/identity"
    response = metadata(stand_in, f"{path}?audience=https://a.example.com/b&format=full")
    assert response.headers["Content-Type"].startswith("text/plain")
    found = jwt.decode(response.text, public_key(own_key(stand_in)))
    assert jwt.decode_header(response.text)["alg"] == "RS256"
    assert found["exp"] == found["iat"] + 3600
    assert re.fullmatch(r"\d{21}", found["sub"])
    assert {key: found[key] for key in ("iss", "aud", "azp", "email", "email_verified")} == {
        "iss": "https://accounts.google.com",
        "aud": "https://a.example.com/b",
        "azp": found["sub"],
        "email": CALLER,
        "email_verified": True,
    }
    for query in ("", "?format=full", "?audience=", "?audience=x&format=nonsense"):
        assert metadata(stand_in, path + query).status_code == 400


def test_metadata_that_is_not_given(stand_in: StandIn) -> None:
    token = "computeMetadata/v1/instance/service-accounts/default/token"
    flavor = {"Metadata-Flavor": "Google"}
    for headers in ({}, {"Metadata-Flavor": "google"}, {**flavor, "X-Forwarded-For": "10.0.0.1"}):
        for path in ("", token, "nonsense"):
            response = metadata(stand_in, path, headers=headers)
            assert response.status_code == 403
            assert "access_token" not in response.text
    assert metadata(stand_in, token, method="POST").status_code == 405
    for path in (
        "computeMetadata/v1/nonsense",
        "computeMetadata/v1/instance/service-accounts/default",
        "computeMetadata/v1/instance/service-accounts/default/nonsense",
        f"computeMetadata/v1/instance/service-accounts/{STRANGER}/token",
        "computeMetadata/v1beta1/instance/id",
    ):
        assert metadata(stand_in, path).status_code == 404


def test_google_auth_fetches_a_token(stand_in: StandIn, guarded: run_v2.Service) -> None:
    program = (
        "import sys, google.auth.transport.requests, google.oauth2.id_token as t\n"
        "request = google.auth.transport.requests.Request()\n"
        "print(t.fetch_id_token(request, sys.argv[1]))\n"
        "import google.auth\n"
        "credentials, project = google.auth.default()\n"
        "credentials.refresh(request)\n"
        "print(project, credentials.service_account_email)\n"
    )
    address = f"127.0.0.1:{stand_in.metadata_ports[CALLER]}"
    names = ("GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT")
    finished = subprocess.run(
        [sys.executable, "-c", program, guarded.uri],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **dict.fromkeys(names, address)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr
    token, who = finished.stdout.splitlines()
    assert who == f"{PROJECT} {CALLER}"
    assert ask(stand_in, "private", Authorization=bearer(token)).status_code == 200


# Containers


def test_container_is_its_service_account(
    stand_in: StandIn, guarded: run_v2.Service, service_name: str
) -> None:
    def token() -> str:
        response = stand_in.http.get(
            stand_in.url(service_name, f"/identity?audience={guarded.uri}")
        )
        assert response.status_code == 200, response.text
        return response.text

    service = stand_in.create(service_name)
    mine = token()
    assert jwt.decode(mine, verify=False)["email"] == DEFAULT_ACCOUNT
    assert ask(stand_in, "private", Authorization=bearer(mine)).status_code == 403
    other = template("--other", service_account=CALLER)
    stand_in.update(run_v2.Service(name=service.name, template=other), "template")
    mine = wait_for(token, lambda t: jwt.decode(t, verify=False)["email"] == CALLER)
    assert ask(stand_in, "private", Authorization=bearer(mine)).status_code == 200
    # The account whose port is configured has no second listener.
    address = stand_in.call(service_name)["environment"]["GCE_METADATA_HOST"]
    assert address == f"127.0.0.1:{stand_in.metadata_ports[CALLER]}"


@pytest.mark.parametrize("account", ["someone", "someone@example.com", "-"])
def test_service_account_that_is_none(stand_in: StandIn, account: str) -> None:
    body = run_v2.Service(template=template(service_account=account))
    with pytest.raises(exceptions.InvalidArgument, match="service_account"):
        stand_in.services.create_service(parent=PARENT, service_id="refused", service=body)


# Keeping


def test_policy_goes_with_its_service(stand_in: StandIn, service_name: str) -> None:
    name = stand_in.create(service_name).name
    assert stand_in.policy(service_name).bindings
    stand_in.services.delete_service(name=name)
    stand_in.services.create_service(parent=PARENT, service_id=service_name, service=service_body())
    assert not stand_in.policy(service_name).bindings


def test_key_is_made_once_and_readable_for_its_owner_only(tmp_path: Path) -> None:
    token = Issuer(tmp_path).issue(CALLER, "https://a.example.com")
    assert Issuer(tmp_path).verify(token).email == CALLER
    assert [path.name for path in tmp_path.iterdir()] == [identity.KEY_FILE]
    assert stat.S_IMODE((tmp_path / identity.KEY_FILE).stat().st_mode) == 0o600


def test_verified_tokens_are_remembered_until_they_expire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = Issuer(tmp_path)
    token = issuer.issue(CALLER, "https://a.example.com")
    verified = issuer.verify(token)
    assert (verified.email, verified.audience) == (CALLER, "https://a.example.com")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the signature was verified again")

    later = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(jwt, "decode", refuse)
        assert issuer.verify(token) is verified
        patch.setattr(time, "time", lambda: later + 3605)
        assert issuer.verify(token) is verified
        patch.setattr(time, "time", lambda: later + 3700)
        with pytest.raises(InvalidToken, match="expired"):
            issuer.verify(token)
    # Bounded: the oldest is forgotten, and verified again.
    monkeypatch.setattr(identity, "_KEPT_IDENTITIES", 2)
    tokens = [issuer.issue(CALLER, f"https://{n}.example.com") for n in range(3)]
    first = issuer.verify(tokens[0])
    for each in tokens[1:]:
        issuer.verify(each)
    assert issuer.verify(tokens[0]) is not first
