"""IAM policies of services: what is refused in one, and whom it lets in."""

import re
from collections.abc import Iterable

import grpc
from google.iam.v1 import iam_policy_pb2, policy_pb2

from local.cloud_run.identity import Identity
from local.cloud_run.validation import Refused, invalid

INVOKER = "roles/run.invoker"

# What IAM gives for a resource on which no policy was ever set.
_FIRST_ETAG = b"\x00\x01"
_ACCOUNT_DOMAIN = ".gserviceaccount.com"

_EMAIL = re.compile(r"[A-Za-z0-9._%+'-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
_DOMAIN = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
_ROLE = re.compile(r"((projects|organizations)/[a-z0-9-]+/)?roles/[A-Za-z0-9_.]+")
_PERMISSION = re.compile(r"run\.[a-zA-Z]+\.[a-zA-Z]+")


def is_service_account(email: str) -> bool:
    """Whether the address has the form of a service account's."""
    return bool(_EMAIL.fullmatch(email)) and email.lower().endswith(_ACCOUNT_DOMAIN)


def initial_policy() -> policy_pb2.Policy:
    """The policy of a service that was given none: nobody may call."""
    return policy_pb2.Policy(etag=_FIRST_ETAG)


def check_read(request: iam_policy_pb2.GetIamPolicyRequest) -> None:
    """Refuse to read a policy in a version that does not exist."""
    if request.options.requested_policy_version not in (0, 1, 3):
        raise invalid("options.requested_policy_version must be 0, 1 or 3")


def replace(
    request: iam_policy_pb2.SetIamPolicyRequest, current: policy_pb2.Policy
) -> policy_pb2.Policy:
    """The policy that follows `current`.

    Args:
        request: its policy's etag, when there is one, must be the current one.
        current: not changed.

    Raises:
        Refused: ABORTED for a stale etag; INVALID_ARGUMENT for what no policy of a
            service may hold.
    """
    sent = request.policy
    if sent.etag and sent.etag != current.etag:
        raise Refused(
            grpc.StatusCode.ABORTED,
            "There were concurrent policy changes. Please retry the whole read-modify-write with "
            "exponential backoff.",
        )
    for path in request.update_mask.paths:
        if path not in ("bindings", "etag"):
            raise invalid(f"update_mask: '{path}' can't be set; only bindings and etag can")
    if sent.version not in (0, 1, 3):
        raise invalid("policy.version must be 0, 1 or 3")
    if sent.audit_configs:
        raise invalid("policy.audit_configs: a service has none")
    new = policy_pb2.Policy(version=1)
    if request.update_mask.paths and "bindings" not in request.update_mask.paths:
        new.bindings.MergeFrom(current.bindings)
    else:
        for role, members in _merged(sent.bindings).items():
            new.bindings.add(role=role, members=members)
    new.etag = (int.from_bytes(current.etag, "big") + 1).to_bytes(8, "big")
    return new


def held(permissions: Iterable[str]) -> list[str]:
    """Those of `permissions` that the API's caller has: all, as the project's owner.

    Raises:
        Refused: INVALID_ARGUMENT for one that a service does not have.
    """
    wanted = list(permissions)
    for permission in wanted:
        if not _PERMISSION.fullmatch(permission):
            raise invalid(f"Permission {permission} is not valid for this resource.")
    return wanted


def is_public(policy: policy_pb2.Policy) -> bool:
    """Whether the policy lets in callers who don't say who they are."""
    return "allUsers" in _invokers(policy)


def may_invoke(policy: policy_pb2.Policy, identity: Identity) -> bool:
    """Whether the policy lets the caller in."""
    kind = "serviceAccount" if is_service_account(identity.email) else "user"
    invokers = _invokers(policy)
    return (
        "allUsers" in invokers
        or "allAuthenticatedUsers" in invokers
        or f"{kind}:{identity.email.lower()}" in invokers
    )


def _invokers(policy: policy_pb2.Policy) -> set[str]:
    return {
        member
        for binding in policy.bindings
        if binding.role == INVOKER
        for member in binding.members
    }


def _merged(bindings: Iterable[policy_pb2.Binding]) -> dict[str, list[str]]:
    merged: dict[str, list[str]] = {}
    for index, binding in enumerate(bindings):
        where = f"policy.bindings[{index}]"
        if not _ROLE.fullmatch(binding.role):
            raise invalid(f"{where}.role: Role '{binding.role}' is not a role")
        if binding.HasField("condition"):
            raise invalid(f"{where}.condition: the stand-in evaluates no conditions")
        members = merged.setdefault(binding.role, [])
        for member in binding.members:
            normal = _normal_member(member, f"{where}.members")
            if normal not in members:
                members.append(normal)
    # IAM keeps no role without members.
    return {role: members for role, members in merged.items() if members}


def _normal_member(member: str, where: str) -> str:
    if member in ("allUsers", "allAuthenticatedUsers"):
        return member
    kind, separator, value = member.partition(":")
    if not separator or kind not in ("serviceAccount", "user", "group", "domain"):
        raise invalid(
            f"{where}: '{member}' must be allUsers, allAuthenticatedUsers, or begin with "
            "serviceAccount:, user:, group: or domain:"
        )
    form = _DOMAIN if kind == "domain" else _EMAIL
    if not form.fullmatch(value):
        raise invalid(f"{where}: '{member}' does not name a {kind}")
    if is_service_account(value) != (kind == "serviceAccount"):
        raise invalid(f"{where}: Principal {value} is not of type '{kind}'")
    return f"{kind}:{value.lower()}"
