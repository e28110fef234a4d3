"""The data card: counts that add up, readable for people and programs, and in MLflow."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.mlflow_store import _store, artifacts, mlflow_store
from trainer.data_card import DataCard, Lengths, SplitCounts, log_data
from trainer.data_lock import DataVersion

__all__ = ["_store", "mlflow_store"]

CARD = DataCard(
    DataVersion("gs://reviews/2021/all.csv.gz", "ab" * 32, 14, 1606160384000000),
    reviews=10,
    positives=6,
    duplicates=3,
    skipped={"without | text": 1},
    splits={"train": SplitCounts(6, 4), "validation": SplitCounts(2, 1), "test": SplitCounts(2, 1)},
    lengths=Lengths.of(np.array([5, 10, 20, 40, 80, 160, 320, 640, 1280, 99_999])),
    stars={1.0: 4, 4.5: 1, 5.0: 5},
)


@given(st.lists(st.integers(1, 10**6), min_size=1))
def test_every_length_is_counted_once(lengths: list[int]) -> None:
    summary = Lengths.of(np.array(lengths))
    assert sum(summary.counts) == len(lengths)
    assert len(summary.counts) == len(summary.edges) - 1
    values = list(summary.quantiles.values())
    assert values == sorted(values)
    assert (values[0], values[-1]) == (min(lengths), max(lengths))
    for low, high, count in zip(summary.edges, summary.edges[1:], summary.counts, strict=False):
        last = high == summary.edges[-1]
        assert count == sum(low <= length and (last or length < high) for length in lengths)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reviews": 9}, "rows: 14 in all, but the parts add up to 13"),
        ({"positives": 7}, "positives: 7 in all, but the parts add up to 6"),
        ({"splits": {"train": SplitCounts(6, 6)}}, "reviews: 10 in all"),
        ({"stars": {5.0: 9}}, "stars: 10 in all"),
        ({"lengths": Lengths.of(np.array([1]))}, "lengths: 10 in all"),
    ],
)
def test_counts_that_contradict_each_other_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(CARD, **change)


def test_people_see_every_count() -> None:
    text = CARD.to_markdown()
    for line in (
        "| Source | `gs://reviews/2021/all.csv.gz at generation 1606160384000000` |",
        "| Rows | 14 |",
        "| Positive | 6 (60.0%) |",
        "| repeated | 3 (21.4%) |",
        "| without \\| text | 1 (7.1%) |",
        "| train | 6 (60.0%) | 4 (66.7%) |",
        "| 4.5 | 1 (10.0%) |",
        "| 100% | 99,999 |",
    ):
        assert line in text.splitlines()


def test_data_without_stars_has_no_table_of_them() -> None:
    assert "## Stars" in CARD.to_markdown()
    assert "## Stars" not in replace(CARD, stars=None).to_markdown()


def test_programs_see_every_count() -> None:
    card = json.loads(CARD.to_json())
    assert card["version"]["generation"] == 1606160384000000
    assert card["skipped"] == {"without | text": 1}
    assert card["splits"]["test"] == {"reviews": 2, "positives": 1}
    assert card["stars"] == {"1.0": 4, "4.5": 1, "5.0": 5}
    assert card["lengths"]["quantiles"]["0.5"] == 120


@pytest.mark.usefixtures("mlflow_store")
@pytest.mark.parametrize("cloud", [True, False])
def test_mlflow_knows_the_data_of_a_run(cloud: bool, tmp_path: Path) -> None:
    version = CARD.version if cloud else DataVersion(str(tmp_path / "all.csv.gz"), "cd" * 32, 14)
    card = replace(CARD, version=version)
    with mlflow.start_run() as run:
        log_data(card, context="tuning")
    inputs = mlflow.get_run(run.info.run_id).inputs
    assert inputs is not None
    logged = inputs.dataset_inputs[0]
    assert {tag.key: tag.value for tag in logged.tags} == {"mlflow.data.context": "tuning"}
    dataset = logged.dataset
    assert (dataset.name, dataset.digest) == ("all.csv.gz", version.sha256[:16])
    source = mlflow.data.get_source(logged).to_dict()
    if cloud:
        assert dataset.source_type == "gs"
        assert source == {"uri": "gs://reviews/2021/all.csv.gz#1606160384000000"}
    else:
        assert dataset.source_type == "local"
        assert source == {"uri": str(tmp_path / "all.csv.gz")}
    profile = json.loads(dataset.profile or "")
    assert profile["num_rows"] == 10
    assert profile["sha256"] == version.sha256
    columns = json.loads(dataset.schema or "")["mlflow_colspec"]
    assert [column["name"] for column in columns] == ["text", "stars"]
    folder = artifacts(run.info.run_id)
    assert (folder / "data_card.md").read_text() == card.to_markdown()
    assert (folder / "data_card.json").read_text() == card.to_json()
    for name in ("data_lengths.png", "data_balance.png"):
        assert (folder / "plots" / name).read_bytes().startswith(b"\x89PNG")
