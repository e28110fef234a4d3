"""The settings that decide about a candidate."""

import pytest
from pydantic import ValidationError

from functions.promote.policy import Policy
from functions.promote.settings import Settings

NEEDED = {
    "project": "p",
    "region": "r",
    "mlflow_tracking_uri": "http://mlflow",
    "artifacts_bucket": "a",
    "serving_bucket": "s",
}


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in {**NEEDED, **variables}.items():
        monkeypatch.setenv(name.upper(), value)
    return Settings()


def test_the_defaults_are_the_policys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(monkeypatch).policy == Policy()


def test_every_field_of_the_policy_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = settings(monkeypatch, rollout_steps="10, 50,100", auroc_floor="0.9").policy
    assert policy.rollout_steps == (10, 50, 100)
    assert policy.auroc_floor == 0.9
    assert set(Policy.__dataclass_fields__) <= set(Settings.model_fields)


@pytest.mark.parametrize("steps", ["", "10,50", "50,10,100", "0,100", "10,10,100", "100,200", "x"])
def test_steps_rise_to_100(monkeypatch: pytest.MonkeyPatch, steps: str) -> None:
    with pytest.raises(ValidationError):
        settings(monkeypatch, rollout_steps=steps)


def test_no_step_may_last_longer_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="at least bake_seconds"):
        settings(monkeypatch, bake_seconds="100", max_bake_seconds="50")


def test_the_digest_changes_with_what_decides_alone() -> None:
    assert Policy(auroc_floor=0.5).digest != Policy().digest
    assert Policy(max_error_ratio=0.5).digest != Policy().digest
    assert Policy(rollout_steps=(10, 100), bake_seconds=1).digest == Policy().digest
