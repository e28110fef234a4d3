"""One tick: read the world, compute the plan, do it."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from google.cloud import run_v2

from functions.promote.answers import Answers
from functions.promote.bundles import BundleError, Bundles
from functions.promote.cloud_run import CloudRun, Conflict
from functions.promote.deadline import Deadline, OutOfTime
from functions.promote.feedback import Feedback, FeedbackUnavailable
from functions.promote.gates import CandidateSilent, Gates
from functions.promote.ledger import Ledger, LedgerUnavailable
from functions.promote.outcomes import Outcomes
from functions.promote.plan import (
    CANDIDATE_TAG,
    Action,
    AnswersOfBoth,
    Candidate,
    Counted,
    Desired,
    Entry,
    GateResult,
    Kind,
    Model,
    Observed,
    OutcomesOfBoth,
    advance_candidate,
    base_revision,
    block_candidate,
    is_last_good,
    plan,
    protect,
    served_revision,
    served_version,
)
from functions.promote.policy import Policy
from functions.promote.quality import judge
from functions.promote.registry import Choice, Registry, RegistryUnavailable
from functions.promote.signals import Monitoring

# Less than Cloud Scheduler's deadline of a minute, for the last write to end in time.
TICK_SECONDS = 45.0

_WRITES = frozenset(Kind) - {Kind.WAIT, Kind.IDLE, Kind.CHECK, Kind.RECHECK}


class Reconciler:
    """Makes the service serve what the registry says, one step a tick.

    Args:
        registry: what is desired.
        bundles: where bundles are, and are copied to.
        cloud_run: the service.
        gates: what a candidate must pass.
        ledger: where it is written down.
        monitoring: what requests show.
        feedback: what the proxy counts, users' answers too; None: it has no say.
        policy: what decides.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        bundles: Bundles,
        cloud_run: CloudRun,
        gates: Gates,
        ledger: Ledger,
        monitoring: Monitoring,
        feedback: Feedback | None,
        policy: Policy,
    ) -> None:
        self._registry = registry
        self._bundles = bundles
        self._cloud_run = cloud_run
        self._gates = gates
        self._ledger = ledger
        self._monitoring = monitoring
        self._feedback = feedback
        self._policy = policy

    def tick(self, *, act: bool = True) -> dict[str, object]:
        """Reconcile once, within a minute.

        Args:
            act: False: only say what would be done.

        Returns:
            What was desired, what is served, what was done, as plain JSON data.

        Raises:
            functions.promote.registry.RegistryUnavailable: the registry can't be
                asked; nothing was changed.
            functions.promote.cloud_run.ServiceUnavailable: Cloud Run can't be asked.
            functions.promote.bundles.StorageUnavailable: Cloud Storage can't be asked.
            functions.promote.deadline.OutOfTime: what was asked was too slow.
        """
        now = datetime.now(UTC)
        try:
            status = self._reconcile(now, Deadline(TICK_SECONDS), act=act)
        except Exception as error:
            if act:
                self._publish({"at": now.isoformat(), "error": str(error)}, merge=True)
            raise
        if act:
            self._publish(status)
        return status

    def _reconcile(self, now: datetime, deadline: Deadline, *, act: bool) -> dict[str, object]:
        service, observed = self._cloud_run.read()
        observed = self._measure(observed, now, deadline)
        # The pin does not depend on the registry, and protects the service meanwhile.
        action = plan(None, observed, now, self._policy)
        choice = None
        if action.kind not in (Kind.WAIT, Kind.PIN):
            try:
                choice = self._registry.choose(deadline)
            except RegistryUnavailable:
                # A candidate that fails in traffic does not wait for the registry.
                way_back = protect(observed, now, self._policy)
                if way_back is None:
                    raise
                action = way_back
            else:
                action = self._plan(choice, observed, now, deadline)
        if act:
            action = self._act(service, observed, action, choice, now, deadline)
        return _status(observed, choice, action, now, acted=act)

    def _measure(self, observed: Observed, now: datetime, deadline: Deadline) -> Observed:
        """Add what monitoring shows of the step, while there is one."""
        candidate = observed.memory.candidate
        base = base_revision(observed)
        if not observed.settled or candidate is None or candidate.step is None or not base:
            return observed
        step = candidate.step
        signals = self._monitoring.read(
            step.revision, base, since=step.since, now=now, deadline=deadline
        )
        before = step.before
        if before.answers is not None or before.outcomes is not None:
            today = self._counted(observed, candidate, step.revision, deadline)
            if today.answers is not None and before.answers is not None:
                signals = replace(signals, answers=today.answers.since(before.answers))
            if today.outcomes is not None and before.outcomes is not None:
                signals = replace(signals, outcomes=today.outcomes.since(before.outcomes))
        return replace(observed, signals=signals)

    def _counted(
        self, observed: Observed, candidate: Candidate, revision: str, deadline: Deadline
    ) -> Counted:
        """Return what the proxy has counted of the candidate and of what is served.

        Users' answers can't be told apart where only the code is new; and nobody needs
        any of it where there is no step at which both have traffic.
        """
        base = base_revision(observed)
        served = served_version(observed, base)
        if self._feedback is None or self._policy.rollout_steps[0] == 100 or served is None:
            return Counted()
        try:
            # From the same day at each step: two readings differ by what came between them.
            counts = self._feedback.read(candidate.since.astimezone(UTC).date(), deadline)
        except FeedbackUnavailable as error:
            logging.warning("what the proxy counts is not looked at: %s", error)
            return Counted()
        answers = outcomes = None
        version = candidate.model.version
        if self._policy.answers_error_rate and served != version:
            given = counts.answers
            answers = AnswersOfBoth(
                candidate=given.get(version, Answers(0, 0)), served=given.get(served, Answers(0, 0))
            )
        if (seen := counts.outcomes) is not None:
            outcomes = OutcomesOfBoth(
                candidate=seen.get(revision, Outcomes(0, 0)), served=seen.get(base, Outcomes(0, 0))
            )
        return Counted(answers=answers, outcomes=outcomes)

    def _plan(
        self, choice: Choice | None, observed: Observed, now: datetime, deadline: Deadline
    ) -> Action:
        if choice is None:
            return plan(None, observed, now, self._policy)
        try:
            desired = self._desired(choice, observed, deadline)
        except BundleError as error:
            return self._refuse(choice, str(error), observed, now)
        return plan(desired, observed, now, self._policy)

    def _desired(self, choice: Choice, observed: Observed, deadline: Deadline) -> Desired:
        """Return the choice with its bundle; one that is known is not looked for again.

        What is served stays served, even when its artifacts are gone.
        """
        memory = observed.memory
        known = [item.model for item in (memory.last_good, memory.candidate) if item is not None]
        for model in known:
            if model.version == choice.version and model.run_id == choice.run_id:
                return Desired(model, choice.because, choice.fingerprint, choice.validation)
        uri = self._bundles.locate(choice.artifacts_uri, deadline)
        model = Model(version=choice.version, run_id=choice.run_id, bundle_uri=uri)
        return Desired(model, choice.because, choice.fingerprint, choice.validation)

    def _refuse(self, choice: Choice, reason: str, observed: Observed, now: datetime) -> Action:
        """Block a version that has no bundle to be located, once."""
        unlocated = Model(version=choice.version, run_id=choice.run_id, bundle_uri="gs://none/")
        desired = Desired(unlocated, choice.because, choice.fingerprint, choice.validation)
        action = plan(desired, observed, now, self._policy)
        if action.kind is not Kind.CREATE or action.model != unlocated:
            return action
        current = replace(observed, memory=action.memory or observed.memory)
        return block_candidate(current, "bundle", reason, now, self._policy)

    def _act(
        self,
        service: run_v2.Service,
        observed: Observed,
        action: Action,
        choice: Choice | None,
        now: datetime,
        deadline: Deadline,
    ) -> Action:
        current = replace(observed, memory=action.memory or observed.memory)
        if action.kind is Kind.CREATE and action.model is not None:
            action = self._stage(action, action.model, current, choice, now, deadline)
        elif action.kind in (Kind.CHECK, Kind.RECHECK):
            action = self._check(service, action, current, choice, now, deadline)
        if action.kind is Kind.RECORD and not self._deliver(observed.memory.pending, deadline):
            return Action(Kind.WAIT, "the ledger can't be written; it is tried again")
        if action.kind in _WRITES:
            try:
                if action.kind is Kind.PRUNE:
                    self._cloud_run.delete(action.revision)
                else:
                    self._cloud_run.write(service, action)
            except Conflict as error:
                return Action(Kind.WAIT, f"somebody else changed the service: {error}")
            logging.info("%s: %s", action.kind.value, action.detail)
            if action.memory is not None:
                # Now, for readers; what fails stays in the memory and is delivered later.
                self._deliver(action.memory.pending, deadline)
        return action

    def _stage(
        self,
        action: Action,
        model: Model,
        current: Observed,
        choice: Choice | None,
        now: datetime,
        deadline: Deadline,
    ) -> Action:
        if choice is None or choice.version != model.version:
            return action  # the last good model: its bundle was staged when it was a candidate
        try:
            self._bundles.stage(choice.artifacts_uri, model.bundle_uri, deadline)
        except BundleError as error:
            return block_candidate(current, "bundle", str(error), now, self._policy)
        return action

    def _check(
        self,
        service: run_v2.Service,
        action: Action,
        current: Observed,
        choice: Choice | None,
        now: datetime,
        deadline: Deadline,
    ) -> Action:
        candidate = current.memory.candidate
        assert candidate is not None  # noqa: S101  # plan says CHECK only with one
        checks = [self._check_quality, self._check_answers]
        if action.kind is Kind.RECHECK:
            checks.remove(self._check_quality)
        results: list[GateResult] = []
        try:
            for check in checks:
                results += check(service, candidate.model, action.revision, current, deadline)
                if results and results[-1].outcome == "failed":
                    failed = results[-1]
                    return block_candidate(current, failed.gate, failed.reason, now, self._policy)
        except BundleError as error:
            return block_candidate(current, "bundle", str(error), now, self._policy)
        except CandidateSilent as error:
            if now < self._patience_ends(candidate):
                return Action(Kind.WAIT, f"the candidate does not answer yet: {error}")
            return block_candidate(current, "answer", str(error), now, self._policy)
        if action.kind is Kind.RECHECK:
            answers = "; ".join(f"{item.gate} {item.outcome}: {item.reason}" for item in results)
            evidence = f"{action.detail}; asked at its tag instead: {answers}"
        else:
            evidence = ""
            if choice is not None and choice.version == candidate.model.version:
                results.insert(0, self._heeded(choice.validation))
        # The step begins now: the requests just sent are not of it.
        return advance_candidate(
            current,
            action.revision,
            datetime.now(UTC),
            self._policy,
            gates=results,
            evidence=evidence,
            before=self._counted(current, candidate, action.revision, deadline)
            if candidate.step is None
            else candidate.step.before,
        )

    def _patience_ends(self, candidate: Candidate) -> datetime:
        """Return until when the candidate may fail to answer at its tag."""
        begun, seconds = candidate.since, self._policy.gate_timeout_seconds
        if candidate.step is not None:
            begun = candidate.step.since
            seconds += self._policy.max_bake_seconds
        return begun + timedelta(seconds=seconds)

    def _heeded(self, validation: GateResult) -> GateResult:
        if validation.outcome == "passed" or self._policy.heed_validation:
            return validation
        reason = f"the policy looks past it: {validation.reason}"
        return validation.model_copy(update={"outcome": "skipped", "reason": reason})

    def _check_quality(
        self,
        _service: run_v2.Service,
        model: Model,
        _revision: str,
        current: Observed,
        deadline: Deadline,
    ) -> list[GateResult]:
        """Judge the figures of training, up to the first gate that fails."""
        last_good = current.memory.last_good
        if is_last_good(current.memory, model):
            # Only the code is new: it must not be blamed for the model's figures.
            reason = "the served model itself, with new code"
            return [
                GateResult(gate=gate, outcome="skipped", reason=reason)
                for gate in ("metrics", "comparison", "behaviour")
            ]
        served = None
        if last_good is not None:
            try:
                served = self._bundles.metrics(last_good.model.bundle_uri, deadline)
            except BundleError as error:
                logging.warning("the served bundle can't be read: %s", error)
                served = {}
        metrics = self._bundles.metrics(model.bundle_uri, deadline)
        results = judge(metrics, served, self._policy)
        failed = next((n for n, item in enumerate(results) if item.outcome == "failed"), None)
        return results if failed is None else results[: failed + 1]

    def _check_answers(
        self,
        service: run_v2.Service,
        model: Model,
        revision: str,
        current: Observed,
        deadline: Deadline,
    ) -> list[GateResult]:
        """Ask the candidate at its tag."""
        return self._gates.check(
            next(item.uri for item in current.statuses if item.tag == CANDIDATE_TAG),
            service.uri,
            model,
            revision,
            self._bundles.golden_texts(model.bundle_uri, deadline),
            deadline,
            beside_served=current.memory.last_good is not None,
        )

    def _deliver(self, entries: tuple[Entry, ...], deadline: Deadline) -> bool:
        """Write entries to the ledger and to MLflow, in order; return whether all are there."""
        try:
            for entry in entries:
                deadline.within(1)
                self._ledger.append(entry)
                for version, tags in _tags(entry):
                    self._registry.note(version, tags)
        except (LedgerUnavailable, RegistryUnavailable, OutOfTime) as error:
            logging.warning("the ledger is behind: %s", error)
            return False
        return True

    def _publish(self, status: dict[str, object], *, merge: bool = False) -> None:
        try:
            self._ledger.publish(status, merge=merge)
        except LedgerUnavailable as error:
            logging.warning("the status is not published: %s", error)


def _tags(entry: Entry) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield what an entry changes in MLflow, version by version."""
    if entry.event == "blocked":
        yield entry.version, {"rollout_blocked": f"{entry.gate}: {entry.reason}"}
        return
    if entry.event != "promoted":
        return
    if entry.from_version is not None and entry.from_version != entry.version:
        yield entry.from_version, {"serving_revision": None, "serving_since": None}
    yield (
        entry.version,
        {
            "serving_revision": entry.revision,
            "serving_since": entry.at.isoformat(),
            "rollout_blocked": None,
        },
    )


def _status(
    observed: Observed, choice: Choice | None, action: Action, now: datetime, *, acted: bool
) -> dict[str, object]:
    written = acted and action.kind in _WRITES
    if written:
        # As the write leaves it; Cloud Run is still on its way there.
        observed = replace(
            observed,
            memory=action.memory or observed.memory,
            statuses=action.traffic or observed.statuses,
        )
    memory = observed.memory
    revision = served_revision(observed)
    last_good = memory.last_good
    version = None
    if last_good is not None and last_good.revision == revision:
        version = last_good.model.version
    candidate = memory.candidate
    step = candidate.step if candidate is not None else None
    return {
        "at": now.isoformat(),
        "error": None,
        "desired": choice
        and {
            "version": choice.version,
            "run_id": choice.run_id,
            "because": choice.because,
            "validation": choice.validation.model_dump(),
        },
        "served": {"revision": revision or None, "version": version},
        "traffic": [
            {"revision": target.revision, "percent": target.percent}
            for target in observed.statuses
            if target.percent > 0
        ],
        "candidate": candidate
        and {
            "version": candidate.model.version,
            "since": candidate.since.isoformat(),
            "step": step and step.model_dump(mode="json"),
        },
        "blocked": [item.model_dump(mode="json") for item in memory.blocked],
        "action": {"kind": action.kind.value, "detail": action.detail},
    }
