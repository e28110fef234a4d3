"""Who may call a service: decided from headers and policy, before a container is chosen."""

from collections.abc import Mapping

from google.cloud import run_v2
from google.iam.v1 import policy_pb2
from multidict import CIMultiDict, CIMultiDictProxy

from local.cloud_run import policy as policies
from local.cloud_run.identity import InvalidToken, Issuer

# The person at this machine, for whom a service's own port stands.
OWNER_EMAIL = "owner@example.com"
OWNER_ID = "100000000000000000001"

# Cloud Run puts it in the place of a checked token's third part, so that a container
# can't use the token again.
REMOVED_SIGNATURE = "SIGNATURE_REMOVED_BY_GOOGLE"

_PRECEDENT = "X-Serverless-Authorization"
# Set by IAP alone: a container may believe them.
_IAP_PREFIXES = ("x-goog-authenticated-user-", "x-goog-iap-")


class Denied(Exception):
    """A request that no container may see.

    Attributes:
        status: HTTP status of the answer.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def authorize(
    headers: CIMultiDictProxy[str],
    service: run_v2.Service,
    policy: policy_pb2.Policy,
    issuer: Issuer,
) -> CIMultiDict[str]:
    """Decide whether a caller from anywhere may invoke the service.

    Args:
        headers: of the request.
        service: that it is for, whichever of its tags was named.
        policy: the service's.
        issuer: whose tokens count.

    Returns:
        The headers to pass on.

    Raises:
        Denied: 401 without a valid token for this service, 403 without the invoker's
            role.
    """
    if service.iap_enabled:
        # IAP stands before the service and takes no token made for the service's URL.
        raise Denied(401, "Identity-Aware Proxy guards this service, and there is no session.")
    if service.invoker_iam_disabled or policies.is_public(policy):
        return passed_on(headers)
    name = _PRECEDENT if _PRECEDENT in headers else "Authorization"
    token = _bearer_token(headers.getall(name, ()))
    try:
        identity = issuer.verify(token)
    except InvalidToken as reason:
        raise _unauthorized(str(reason)) from reason
    # The URL of a tag is not among them.
    if identity.audience not in {service.uri, *service.urls, *service.custom_audiences}:
        raise _unauthorized("the token is for another audience")
    if not policies.may_invoke(policy, identity):
        raise Denied(403, "Your client does not have permission to get this URL.")
    forwarded = passed_on(headers)
    if name == "Authorization":
        forwarded[name] = f"Bearer {token.rpartition('.')[0]}.{REMOVED_SIGNATURE}"
    return forwarded


def as_owner(headers: CIMultiDictProxy[str], service: run_v2.Service) -> CIMultiDict[str]:
    """The headers to pass on for the project's owner, who came through IAP if it is on.

    Owners may invoke every service, as they do through ``gcloud run services proxy``.
    """
    forwarded = passed_on(headers)
    if service.iap_enabled:
        forwarded["X-Goog-Authenticated-User-Email"] = f"accounts.google.com:{OWNER_EMAIL}"
        forwarded["X-Goog-Authenticated-User-Id"] = f"accounts.google.com:{OWNER_ID}"
    return forwarded


def passed_on(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers without those that only Cloud Run reads, or only IAP may write."""
    return CIMultiDict(
        (key, value)
        for key, value in headers.items()
        if key.lower() != _PRECEDENT.lower() and not key.lower().startswith(_IAP_PREFIXES)
    )


def _bearer_token(values: "list[str] | tuple[()]") -> str:
    if len(values) != 1:
        raise _unauthorized("one bearer token is required")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorized("a bearer token is required")
    return token.strip()


def _unauthorized(reason: str) -> Denied:
    description = f"The access token could not be verified: {reason}"
    challenge = f'Bearer error="invalid_token" error_description="{description}"'
    return Denied(401, f"{description}.", {"WWW-Authenticate": challenge})
