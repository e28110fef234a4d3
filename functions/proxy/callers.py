"""Who calls: found from headers that Cloud Run has checked, and kept as digests only."""

import base64
import hashlib
import json
from collections.abc import Collection, Mapping

ANONYMOUS = "anonymous"

_MAX_TOKEN = 16_384


def caller_name(
    headers: Mapping[str, str], named_by_caller: str | None, trusted_fronts: Collection[str]
) -> str:
    """Return a name of whoever gives an answer.

    The token was verified by Cloud Run, which takes its signature away; of two, it looks
    at the one in ``X-Serverless-Authorization`` only. Where callers need no token, this name
    is what they say.

    Args:
        headers: of the request, with names in lower case.
        named_by_caller: ``X-Greenroom-Caller``, if given.
        trusted_fronts: e-mail addresses of the callers whose ``X-Greenroom-Caller`` counts.
    """
    verified = headers.get("x-serverless-authorization") or headers.get("authorization", "")
    claims = _claims(verified)
    account = claims.get("email") or claims.get("sub")
    if not isinstance(account, str) or not account:
        account = ANONYMOUS
    if named_by_caller is not None and account in trusted_fronts:
        return f"{account} for {named_by_caller}"
    return account


def caller_digest(caller: str) -> str:
    """Return the form in which a caller's name is kept."""
    return hashlib.sha256(f"caller:{caller}".encode()).hexdigest()[:32]


def capped_by(caller: str, prediction_id: str) -> str:
    """Return what tells that two answers to a prediction come from the same caller.

    It does not tell which predictions a caller has answered.
    """
    return hashlib.sha256(f"answer:{prediction_id}:{caller}".encode()).hexdigest()[:32]


def _claims(authorization: str) -> Mapping[str, object]:
    scheme, _, token = authorization.partition(" ")
    parts = token.strip().split(".")
    if scheme.lower() != "bearer" or len(parts) != 3 or len(token) > _MAX_TOKEN:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}
