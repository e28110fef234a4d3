"""The plan: what to do next, as a pure function of what is wanted and what is.

Level-triggered, as a Kubernetes controller is. Every call of `plan` starts from
the whole state; it remembers nothing between two calls but `Memory`, which is
stored in an annotation of the service, in the same write as the change that it
describes. It is right to stop after any action and to run again, at any time.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from functions.promote import bake
from functions.promote.answers import Answers
from functions.promote.outcomes import Outcomes
from functions.promote.policy import Policy

CANDIDATE_TAG = "candidate"
PREVIOUS_TAG = "previous"

START_GATE = "start"
VALIDATION_GATE = "validation"

MAX_ACCEPTED = 20
MAX_BLOCKED = 20
MAX_PENDING = 50
# The annotation holds 256 KiB at most, and a reason may quote what a candidate answered.
MAX_REASON = 500


def _cut(reason: str) -> str:
    return reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON - 3]}..."


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Model(_Record):
    """One version of the model, and where its serving bundle lies."""

    version: str
    run_id: str
    bundle_uri: str
    """``gs://SERVING/MODEL/SHA256/``: addressed by content."""


class Served(_Record):
    """A model and the revision that serves it."""

    model: Model
    revision: str
    spec: str
    """Hash of the revision's whole specification."""


class GateResult(_Record):
    """What became of one gate, in words."""

    gate: str
    outcome: Literal["passed", "failed", "skipped"]
    reason: Annotated[str, AfterValidator(_cut)]


NOT_VALIDATED = GateResult(
    gate=VALIDATION_GATE, outcome="skipped", reason="the version has no such tag"
)


class AnswersOfBoth(_Record):
    """Users' answers to the two versions that share the traffic."""

    candidate: Answers
    served: Answers

    def since(self, earlier: "AnswersOfBoth") -> tuple[Answers, Answers]:
        """Return those after `earlier`: of the candidate, of what is served."""
        return self.candidate.since(earlier.candidate), self.served.since(earlier.served)


class OutcomesOfBoth(_Record):
    """The proxy's requests to the two revisions that share the traffic."""

    candidate: Outcomes
    served: Outcomes

    def since(self, earlier: "OutcomesOfBoth") -> tuple[Outcomes, Outcomes]:
        """Return those after `earlier`: of the candidate, of what is served."""
        return self.candidate.since(earlier.candidate), self.served.since(earlier.served)


class Counted(_Record):
    """What the proxy has counted; None: not known or not to be told apart, so it has no say."""

    answers: AnswersOfBoth | None = None
    outcomes: OutcomesOfBoth | None = None


class Step(_Record):
    """Where a candidate that passed the gates has got to."""

    revision: str
    percent: int
    """Its share of the traffic."""
    since: datetime
    """When it was given this share: what monitoring saw before is not of this step."""
    gates: tuple[GateResult, ...] = ()
    """What it passed before it got any traffic."""
    before: Counted = Counted()  # frozen
    """What the proxy had counted before it got any."""


class Candidate(_Record):
    """What is on its way."""

    model: Model
    spec: str
    since: datetime
    because: str
    fingerprint: str
    """Of the version's tags when it was chosen; see `Desired.fingerprint`."""
    step: Step | None = None
    """None: it has no traffic yet."""


class Scope(StrEnum):
    """What a failure is blamed on."""

    MODEL = "model"
    """The model, with any code: other models passed with this code, or may yet."""
    CODE = "code"
    """The code, with any model: the model that is served failed with it."""
    PAIR = "pair"
    """Both together: nothing tells which. New code tries the model again."""


class Blocked(_Record):
    """What failed, and is not tried again as it is."""

    scope: Scope
    version: str
    run_id: str
    spec: str
    code: str
    """Fingerprint of the template that it failed with."""
    gate: str
    reason: str
    at: datetime
    policy: str
    """Digest of the policy that it failed under."""
    fingerprint: str
    """Of the version's tags; see `Desired.fingerprint`."""


class Entry(_Record):
    """One line of the ledger."""

    at: datetime
    event: Literal["promoted", "stepped", "blocked", "withdrawn"]
    version: str
    run_id: str
    revision: str | None
    from_version: str | None
    from_revision: str | None
    because: str
    """What asked for it: ``alias:production``, ``stage:Production``."""
    gate: str | None = None
    reason: str | None = None
    gates: tuple[GateResult, ...] = ()
    """All gates of a promoted version; empty after a way back, which needs none."""
    percent: int | None = None
    """Share of the traffic that the version has now."""
    since: datetime | None = None
    """When the version was chosen: what the rollout took until this entry."""

    @property
    def id(self) -> str:
        """Return the entry's name, the same however often it is delivered."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()
        return f"{self.at:%Y%m%dT%H%M%S}-{digest[:16]}"


class Memory(_Record):
    """What is remembered between two ticks: the annotation ``greenroom.dev/rollout``."""

    schema_version: Literal[1] = 1
    last_good: Served | None = None
    """What was last fully served."""
    candidate: Candidate | None = None
    accepted: tuple[str, ...] = ()
    """Revisions that passed all gates, the newest last.

    A way back to one of them needs no new check, also when the policy has changed since.
    """
    blocked: tuple[Blocked, ...] = ()
    pending: tuple[Entry, ...] = ()
    """Ledger entries that may not have been written yet."""


@dataclass(frozen=True)
class Desired:
    """What the registry asks for."""

    model: Model
    because: str
    fingerprint: str
    """Digest of the version's tags, those apart that promote writes itself."""
    validation: GateResult = NOT_VALIDATED
    """What training found, as its tags say."""


@dataclass(frozen=True)
class Template:
    """The service's revision template, reduced to what decisions need."""

    args: tuple[str, ...]
    fingerprint: str
    """Digest of everything but arguments, labels and annotations."""
    core: str
    """Digest of the fields that a revision shows as well; see `Revision.core`."""


@dataclass(frozen=True)
class Revision:
    """A revision of the service."""

    name: str
    """Short name."""
    ready: bool | None
    """None: not known yet."""
    message: str
    """Why it is not ready."""
    args: tuple[str, ...]
    spec: str
    """The label with the hash of the specification; a template written by others may copy it."""
    core: str
    """Digest of image, command, environment, resources and account: what it really is."""
    created: datetime | None = None
    """None: not known, which counts as the oldest."""


@dataclass(frozen=True)
class Target:
    """One entry of the service's traffic."""

    revision: str
    """Short name; empty: whatever is latest."""
    percent: int
    tag: str = ""
    uri: str = ""
    """Address of the tag; known of statuses only."""


@dataclass(frozen=True)
class Observed:
    """The service as it is."""

    settled: bool
    template: Template
    traffic: tuple[Target, ...]
    """As it is written in the service."""
    statuses: tuple[Target, ...]
    """As it really flows."""
    revisions: tuple[Revision, ...]
    latest_created: str
    memory: Memory
    signals: bake.Signals | None = None
    """Of the step that `memory` tells of; None: not asked for."""


class Kind(StrEnum):
    """What an action does."""

    WAIT = "wait"
    """Something is under way, or nothing can be done: look again at the next tick."""
    IDLE = "idle"
    """Nothing to do."""
    PIN = "pin"
    """Write today's traffic by revision name, so that a new revision gets none."""
    CREATE = "create"
    """Write the template with the wanted model."""
    TAG = "tag"
    """Give the candidate an address of its own."""
    CHECK = "check"
    """Run the gates; then `advance_candidate` or `block_candidate`."""
    STEP = "step"
    """A share of the traffic to the candidate."""
    RECHECK = "recheck"
    """Ask the candidate once more at its tag; then as after CHECK."""
    PROMOTE = "promote"
    """All traffic to the candidate."""
    BLOCK = "block"
    """Give the candidate up."""
    BACK = "back"
    """All traffic to what was last good: the candidate is no longer wanted."""
    RECORD = "record"
    """Write the memory alone."""
    PRUNE = "prune"
    """Delete a revision that is no longer kept."""


@dataclass(frozen=True)
class Action:
    """The next step, with the whole of what is to be written."""

    kind: Kind
    detail: str
    """In words, for status."""
    model: Model | None = None
    """For CREATE: the model to write into the template."""
    spec: str = ""
    """For CREATE: hash of the specification, to be written as a label."""
    traffic: tuple[Target, ...] | None = None
    """For PIN, TAG, STEP, PROMOTE, BLOCK and BACK: the whole list."""
    memory: Memory | None = None
    """To be written in the same update; None: as it is."""
    revision: str = ""
    """For CHECK and RECHECK: the candidate; for PRUNE: what to delete."""


def arguments(model: Model) -> tuple[str, ...]:
    """Return the container's arguments that serve `model`."""
    return ("--model-uri", model.bundle_uri, "--model-version", model.version)


def spec_hash(template: Template, model: Model) -> str:
    """Return the hash, 32 hex digits, of today's template with `model`."""
    content = "\0".join([template.fingerprint, *arguments(model)])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def plan(desired: Desired | None, observed: Observed, now: datetime, policy: Policy) -> Action:
    """Return what to do next.

    Args:
        desired: what the registry asks for; None: nothing, and so nothing changes.
        observed: the service, just read.
        now: time of the read, with a zone.
        policy: what a candidate must pass.
    """
    memory = observed.memory
    if not observed.settled:
        return Action(Kind.WAIT, "Cloud Run is still working on the last change")
    if not observed.traffic or any(not target.revision for target in observed.traffic):
        return _pin(observed)
    if desired is None:
        detail = "the registry names no version: what is served stays served"
        return _restore(observed, detail, now) or _rest(observed, detail)
    effective, because = desired.model, desired.because
    fingerprint = desired.fingerprint
    note = ""
    if block := _block_of_model(desired, observed, policy):
        note = f"version {block.version} is blocked by {block.gate}: {block.reason}"
        if memory.last_good is None:
            return _restore(observed, note, now) or _rest(observed, note)
        effective, because = memory.last_good.model, f"last good: {note}"
        fingerprint = ""
    wanted = spec_hash(observed.template, effective)
    candidate = memory.candidate
    if candidate is not None and (candidate.spec != wanted or candidate.model != effective):
        if candidate.step is not None:
            detail = f"version {effective.version} is wanted instead, or with other code"
            if withdrawal := _restore(observed, detail, now):
                return withdrawal
        candidate = None
    match = _find(observed, wanted, effective)
    step = candidate.step if candidate is not None else None
    if step is not None and (
        match is None or match.name != step.revision or not base_revision(observed)
    ):
        step = None
    if step is None and match is not None and match.ready and _serves_all(observed, match.name):
        return _settle(observed, effective, wanted, match, note, policy)
    accepted = match is not None and _is_accepted(memory, match.name)
    if not accepted:
        block = _block_of_code(observed, policy)
        if block is not None:
            note = f"this code is blocked by {block.gate}: {block.reason}"
            return (
                _back(observed, note, now) or _restore(observed, note, now) or _rest(observed, note)
            )
    if candidate is None:
        candidate = Candidate(
            model=effective, spec=wanted, since=now, because=because, fingerprint=fingerprint
        )
    candidate = candidate.model_copy(update={"step": step})
    current = replace(observed, memory=memory.model_copy(update={"candidate": candidate}))
    if not accepted and effective == desired.model and not is_last_good(memory, effective):
        # Before anything is started. The model that serves is not asked again: were its
        # tags changed, new code would be blamed for it.
        objection = desired.validation
        if policy.heed_validation and objection.outcome == "failed":
            return block_candidate(current, objection.gate, objection.reason, now, policy)
    if match is None:
        return Action(
            Kind.CREATE,
            f"a revision for version {effective.version}",
            model=effective,
            spec=wanted,
            memory=current.memory,
        )
    if match.ready is None:
        return Action(Kind.WAIT, f"revision {match.name} is starting")
    if match.ready is False:
        return block_candidate(current, START_GATE, match.message, now, policy)
    if accepted:
        return accept_candidate(current, match.name, now)
    if step is not None:
        return _bake(current, candidate, step, now, policy)
    if not any(
        target.tag == CANDIDATE_TAG and target.revision == match.name
        for target in observed.statuses
    ):
        return Action(
            Kind.TAG,
            f"revision {match.name} as candidate",
            traffic=(*_without_candidate(observed), Target(match.name, 0, CANDIDATE_TAG)),
            memory=current.memory,
        )
    return Action(
        Kind.CHECK,
        f"the gates of revision {match.name}",
        memory=current.memory,
        revision=match.name,
    )


_NOTHING = Counted()


def protect(observed: Observed, now: datetime, policy: Policy) -> Action | None:
    """Return the way back of a candidate that has spent a budget, else None.

    All that is done while the registry can't say what is wanted: nothing advances.
    """
    candidate = observed.memory.candidate
    step = candidate.step if candidate is not None else None
    if not observed.settled or step is None or not base_revision(observed):
        return None
    verdict = bake.judge((now - step.since).total_seconds(), observed.signals, policy)
    if verdict.next is not bake.Next.BACK:
        return None
    reason = f"at {step.percent} %: {verdict.reason}"
    return block_candidate(observed, verdict.gate, reason, now, policy)


def advance_candidate(
    observed: Observed,
    revision: str,
    now: datetime,
    policy: Policy,
    *,
    gates: Sequence[GateResult] = (),
    evidence: str = "",
    before: Counted = _NOTHING,
) -> Action:
    """Return the action that gives the candidate in `observed.memory` its next share.

    Args:
        observed: the service, with the candidate in its memory.
        revision: the candidate's.
        now: time of the read.
        policy: with the steps.
        gates: what it passed, if it has no traffic yet.
        evidence: what the step before showed, in words.
        before: what the proxy has counted until now, if it has no traffic yet.
    """
    candidate = observed.memory.candidate
    assert candidate is not None  # noqa: S101  # set by plan
    base = base_revision(observed)
    if candidate.step is not None:
        gates, before = candidate.step.gates, candidate.step.before
    share = sum(t.percent for t in observed.statuses if t.revision == revision)
    percent = next((item for item in policy.rollout_steps if item > share), 100)
    if percent >= 100 or served_version(observed, base) is None:
        return accept_candidate(observed, revision, now, gates, evidence)
    step = Step(
        revision=revision,
        percent=percent,
        since=now,
        gates=tuple(gates),
        before=before,
    )
    entry = Entry(
        at=now,
        event="stepped",
        version=candidate.model.version,
        run_id=candidate.model.run_id,
        revision=revision,
        from_version=served_version(observed, base),
        from_revision=base,
        because=candidate.because,
        reason=evidence or None,
        gates=tuple(gates),
        percent=percent,
        since=candidate.since,
    )
    memory = observed.memory.model_copy(
        update={"pending": (*observed.memory.pending, entry)[-MAX_PENDING:]}
    )
    return _give(observed, memory, candidate, step, base)


def is_last_good(memory: Memory, model: Model) -> bool:
    """Return whether `model` is what was last fully served, so that only code can be new."""
    return memory.last_good is not None and memory.last_good.model == model


def accept_candidate(
    observed: Observed,
    revision: str,
    now: datetime,
    gates: Sequence[GateResult] = (),
    evidence: str = "",
) -> Action:
    """Return the action that gives all traffic to the candidate in `observed.memory`.

    Args:
        observed: the service, with the candidate in its memory.
        revision: the candidate's.
        now: time of the read.
        gates: what it passed; none when it was accepted before.
        evidence: what the step before showed, in words.
    """
    memory = observed.memory
    candidate = memory.candidate
    assert candidate is not None  # noqa: S101  # set by plan
    old = base_revision(observed) or served_revision(observed)
    known = {item.name for item in observed.revisions}
    traffic = [Target(revision, 100)]
    if old and old != revision:
        traffic.append(Target(old, 0, PREVIOUS_TAG))
    traffic.extend(_other_tags(observed, PREVIOUS_TAG))
    entry = Entry(
        at=now,
        event="promoted",
        version=candidate.model.version,
        run_id=candidate.model.run_id,
        revision=revision,
        from_version=served_version(observed, old),
        from_revision=old or None,
        because=candidate.because,
        reason=evidence or None,
        gates=tuple(gates),
        percent=100,
        since=candidate.since,
    )
    accepted = [name for name in memory.accepted if name != revision and name in known]
    return Action(
        Kind.PROMOTE,
        f"version {candidate.model.version} on revision {revision}",
        traffic=tuple(traffic),
        memory=memory.model_copy(
            update={
                "last_good": Served(model=candidate.model, revision=revision, spec=candidate.spec),
                "candidate": None,
                "accepted": (*accepted, revision)[-MAX_ACCEPTED:],
                # What it just disproved.
                "blocked": tuple(
                    item
                    for item in memory.blocked
                    if item.spec != candidate.spec
                    and not (item.scope is Scope.MODEL and _is_of(item, candidate.model))
                    and not (item.scope is Scope.CODE and item.code == _code(observed, revision))
                ),
                "pending": (*memory.pending, entry)[-MAX_PENDING:],
            }
        ),
    )


def block_candidate(
    observed: Observed, gate: str, reason: str, now: datetime, policy: Policy
) -> Action:
    """Return the action that gives the candidate in `observed.memory` up; see `Scope`."""
    memory = observed.memory
    candidate = memory.candidate
    assert candidate is not None  # noqa: S101  # set by plan
    last_good = memory.last_good
    match = _find(observed, candidate.spec, candidate.model)
    reason = _cut(reason)
    if is_last_good(memory, candidate.model):
        scope = Scope.CODE
    elif last_good is None or gate == START_GATE:
        scope = Scope.PAIR
    else:
        scope = Scope.MODEL
    code = observed.template.fingerprint
    blocked = Blocked(
        scope=scope,
        version=candidate.model.version,
        run_id=candidate.model.run_id,
        spec=candidate.spec,
        code=code,
        gate=gate,
        reason=reason,
        at=now,
        policy=policy.digest,
        fingerprint=candidate.fingerprint,
    )
    others = [
        item
        for item in memory.blocked
        # Code that fails with the served model too explains what other models did with it.
        if item.spec != candidate.spec and not (scope is Scope.CODE and item.code == code)
    ]
    old = base_revision(observed) or served_revision(observed)
    traffic = _without_candidate(observed)
    if match is not None and any(t.percent for t in observed.statuses if t.revision == match.name):
        traffic = _all_to_base(observed) or traffic
    entry = Entry(
        at=now,
        event="blocked",
        version=candidate.model.version,
        run_id=candidate.model.run_id,
        revision=match.name if match else None,
        from_version=served_version(observed, old),
        from_revision=old or None,
        because=candidate.because,
        gate=gate,
        reason=reason,
        percent=0,
        since=candidate.since,
    )
    return Action(
        Kind.BLOCK,
        f"version {candidate.model.version} by {gate}: {reason}",
        traffic=traffic,
        memory=memory.model_copy(
            update={
                "candidate": None,
                "blocked": (*others, blocked)[-MAX_BLOCKED:],
                "pending": (*memory.pending, entry)[-MAX_PENDING:],
            }
        ),
    )


def served_revision(observed: Observed) -> str:
    """Return the revision with most of the traffic, or "" when none has any."""
    shares = [target for target in observed.statuses if target.percent > 0]
    return max(shares, key=lambda target: target.percent).revision if shares else ""


def base_revision(observed: Observed) -> str:
    """Return the revision that has what the candidate has not, or "" when there is none.

    What was last good, if it is there; else what has most of the traffic.
    """
    candidate = observed.memory.candidate
    mine = set()
    if candidate is not None:
        if match := _find(observed, candidate.spec, candidate.model):
            mine.add(match.name)
        if candidate.step is not None:  # of other code perhaps, when that was replaced meanwhile
            mine.add(candidate.step.revision)
    others = {item.name for item in observed.revisions if item.ready} - mine
    good = observed.memory.last_good
    if good is not None and good.revision in others:
        return good.revision
    shares = [t for t in observed.statuses if t.percent > 0 and t.revision in others]
    return max(shares, key=lambda target: target.percent).revision if shares else ""


def _bake(
    observed: Observed, candidate: Candidate, step: Step, now: datetime, policy: Policy
) -> Action:
    """Judge the candidate at its step; or give it that share again, if others took it."""
    base = base_revision(observed)
    shares: dict[str, int] = {}
    for target in observed.statuses:
        if target.percent:
            shares[target.revision] = shares.get(target.revision, 0) + target.percent
    tagged = any(t.tag == CANDIDATE_TAG and t.revision == step.revision for t in observed.statuses)
    if shares != {base: 100 - step.percent, step.revision: step.percent} or not tagged:
        # What was measured meanwhile was not this step.
        again = step.model_copy(update={"since": now})
        return _give(observed, observed.memory, candidate, again, base)
    verdict = bake.judge((now - step.since).total_seconds(), observed.signals, policy)
    if verdict.next is bake.Next.BACK:
        reason = f"at {step.percent} %: {verdict.reason}"
        return block_candidate(observed, verdict.gate, reason, now, policy)
    evidence = f"at {step.percent} %: {verdict.reason}"
    if verdict.next is bake.Next.ADVANCE:
        return advance_candidate(observed, step.revision, now, policy, evidence=evidence)
    if verdict.next is bake.Next.RECHECK:
        return Action(Kind.RECHECK, evidence, memory=observed.memory, revision=step.revision)
    return Action(Kind.WAIT, f"version {candidate.model.version} {evidence}")


def _give(
    observed: Observed, memory: Memory, candidate: Candidate, step: Step, base: str
) -> Action:
    """Return the action that gives the candidate its share, and the rest to `base`."""
    return Action(
        Kind.STEP,
        f"{step.percent} % to version {candidate.model.version} on revision {step.revision}",
        traffic=(
            Target(base, 100 - step.percent),
            Target(step.revision, step.percent),
            Target(step.revision, 0, CANDIDATE_TAG),
            *_other_tags(observed),
        ),
        memory=memory.model_copy(update={"candidate": candidate.model_copy(update={"step": step})}),
    )


def _all_to_base(observed: Observed) -> tuple[Target, ...]:
    base = base_revision(observed)
    return (Target(base, 100), *_other_tags(observed, PREVIOUS_TAG)) if base else ()


def _other_tags(observed: Observed, *without: str) -> tuple[Target, ...]:
    """Return the tags of others, which no rollout touches."""
    return tuple(
        Target(target.revision, 0, target.tag)
        for target in observed.traffic
        if target.tag not in ("", CANDIDATE_TAG, *without)
    )


def _restore(observed: Observed, detail: str, now: datetime) -> Action | None:
    """Return the way back from a rollout that is no longer wanted, or from a split left behind."""
    memory = observed.memory
    candidate = memory.candidate
    step = candidate.step if candidate is not None else None
    split = len({t.revision for t in observed.statuses if t.percent > 0}) > 1
    if step is None and not split:
        return None
    without = replace(observed, memory=memory.model_copy(update={"candidate": None}))
    source = observed if step is not None else without
    base = base_revision(source)
    if not base or (step is not None and _serves_all(observed, base)):
        return None
    pending = memory.pending
    if candidate is not None and step is not None:
        entry = Entry(
            at=now,
            event="withdrawn",
            version=candidate.model.version,
            run_id=candidate.model.run_id,
            revision=step.revision,
            from_version=served_version(observed, base),
            from_revision=base,
            because=candidate.because,
            reason=detail,
            percent=0,
            since=candidate.since,
        )
        pending = (*pending, entry)[-MAX_PENDING:]
    return Action(
        Kind.BACK,
        f"{detail}; all traffic to revision {base}",
        traffic=_all_to_base(source),
        memory=memory.model_copy(update={"candidate": None, "pending": pending}),
    )


def _is_accepted(memory: Memory, revision: str) -> bool:
    """Return whether `revision` needs no check: it passed, or was fully served before."""
    return revision in memory.accepted or (
        memory.last_good is not None and memory.last_good.revision == revision
    )


def _pin(observed: Observed) -> Action:
    traffic = tuple(
        Target(target.revision, target.percent, target.tag)
        for target in observed.statuses
        if target.revision and (target.percent > 0 or target.tag)
    )
    if sum(target.percent for target in traffic) != 100:
        return Action(Kind.WAIT, "no revision is ready yet, so there is nothing to pin")
    return Action(Kind.PIN, f"traffic to {served_revision(observed)}", traffic=traffic)


def _without_candidate(observed: Observed) -> tuple[Target, ...]:
    """Return the traffic as it is written, but for the candidate's tag."""
    return tuple(
        replace(target, tag="") if target.tag == CANDIDATE_TAG else target
        for target in observed.traffic
        if target.tag != CANDIDATE_TAG or target.percent > 0
    )


def _block_of_model(desired: Desired, observed: Observed, policy: Policy) -> Blocked | None:
    for item in observed.memory.blocked:
        if (
            item.scope is not Scope.CODE
            and _is_of(item, desired.model)
            and item.policy == policy.digest
            and item.fingerprint == desired.fingerprint
            and (item.scope is Scope.MODEL or item.code == observed.template.fingerprint)
        ):
            return item
    return None


def _block_of_code(observed: Observed, policy: Policy) -> Blocked | None:
    for item in observed.memory.blocked:
        if (
            item.scope is Scope.CODE
            and item.code == observed.template.fingerprint
            and item.policy == policy.digest
        ):
            return item
    return None


def _code(observed: Observed, revision: str) -> str:
    """Return the template's fingerprint if `revision` has today's code, else ""."""
    cores = {item.core for item in observed.revisions if item.name == revision}
    return observed.template.fingerprint if observed.template.core in cores else ""


def _is_of(blocked: Blocked, model: Model) -> bool:
    # By run as well: a registered model that is deleted and made again counts from 1.
    return (blocked.version, blocked.run_id) == (model.version, model.run_id)


def _back(observed: Observed, note: str, now: datetime) -> Action | None:
    """Give all traffic to the last good revision, if it is there and has not got it."""
    good = observed.memory.last_good
    if good is None:
        return None
    known = {revision.name for revision in observed.revisions if revision.ready}
    if good.revision not in known or _serves_all(observed, good.revision):
        return None
    candidate = Candidate(
        model=good.model, spec=good.spec, since=now, because=f"last good: {note}", fingerprint=""
    )
    memory = observed.memory.model_copy(update={"candidate": candidate})
    return accept_candidate(replace(observed, memory=memory), good.revision, now)


def _rest(observed: Observed, detail: str) -> Action:
    """Nothing is to be rolled out: clear up what a rollout may have left behind."""
    memory = observed.memory.model_copy(update={"candidate": None})
    if any(target.tag == CANDIDATE_TAG for target in observed.traffic):
        return Action(
            Kind.RECORD,
            f"{detail}; the candidate's tag is dropped",
            traffic=_without_candidate(observed),
            memory=memory,
        )
    if memory.pending or memory != observed.memory:
        delivered = memory.model_copy(update={"pending": ()})
        return Action(Kind.RECORD, f"{detail}; the ledger is complete", memory=delivered)
    return Action(Kind.IDLE, detail)


def _find(observed: Observed, wanted: str, model: Model) -> Revision | None:
    """Return the revision that is exactly today's template with `model`.

    The label alone would not do: a template that Terraform wrote from a stale read
    carries an old label beside a new image.
    """
    matches = [
        revision
        for revision in observed.revisions
        if revision.spec == wanted
        and revision.args == arguments(model)
        and revision.core == observed.template.core
    ]
    # Several when a template was written again: what serves first, then what was tested.
    matches.sort(
        key=lambda revision: (
            _serves_all(observed, revision.name),
            bool(revision.ready) and _is_accepted(observed.memory, revision.name),
            bool(revision.ready),
        ),
        reverse=True,
    )
    return matches[0] if matches else None


def _serves_all(observed: Observed, revision: str) -> bool:
    return sum(t.percent for t in observed.statuses if t.revision == revision) == 100


def served_version(observed: Observed, revision: str) -> str | None:
    """Return the version of the model that a revision serves; None: not known."""
    for item in observed.revisions:
        if item.name == revision and "--model-version" in item.args[:-1]:
            return item.args[item.args.index("--model-version") + 1]
    return None


def _settle(
    observed: Observed,
    effective: Model,
    wanted: str,
    match: Revision,
    note: str,
    policy: Policy,
) -> Action:
    """Everything wanted is served: note it, and clear up."""
    memory = observed.memory
    served = Served(model=effective, revision=match.name, spec=wanted)
    settled = memory.model_copy(update={"last_good": served, "candidate": None})
    latest = next((r for r in observed.revisions if r.name == observed.latest_created), None)
    if latest is not None and latest.ready is False and latest.spec != wanted:
        return Action(
            Kind.CREATE,
            f"the template with version {effective.version}: the latest revision has failed",
            model=effective,
            spec=wanted,
            memory=settled,
        )
    if memory.last_good != served:
        return Action(Kind.RECORD, "what is served is noted", memory=settled)
    detail = f"version {effective.version} is served by {match.name}"
    rest = _rest(observed, f"{detail}; {note}" if note else detail)
    if rest.kind is Kind.IDLE and (old := _superfluous(observed, policy)):
        detail = f"revision {old}: {policy.keep_revisions} newer ones are kept"
        return Action(Kind.PRUNE, detail, revision=old)
    return rest


def _superfluous(observed: Observed, policy: Policy) -> str:
    """Return the oldest revision, if there are too many and nothing needs it; else nothing."""
    if len(observed.revisions) <= policy.keep_revisions:
        return ""
    needed = {observed.latest_created}
    needed |= {target.revision for target in (*observed.traffic, *observed.statuses)}
    if observed.memory.last_good is not None:
        needed.add(observed.memory.last_good.revision)
    others = [item for item in observed.revisions if item.name not in needed]
    if not others:
        return ""
    never = datetime.min.replace(tzinfo=UTC)
    return min(others, key=lambda item: item.created or never).name
