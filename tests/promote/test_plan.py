"""The plan against a small model of Cloud Run: whatever happens, it ends in the right place."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.promote.bake import Figures, Signals
from functions.promote.plan import (
    CANDIDATE_TAG,
    VALIDATION_GATE,
    Action,
    Blocked,
    Desired,
    GateResult,
    Kind,
    Memory,
    Model,
    Observed,
    Revision,
    Scope,
    Target,
    Template,
    advance_candidate,
    arguments,
    block_candidate,
    plan,
    protect,
    served_revision,
)
from functions.promote.policy import Policy

POLICY = Policy()
STEPS = Policy(
    rollout_steps=(10, 50, 100), bake_seconds=100, max_bake_seconds=250, keep_revisions=3
)
START = datetime(2026, 1, 1, tzinfo=UTC)
# Ticks after which everything must be quiet: two blocked candidates and one good, and clearing up.
MANY_TICKS = 60

GOOD, BAD = ("1", "2", "3"), ("7", "8")
# Passes the gates, and fails in traffic.
ERRING = "5"


def model(version: str) -> Model:
    return Model(version=version, run_id=f"run-{version}", bundle_uri=f"gs://serving/m/{version}/")


def desired(version: str, fingerprint: str = "") -> Desired:
    return Desired(model(version), "alias:production", fingerprint)


def rejected(version: str) -> Desired:
    """What training tagged as failed."""
    verdict = GateResult(gate=VALIDATION_GATE, outcome="failed", reason="worse by 0.1")
    return replace(desired(version, fingerprint="failed"), validation=verdict)


@dataclass
class World:
    """Cloud Run's rules, as far as the plan sees them."""

    policy: Policy = POLICY
    signals: str = "good"
    """What monitoring shows: ``good``, ``few`` requests, ``none`` at all."""
    code: int = 0
    broken_code: set[int] = field(default_factory=set)
    wrong_code: set[int] = field(default_factory=set)
    """Code that starts, and fails the gates with every model."""
    args: tuple[str, ...] = ()
    label: str = ""
    made: int = 0
    """Revisions ever: no name comes back."""
    revisions: list[Revision] = field(default_factory=list)
    traffic: tuple[Target, ...] = ()
    memory: Memory = field(default_factory=Memory)
    now: datetime = START
    tested: set[str] = field(default_factory=set)
    history: list[tuple[tuple[str, ...], str, tuple[Target, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.revise()
        self.tested.add(self.revisions[0].name)  # what was there at birth

    def revise(self) -> None:
        """Make a revision of the template, unless the latest is the same."""
        core = f"code-{self.code}"
        latest = self.revisions[-1] if self.revisions else None
        if latest and (latest.args, latest.spec, latest.core) == (self.args, self.label, core):
            return
        ready = self.code not in self.broken_code
        name = f"r{self.made}"
        self.made += 1
        self.revisions.append(
            Revision(name, ready, "" if ready else "exit 1", self.args, self.label, core)
        )

    @property
    def statuses(self) -> tuple[Target, ...]:
        latest = next((r.name for r in reversed(self.revisions) if r.ready), "")
        traffic = self.traffic or (Target("", 100),)
        return tuple(replace(item, revision=item.revision or latest) for item in traffic)

    @property
    def wrong_cores(self) -> set[str]:
        return {f"code-{number}" for number in self.wrong_code}

    def observe(self) -> Observed:
        core = f"code-{self.code}"
        return Observed(
            settled=True,
            template=Template(self.args, fingerprint=core, core=core),
            traffic=self.traffic,
            statuses=self.statuses,
            revisions=tuple(self.revisions),
            latest_created=self.revisions[-1].name,
            memory=self.memory,
            signals=self.measure(),
        )

    def measure(self) -> Signals | None:
        candidate = self.memory.candidate
        if self.signals == "none" or candidate is None or candidate.step is None:
            return Signals(problem="UNAVAILABLE") if self.signals == "none" else None
        if self.signals == "few":
            return Signals(Figures(3, 0, 0.1), Figures(20, 0, 0.1))
        errors = 20 if candidate.model.version == ERRING else 0
        good = self.memory.last_good
        usual = 180 if good is not None and good.model.version == ERRING else 0
        return Signals(Figures(100, errors, 0.1), Figures(900, usual, 0.1))

    def share(self, revision: str) -> int:
        return sum(target.percent for target in self.statuses if target.revision == revision)

    def check_shares(self, action: Action) -> None:
        """What was last good keeps its share, and what is new gets no more than its step."""
        assert action.traffic is not None
        steps = self.policy.rollout_steps
        good = self.memory.last_good
        if action.kind is Kind.STEP:
            base, new = action.traffic[:2]
            assert new.percent in steps
            assert base.percent == 100 - new.percent
            if good is not None and self.ready(good.revision):
                assert base.revision == good.revision
        if action.kind is Kind.PROMOTE and len(steps) > 1:
            new = action.traffic[0]
            known = {*self.memory.accepted, *([good.revision] if good else [])}
            others = [r for r in self.revisions if r.name != new.revision and r.args]
            assert (
                new.revision in known
                or self.share(new.revision) >= steps[-2]
                or not any(self.share(r.name) or (good and good.revision == r.name) for r in others)
            )

    def ready(self, name: str) -> bool:
        return any(r.name == name and r.ready for r in self.revisions)

    def delete(self, name: str) -> None:
        """As Cloud Run refuses, and as promote must not even try."""
        good = self.memory.last_good
        assert name != self.revisions[-1].name, "the latest created one"
        assert name not in {target.revision for target in (*self.traffic, *self.statuses)}
        assert good is None or name != good.revision
        self.revisions = [item for item in self.revisions if item.name != name]

    def write(self, action: Action) -> None:
        if action.kind is Kind.PRUNE:
            self.delete(action.revision)
            return
        self.history.append((self.args, self.label, self.traffic))
        if action.model is not None:
            self.args, self.label = arguments(action.model), action.spec
            self.revise()
        if action.traffic is not None:
            assert sum(target.percent for target in action.traffic) == 100
            self.check_shares(action)
            tags = [target.tag for target in action.traffic if target.tag]
            assert len(tags) == len(set(tags))
            for target in action.traffic:
                revision = next(r for r in self.revisions if r.name == target.revision)
                assert revision.ready, "Cloud Run refuses a target that is not ready"
                assert not target.percent or target.revision in self.tested
            self.traffic = action.traffic
        if action.memory is not None:
            self.memory = action.memory

    def tick(self, wanted: Desired | None, *, crash: bool = False) -> Action:
        """One tick; with `crash` it ends just before its write."""
        self.now += timedelta(minutes=1)
        observed = self.observe()
        action = plan(wanted, observed, self.now, self.policy)
        if action.kind in (Kind.CHECK, Kind.RECHECK):
            current = replace(observed, memory=action.memory or observed.memory)
            assert current.memory.candidate is not None
            assert any(
                t.revision == action.revision and t.tag == CANDIDATE_TAG for t in observed.statuses
            )
            if (
                current.memory.candidate.model.version in BAD
                or observed.template.core in self.wrong_cores
            ):
                action = block_candidate(current, "golden", "differs", self.now, self.policy)
            else:
                self.tested.add(action.revision)
                action = advance_candidate(current, action.revision, self.now, self.policy)
        if not crash and action.kind not in (Kind.IDLE, Kind.WAIT):
            self.write(action)
        return action

    def terraform(self, back: int, *, new_code: bool) -> None:
        """Write the whole service from a read that may be stale, as Terraform's PATCH does."""
        past = [(self.args, self.label, self.traffic), *reversed(self.history)]
        args, label, traffic = past[min(back, len(past) - 1)]
        if not {target.revision for target in traffic} <= {"", *(r.name for r in self.revisions)}:
            return  # Cloud Run refuses a write that names a revision which is gone
        if new_code:
            self.code += 1
        self.args, self.label, self.traffic = args, label, traffic
        self.revise()
        if not self.traffic:
            # LATEST gives the new revision traffic at once: Terraform's doing, not promote's.
            self.tested.update(target.revision for target in self.statuses)

    def settle(self, wanted: Desired | None) -> None:
        for _ in range(MANY_TICKS):
            if self.tick(wanted).kind is Kind.IDLE:
                return
        raise AssertionError("promote does not come to rest")

    @property
    def serves(self) -> tuple[str, tuple[str, ...]]:
        name = served_revision(self.observe())
        revision = next(r for r in self.revisions if r.name == name)
        assert self.share(name) == 100
        return revision.core, revision.args


EVENTS = st.one_of(
    st.tuples(st.just("tick"), st.booleans()),
    st.tuples(st.just("ticks"), st.integers(2, 10)),
    st.tuples(st.just("want"), st.sampled_from([*GOOD, *BAD, ERRING, ""])),
    st.tuples(st.just("terraform"), st.integers(0, 6)),
    st.tuples(st.just("code"), st.integers(0, 6)),
    st.tuples(st.just("broken code"), st.integers(0, 6)),
    st.tuples(st.just("wrong code"), st.integers(0, 6)),
    st.tuples(st.just("forget"), st.just(0)),
    st.tuples(st.just("signals"), st.sampled_from(["good", "few", "none"])),
)
POLICIES = pytest.mark.parametrize("policy", [POLICY, STEPS], ids=["at once", "in steps"])


@POLICIES
@given(st.lists(EVENTS, max_size=25), st.sampled_from(GOOD + BAD))
@settings(max_examples=500, deadline=None)
def test_repeated_ticks_converge_from_anywhere(
    policy: Policy, events: list[tuple[str, object]], final: str
) -> None:
    world = World(policy=policy)
    wanted: Desired | None = None
    for kind, value in events:
        match kind, value:
            case "tick", bool(crash):
                world.tick(wanted, crash=crash)
            case "ticks", int(count):
                for _ in range(count):
                    world.tick(wanted)
            case "want", str(version):
                wanted = desired(version) if version else None
            case "terraform", int(back):
                world.terraform(back, new_code=False)
            case "code", int(back):
                world.terraform(back, new_code=True)
            case "broken code", int(back):
                world.broken_code.add(world.code + 1)
                world.terraform(back, new_code=True)
            case "wrong code", int(back):
                world.wrong_code.add(world.code + 1)
                world.terraform(back, new_code=True)
            case "forget", _:
                world.memory = Memory()
            case "signals", str(signals):
                world.signals = signals
    world.settle(desired(final))
    # With code that starts, the right pair is served.
    if world.code in world.broken_code | world.wrong_code:
        world.terraform(0, new_code=True)
        world.settle(desired(final))
    core, args = world.serves
    if final in GOOD:
        assert (core, args) == (f"code-{world.code}", arguments(model(final)))
        assert world.memory.last_good is not None
        assert world.memory.last_good.model == model(final)
    elif world.memory.last_good is not None:
        assert (core, args) == (f"code-{world.code}", arguments(world.memory.last_good.model))
    assert not any(target.tag == CANDIDATE_TAG for target in world.traffic)
    assert world.memory.candidate is None
    if final in GOOD:
        # The latest, the served and the previous one stay, however few are kept.
        assert len(world.revisions) <= max(policy.keep_revisions, 3)


@POLICIES
@given(st.lists(EVENTS, max_size=25))
@settings(max_examples=200, deadline=None)
def test_what_is_served_is_one_revision_when_nothing_is_wanted(
    policy: Policy, events: list[tuple[str, object]]
) -> None:
    world = World(policy=policy)
    world.settle(None)
    world.settle(desired("1"))
    for kind, value in events:
        match kind, value:
            case "tick", bool(crash):
                world.tick(desired("2"), crash=crash)
            case "ticks", int(count):
                for _ in range(count):
                    world.tick(desired("2"))
            case "terraform", int(back):
                world.terraform(back, new_code=False)
            case "code", int(back):
                world.terraform(back, new_code=True)
    world.settle(None)
    assert world.serves[1] in {arguments(model("1")), arguments(model("2")), ()}


@POLICIES
@pytest.mark.parametrize("new_code", [False, True], ids=["same code", "new code"])
@pytest.mark.parametrize("version", ["2", ERRING, "7"])
def test_stopped_after_any_action_with_any_earlier_state_written_back(
    policy: Policy, new_code: bool, version: str
) -> None:
    """Each tick of a rollout, ended before its write or not, and then Terraform's stale write."""
    # As many as the rollout takes, and with the steps as many earlier states.
    ticks = 13 if policy is STEPS and version != "7" else 6
    for stopped in range(ticks):
        for crash in (False, True):
            for back in range(ticks):
                world = promoted_world("3", "1", policy=policy)
                for number in range(stopped + 1):
                    world.tick(desired(version), crash=crash and number == stopped)
                world.terraform(back, new_code=new_code)
                world.settle(desired(version))
                promoted = version == "2" or (version == ERRING and policy is POLICY)
                expected = version if promoted else "1"
                assert world.serves == (f"code-{world.code}", arguments(model(expected)))


def stepping(version: str, percent: int) -> World:
    """Return a world in which `version` has so much of the traffic, beside version 1."""
    world = promoted_world("1", policy=STEPS)
    for _ in range(MANY_TICKS):
        world.tick(desired(version))
        candidate = world.memory.candidate
        step = candidate.step if candidate is not None else None
        if step is not None and step.percent == percent:
            return world
    raise AssertionError(f"{percent} % is not reached")


def promoted_world(*versions: str, policy: Policy = POLICY) -> World:
    world = World(policy=policy)
    for version in versions:
        world.settle(desired(version))
    return world


def test_the_pin_comes_first_even_with_no_model() -> None:
    world = World()
    assert world.tick(None).kind is Kind.PIN
    assert world.traffic == (Target("r0", 100),)
    assert world.tick(None).kind is Kind.IDLE


def test_a_service_that_never_started_is_not_pinned() -> None:
    world = World(broken_code={0})
    assert world.tick(None).kind is Kind.WAIT


def test_no_version_named_changes_nothing() -> None:
    world = promoted_world("1")
    before = (world.traffic, world.args, world.memory)
    assert world.tick(None).kind is Kind.IDLE
    assert (world.traffic, world.args, world.memory) == before


def test_the_way_to_a_first_version() -> None:
    world = World()
    kinds = [world.tick(desired("1")).kind for _ in range(6)]
    assert kinds == [Kind.PIN, Kind.CREATE, Kind.TAG, Kind.PROMOTE, Kind.RECORD, Kind.IDLE]


def test_the_way_back_takes_one_tick_and_no_new_revision() -> None:
    world = promoted_world("1", "2")
    revisions = len(world.revisions)
    assert world.tick(desired("1")).kind is Kind.PROMOTE
    assert world.serves[1] == arguments(model("1"))
    assert len(world.revisions) == revisions


def test_a_blocked_version_is_not_tried_again_until_its_tags_change() -> None:
    world = promoted_world("1", "7")
    assert world.serves[1] == arguments(model("1"))
    assert [item.version for item in world.memory.blocked] == ["7"]
    assert world.tick(desired("7")).kind is Kind.IDLE
    assert "blocked by golden" in world.tick(desired("7")).detail
    # The revision is still there, so the next step is its tag.
    assert world.tick(desired("7", fingerprint="changed")).kind is Kind.TAG


def test_a_blocked_version_is_tried_again_under_another_policy() -> None:
    world = promoted_world("1", "7")
    action = plan(desired("7"), world.observe(), world.now, Policy(auroc_floor=0.1))
    assert action.kind is Kind.TAG


def test_after_a_way_back_new_code_carries_the_good_model() -> None:
    world = promoted_world("1", "7")
    world.terraform(0, new_code=True)
    world.settle(desired("7"))
    assert world.serves == ("code-1", arguments(model("1")))


def test_new_code_and_a_new_model_at_once_end_in_the_right_pair() -> None:
    world = promoted_world("1")
    world.terraform(0, new_code=True)
    world.settle(desired("2"))
    assert world.serves == ("code-1", arguments(model("2")))


def test_code_that_does_not_start_blocks_the_code_and_not_the_model() -> None:
    world = promoted_world("1")
    world.broken_code.add(1)
    world.terraform(0, new_code=True)
    world.settle(desired("1"))
    assert world.serves == ("code-0", arguments(model("1")))
    assert [item.scope for item in world.memory.blocked] == [Scope.CODE]
    world.terraform(0, new_code=True)
    world.settle(desired("1"))
    assert world.serves == ("code-2", arguments(model("1")))


def test_an_old_label_beside_a_new_image_is_not_taken_for_tested() -> None:
    """Terraform writes back the labels of its last refresh with the image that it changes."""
    world = promoted_world("1")
    world.terraform(0, new_code=True)
    assert world.revisions[-1].spec == world.revisions[-2].spec
    action = world.tick(desired("1"))
    assert action.kind is Kind.CREATE


def test_everything_pending_is_kept_until_it_is_delivered() -> None:
    world = World()
    for _ in range(4):
        world.tick(desired("1"))
    (entry,) = world.memory.pending
    assert (entry.event, entry.version, entry.because) == ("promoted", "1", "alias:production")
    assert entry.id == Memory.model_validate_json(world.memory.model_dump_json()).pending[0].id
    assert world.tick(desired("1")).kind is Kind.RECORD
    assert world.memory.pending == ()


def test_new_code_that_fails_a_gate_is_given_up_once() -> None:
    """It was tagged and blocked in turn for ever, when the model was the served one."""
    world = promoted_world("1")
    world.wrong_code.add(1)
    world.terraform(0, new_code=True)
    world.settle(desired("1"))
    assert world.serves == ("code-0", arguments(model("1")))
    assert len(world.memory.blocked) == 1
    for _ in range(3):
        assert world.tick(desired("1")).kind is Kind.IDLE


def test_a_blocked_first_version_does_not_keep_its_ledger_entry() -> None:
    """It stayed pending for ever, since only a served version cleared it."""
    world = World()
    world.settle(desired("7"))
    assert [item.version for item in world.memory.blocked] == ["7"]
    assert world.memory.pending == ()


def test_a_rollout_that_is_called_off_leaves_no_tag() -> None:
    world = promoted_world("1")
    while not any(target.tag == CANDIDATE_TAG for target in world.traffic):
        world.tick(desired("2"))
    world.settle(None)
    assert not any(target.tag == CANDIDATE_TAG for target in world.traffic)
    assert world.memory.candidate is None


def test_a_version_of_another_run_is_not_blocked_for_its_number() -> None:
    """A registered model that is deleted and made again counts from 1."""
    world = promoted_world("1", "7")
    other = model("7").model_copy(update={"run_id": "another", "bundle_uri": "gs://serving/m/o/"})
    again = Desired(other, "alias:production", "")
    assert plan(again, world.observe(), world.now, POLICY).kind is Kind.CREATE


def test_code_that_is_blocked_sends_traffic_back_to_the_last_good_revision() -> None:
    world = promoted_world("1", "2")
    world.wrong_code.add(1)
    world.terraform(0, new_code=True)
    world.settle(desired("2"))
    good = world.serves
    # Terraform writes the traffic of version 1's time.
    first = next(r.name for r in world.revisions if r.args == arguments(model("1")))
    world.traffic = (Target(first, 100),)
    world.settle(desired("2"))
    assert world.serves == good


def test_what_training_rejected_is_blocked_before_anything_is_started() -> None:
    world = promoted_world("1")
    revisions = len(world.revisions)
    action = world.tick(rejected("2"))
    assert action.kind is Kind.BLOCK
    world.settle(rejected("2"))
    assert len(world.revisions) == revisions
    assert world.serves[1] == arguments(model("1"))
    (block,) = world.memory.blocked
    assert (block.gate, block.reason, block.scope) == ("validation", "worse by 0.1", Scope.MODEL)
    # The tag is changed by hand: it is tried.
    world.settle(desired("2", fingerprint="passed"))
    assert world.serves[1] == arguments(model("2"))


def test_what_training_rejected_is_tried_when_the_policy_looks_past_it() -> None:
    world = promoted_world("1")
    world.settle(rejected("2"))
    action = plan(rejected("2"), world.observe(), world.now, Policy(heed_validation=False))
    assert action.kind is Kind.CREATE


def test_a_served_model_that_is_tagged_as_failed_later_gets_new_code_all_the_same() -> None:
    """Else the code would be blocked for what the model is."""
    world = promoted_world("1")
    world.terraform(0, new_code=True)
    world.settle(rejected("1"))
    assert world.serves == ("code-1", arguments(model("1")))
    assert world.memory.blocked == ()


def test_the_steps_are_taken_in_order_and_each_bakes() -> None:
    world = promoted_world("1", policy=STEPS)
    kinds = [world.tick(desired("2")).kind for _ in range(8)]
    step, wait = Kind.STEP, Kind.WAIT
    assert kinds == [Kind.CREATE, Kind.TAG, step, wait, step, wait, Kind.PROMOTE, Kind.RECORD]
    events = [(e.event, e.percent) for e in world.memory.pending]
    assert events == []
    assert world.serves[1] == arguments(model("2"))


def test_the_ledger_tells_each_step_and_what_it_rested_on() -> None:
    world = stepping("2", 50)
    entries = [(e.event, e.version, e.percent, e.reason) for e in world.memory.pending]
    assert entries[-2:] == [
        ("stepped", "2", 10, None),
        ("stepped", "2", 50, "at 10 %: 100 requests, 0 failed, p95 100 ms against 100 ms"),
    ]


def test_a_candidate_that_fails_in_traffic_goes_back_in_one_call() -> None:
    world = stepping(ERRING, 10)
    action = world.tick(desired(ERRING))
    assert action.kind is Kind.BLOCK
    assert world.serves[1] == arguments(model("1"))
    (block,) = world.memory.blocked
    assert (block.gate, block.scope) == ("errors", Scope.MODEL)
    assert block.reason.startswith("at 10 %: 20 of 100 requests failed")
    world.settle(desired(ERRING))
    assert world.serves[1] == arguments(model("1"))


def test_without_the_registry_a_candidate_goes_back_but_never_on() -> None:
    world = stepping("2", 10)
    long_after = world.now + timedelta(days=1)
    assert protect(world.observe(), long_after, STEPS) is None
    world = stepping(ERRING, 10)
    action = protect(world.observe(), world.now, STEPS)
    assert action is not None
    assert action.kind is Kind.BLOCK
    world.write(action)
    assert world.serves[1] == arguments(model("1"))
    assert protect(world.observe(), long_after, STEPS) is None


@pytest.mark.parametrize("percent", [10, 50])
@pytest.mark.parametrize("wanted", ["1", "3", ""])
def test_at_any_step_the_way_back_is_one_call(percent: int, wanted: str) -> None:
    world = stepping("2", percent)
    action = world.tick(desired(wanted) if wanted else None)
    assert action.kind is Kind.BACK
    assert world.serves[1] == arguments(model("1"))
    assert world.memory.pending[-1].event == "withdrawn"


def test_what_training_rejects_meanwhile_goes_back() -> None:
    world = stepping("2", 10)
    assert world.tick(rejected("2")).kind is Kind.BLOCK
    assert world.serves[1] == arguments(model("1"))


@pytest.mark.parametrize("signals", ["few", "none"])
def test_without_signals_nothing_advances_until_golden_texts_must_tell(signals: str) -> None:
    world = stepping("2", 10)
    world.signals = signals
    began = world.now
    while (action := world.tick(desired("2"))).kind is Kind.WAIT:
        assert world.now - began < timedelta(seconds=STEPS.max_bake_seconds)
    assert action.kind is Kind.STEP
    assert world.now - began >= timedelta(seconds=STEPS.max_bake_seconds)
    assert world.share(action.traffic[1].revision if action.traffic else "") == 50


def test_a_share_that_terraform_wrote_is_put_right_and_bakes_anew() -> None:
    world = stepping("2", 50)
    before = world.traffic
    world.terraform(2, new_code=False)
    assert world.traffic != before
    action = world.tick(desired("2"))
    if action.kind is Kind.PIN:
        action = world.tick(desired("2"))
    assert action.kind is Kind.STEP
    candidate = world.memory.candidate
    assert candidate is not None
    assert candidate.step is not None
    assert (candidate.step.percent, candidate.step.since) == (50, world.now)
    assert {(t.revision, t.percent) for t in world.traffic} == {
        (t.revision, t.percent) for t in before
    }


def test_a_lost_memory_does_not_take_traffic_from_what_is_served() -> None:
    world = stepping("2", 10)
    world.memory = Memory()
    served = served_revision(world.observe())
    for _ in range(MANY_TICKS):
        assert world.share(served) >= 90
        if world.tick(desired("1")).kind is Kind.IDLE:
            break
    assert world.serves[1] == arguments(model("1"))


def test_the_first_version_takes_no_steps() -> None:
    """There is nothing to keep traffic on: the placeholder answers 503."""
    world = World(policy=STEPS)
    kinds = [world.tick(desired("1")).kind for _ in range(4)]
    assert kinds == [Kind.PIN, Kind.CREATE, Kind.TAG, Kind.PROMOTE]


def test_memory_of_an_earlier_release_is_read() -> None:
    world = promoted_world("1", "7")
    content = world.memory.model_dump(mode="json")
    assert content.pop("candidate", None) is None
    assert Memory.model_validate(content) == world.memory


def test_a_step_that_an_earlier_release_began_goes_on_without_the_proxys_word() -> None:
    world = stepping("2", 10)
    content = world.memory.model_dump(mode="json")
    del content["candidate"]["step"]["before"]
    content["candidate"]["step"]["answers_before"] = {"candidate": {"given": 1, "right": 1}}
    assert Memory.model_validate(content) == world.memory


def test_unsettled_means_wait() -> None:
    observed = replace(World().observe(), settled=False)
    assert plan(desired("1"), observed, START, POLICY).kind is Kind.WAIT


def test_a_long_reason_is_cut() -> None:
    """The annotation outgrew what Cloud Run takes, and no write went through any more."""
    world = promoted_world("1")
    while world.tick(desired("2")).kind is not Kind.TAG:
        pass
    action = block_candidate(world.observe(), "golden", "r" * 10**6, world.now, POLICY)
    assert action.memory is not None
    assert len(action.memory.model_dump_json()) < 10_000


def test_a_long_reason_of_training_is_cut() -> None:
    """A tag of MLflow holds 5,000 characters; each entry of the ledger would have had them all."""
    result = GateResult(gate="validation", outcome="passed", reason="r" * 5000)
    assert len(result.reason) == 500
    assert GateResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize("count", [1, 30])
def test_memory_stays_small(count: int) -> None:
    world = promoted_world("1")
    blocked = Blocked(
        version="9",
        run_id="run-9",
        spec="x",
        gate="golden",
        reason="r" * 500,
        at=START,
        policy="p",
        fingerprint="",
        scope=Scope.MODEL,
        code="",
    )
    items = tuple(blocked.model_copy(update={"spec": str(n)}) for n in range(count))
    world.memory = world.memory.model_copy(update={"blocked": items})
    world.settle(desired("7"))
    assert len(world.memory.model_dump_json()) < 64 * 1024
    assert world.memory.blocked[-1].version == "7"
