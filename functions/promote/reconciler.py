"""One tick: read the world, compute the plan, do it."""

import logging
from dataclasses import replace
from datetime import UTC, datetime

from google.cloud import run_v2

from functions.promote.bundles import BundleError, Bundles
from functions.promote.cloud_run import CloudRun, Conflict
from functions.promote.gates import CandidateSilent, Gates
from functions.promote.ledger import Ledger, LedgerUnavailable
from functions.promote.plan import (
    CANDIDATE_TAG,
    Action,
    Desired,
    Entry,
    Kind,
    Model,
    Observed,
    Policy,
    accept_candidate,
    block_candidate,
    plan,
    served_revision,
)
from functions.promote.registry import Choice, Registry, RegistryUnavailable

_WRITES = frozenset({Kind.PIN, Kind.CREATE, Kind.TAG, Kind.PROMOTE, Kind.BLOCK, Kind.RECORD})


class Reconciler:
    """Makes the service serve what the registry says, one step a tick.

    Args:
        registry: what is desired.
        bundles: where bundles are, and are copied to.
        cloud_run: the service.
        gates: what a candidate must pass.
        ledger: where it is written down.
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
        policy: Policy,
    ) -> None:
        self._registry = registry
        self._bundles = bundles
        self._cloud_run = cloud_run
        self._gates = gates
        self._ledger = ledger
        self._policy = policy

    def tick(self, *, act: bool = True) -> dict[str, object]:
        """Reconcile once.

        Args:
            act: False: only say what would be done.

        Returns:
            What was desired, what is served, what was done, as plain JSON data.

        Raises:
            functions.promote.registry.RegistryUnavailable: the registry can't be
                asked; nothing was changed but a pin.
            functions.promote.cloud_run.ServiceUnavailable: Cloud Run can't be asked.
            functions.promote.bundles.StorageUnavailable: Cloud Storage can't be asked.
        """
        now = datetime.now(UTC)
        service, observed = self._cloud_run.read()
        # The pin does not depend on the registry, and protects the service meanwhile.
        action = plan(None, observed, now, self._policy)
        choice = desired = None
        broken = ""
        if action.kind is Kind.IDLE:
            choice = self._registry.choose()
            if choice is not None:
                try:
                    desired = self._desired(choice, observed)
                except BundleError as error:
                    broken = str(error)
            action = plan(desired, observed, now, self._policy)
            if broken and choice is not None:
                action = self._refuse(choice, broken, observed, now)
        if act:
            action = self._act(service, observed, action, choice, now)
        status = _status(observed, choice, action, now, acted=act)
        if act:
            self._publish(status)
        return status

    def _desired(self, choice: Choice, observed: Observed) -> Desired:
        """Return the choice with its bundle; one that is known is not looked for again.

        What is served stays served, even when its artifacts are gone.
        """
        memory = observed.memory
        known = [item.model for item in (memory.last_good, memory.candidate) if item is not None]
        for model in known:
            if model.version == choice.version and model.run_id == choice.run_id:
                return Desired(model, choice.because, choice.fingerprint)
        uri = self._bundles.locate(choice.artifacts_uri)
        model = Model(version=choice.version, run_id=choice.run_id, bundle_uri=uri)
        return Desired(model, choice.because, choice.fingerprint)

    def _refuse(self, choice: Choice, reason: str, observed: Observed, now: datetime) -> Action:
        """Block a version that has no bundle to be located, once."""
        unlocated = Model(version=choice.version, run_id=choice.run_id, bundle_uri="gs://none/")
        desired = Desired(unlocated, choice.because, choice.fingerprint)
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
    ) -> Action:
        current = replace(observed, memory=action.memory or observed.memory)
        if action.kind is Kind.CREATE and action.model is not None:
            action = self._stage(action, action.model, current, choice, now)
        elif action.kind is Kind.CHECK:
            action = self._check(action, current, now)
        if action.kind is Kind.RECORD and not self._deliver(observed.memory.pending):
            return Action(Kind.WAIT, "the ledger can't be written; it is tried again")
        if action.kind in _WRITES:
            try:
                self._cloud_run.write(service, action)
            except Conflict as error:
                return Action(Kind.WAIT, f"somebody else changed the service: {error}")
            logging.info("%s: %s", action.kind.value, action.detail)
            if action.memory is not None:
                # Now, for readers; what fails stays in the memory and is delivered later.
                self._deliver(action.memory.pending)
        return action

    def _stage(
        self,
        action: Action,
        model: Model,
        current: Observed,
        choice: Choice | None,
        now: datetime,
    ) -> Action:
        if choice is None or choice.version != model.version:
            return action  # the last good model: its bundle was staged when it was a candidate
        try:
            self._bundles.stage(choice.artifacts_uri, model.bundle_uri)
        except BundleError as error:
            return block_candidate(current, "bundle", str(error), now, self._policy)
        return action

    def _check(self, action: Action, current: Observed, now: datetime) -> Action:
        candidate = current.memory.candidate
        assert candidate is not None  # noqa: S101  # plan says CHECK only with one
        uri = next(item.uri for item in current.statuses if item.tag == CANDIDATE_TAG)
        try:
            golden = self._bundles.golden_texts(candidate.model.bundle_uri)
            failure = self._gates.check(uri, candidate.model, action.revision, golden)
        except BundleError as error:
            return block_candidate(current, "bundle", str(error), now, self._policy)
        except CandidateSilent as error:
            waited = (now - candidate.since).total_seconds()
            if waited < self._policy.gate_timeout_seconds:
                return Action(Kind.WAIT, f"the candidate does not answer yet: {error}")
            return block_candidate(current, "answer", str(error), now, self._policy)
        if failure is not None:
            return block_candidate(current, failure.gate, failure.reason, now, self._policy)
        return accept_candidate(current, action.revision, now)

    def _deliver(self, entries: tuple[Entry, ...]) -> bool:
        """Write entries to the ledger and to MLflow; return whether all are there."""
        try:
            for entry in entries:
                self._ledger.append(entry)
                self._registry.note(entry.version, _tags(entry))
        except (LedgerUnavailable, RegistryUnavailable) as error:
            logging.warning("the ledger is behind: %s", error)
            return False
        return True

    def _publish(self, status: dict[str, object]) -> None:
        try:
            self._ledger.publish(status)
        except LedgerUnavailable as error:
            logging.warning("the status is not published: %s", error)


def _tags(entry: Entry) -> dict[str, str]:
    if entry.event == "promoted":
        return {
            "serving_revision": entry.revision or "",
            "serving_since": entry.at.isoformat(),
            "rollout_blocked": "",
        }
    return {"rollout_blocked": f"{entry.gate}: {entry.reason}"}


def _status(
    observed: Observed, choice: Choice | None, action: Action, now: datetime, *, acted: bool
) -> dict[str, object]:
    written = acted and action.kind in _WRITES
    memory = (action.memory if written else None) or observed.memory
    revision = served_revision(observed)
    if written and action.kind is Kind.PROMOTE and action.traffic:
        revision = action.traffic[0].revision
    last_good = memory.last_good
    version = None
    if last_good is not None and last_good.revision == revision:
        version = last_good.model.version
    return {
        "at": now.isoformat(),
        "desired": choice
        and {"version": choice.version, "run_id": choice.run_id, "because": choice.because},
        "served": {"revision": revision or None, "version": version},
        "candidate": memory.candidate
        and {
            "version": memory.candidate.model.version,
            "since": memory.candidate.since.isoformat(),
        },
        "blocked": [item.model_dump(mode="json") for item in memory.blocked],
        "action": {"kind": action.kind.value, "detail": action.detail},
    }
