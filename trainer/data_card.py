"""A card that says what a model was trained on, made from counts alone."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from trainer.data_lock import DataVersion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CARD = "data_card.md"
CARD_JSON = "data_card.json"

# MLflow takes 36 characters; the whole is in the profile and in lineage.json.
_DIGEST_CHARACTERS = 16
_LENGTH_EDGES = (0, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600)
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class SplitCounts:
    """How many reviews a split has."""

    reviews: int
    positives: int


@dataclass(frozen=True)
class Lengths:
    """How long the reviews are, in characters."""

    edges: Sequence[int]
    """n + 1 edges; a bin has its lower edge, the last one goes on without an end."""
    counts: Sequence[int]
    """Reviews in each of the n bins."""
    quantiles: Mapping[float, float]
    """Share of the reviews to the length that so many reach at most."""
    mean: float

    @classmethod
    def of(cls, lengths: NDArray[np.integer[Any]]) -> Self:
        """Summarise the lengths of reviews.

        Args:
            lengths: int[N], characters of each review; at least one.
        """
        counts, _ = np.histogram(np.minimum(lengths, _LENGTH_EDGES[-1]), _LENGTH_EDGES)
        values = np.quantile(lengths, _QUANTILES)
        return cls(
            _LENGTH_EDGES,
            counts.tolist(),
            dict(zip(_QUANTILES, values.tolist(), strict=True)),
            float(lengths.mean()),
        )


@dataclass(frozen=True)
class DataCard:
    """What is in the data of a training.

    Raises:
        ValueError: the counts contradict each other.
    """

    version: DataVersion
    reviews: int
    """Usable and not repeated."""
    positives: int
    duplicates: int
    """Rows left out since the same text stands earlier."""
    skipped: Mapping[str, int]
    """Rows left out as unusable, by reason."""
    splits: Mapping[str, SplitCounts]
    """By name; together all reviews."""
    lengths: Lengths
    stars: Mapping[float, int] | None = None
    """Reviews by stars; None: the data has no stars."""

    def __post_init__(self) -> None:
        totals = {
            "rows": (
                self.version.rows,
                self.reviews + self.duplicates + sum(self.skipped.values()),
            ),
            "reviews": (self.reviews, sum(split.reviews for split in self.splits.values())),
            "positives": (self.positives, sum(split.positives for split in self.splits.values())),
            "lengths": (self.reviews, sum(self.lengths.counts)),
            "stars": (
                self.reviews,
                self.reviews if self.stars is None else sum(self.stars.values()),
            ),
        }
        for name, (whole, parts) in totals.items():
            if whole != parts:
                raise ValueError(f"{name}: {whole:,} in all, but the parts add up to {parts:,}")

    def to_json(self) -> str:
        """Return the card as JSON: the fields by name, keys as text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """Return the card as Markdown for people."""
        version = self.version
        source = version.uri + (
            f" at generation {version.generation}" if version.generation else ""
        )
        left_out = {"repeated": self.duplicates, **self.skipped}
        sections = [
            "# Data card",
            _table(
                ("", ""),
                [
                    ("Source", f"`{source}`"),
                    ("SHA-256 of the content", f"`{version.sha256}`"),
                    ("Rows", f"{version.rows:,}"),
                    ("Reviews", f"{self.reviews:,}"),
                    ("Positive", _share(self.positives, self.reviews)),
                ],
            ),
            "## Rows left out",
            _table(
                ("Reason", "Rows"),
                [
                    (reason, _share(rows, version.rows))
                    for reason, rows in sorted(left_out.items(), key=lambda item: -item[1])
                ],
            ),
            "## Splits",
            _table(
                ("Split", "Reviews", "Positive"),
                [
                    (
                        name,
                        _share(split.reviews, self.reviews),
                        _share(split.positives, split.reviews),
                    )
                    for name, split in self.splits.items()
                ],
            ),
        ]
        if self.stars is not None:
            rows = [
                (f"{stars:g}", _share(count, self.reviews))
                for stars, count in sorted(self.stars.items())
            ]
            sections += ["## Stars", _table(("Stars", "Reviews"), rows)]
        quantiles = [
            (f"{share:.0%}", f"{length:,.0f}") for share, length in self.lengths.quantiles.items()
        ]
        sections += [
            "## Length in characters",
            f"{self.lengths.mean:,.1f} on average.",
            _table(("So many reviews", "have at most"), quantiles),
        ]
        return "\n\n".join(sections) + "\n"

    def plot_lengths(self) -> "Figure":
        """Return a histogram of the lengths."""
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        axes = figure.subplots()
        names = [f"{edge:,}" for edge in self.lengths.edges[:-1]]
        axes.bar(names, self.lengths.counts, width=1, align="edge", edgecolor="white")
        axes.tick_params(axis="x", rotation=45)
        axes.set(title="Lengths", xlabel="characters, from", ylabel="reviews")
        return figure

    def plot_balance(self) -> "Figure":
        """Return bars of the negative and positive reviews in each split."""
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        axes = figure.subplots()
        names = list(self.splits)
        positives = [split.positives for split in self.splits.values()]
        negatives = [split.reviews - split.positives for split in self.splits.values()]
        axes.bar(names, negatives, label="negative")
        axes.bar(names, positives, bottom=negatives, label="positive")
        axes.set(title="Balance", ylabel="reviews")
        axes.legend()
        return figure


def log_data(card: DataCard, *, context: str = "training") -> None:
    """Log to the active MLflow run what is in its data.

    The card as Markdown and JSON, plots, and the data as an input of the run. The source
    of an object in Cloud Storage ends in ``#GENERATION``, as gsutil writes it.

    Args:
        card: the counts.
        context: what the data is used for.

    Raises:
        mlflow.exceptions.MlflowException: MLflow refused or can't be reached.
    """
    import mlflow
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    class ReviewsDataset(MetaDataset):
        """The data as MLflow knows it: where it is and what is in it, not itself."""

        @property
        def profile(self) -> dict[str, Any]:
            return profile

        def to_dict(self) -> dict[str, str]:
            return {**super().to_dict(), "profile": json.dumps(self.profile)}

    version = card.version
    profile = {
        "num_rows": card.reviews,
        "rows": version.rows,
        "positives": card.positives,
        "duplicates": card.duplicates,
        "skipped": dict(card.skipped),
        "splits": {name: asdict(split) for name, split in card.splits.items()},
        "sha256": version.sha256,
        "generation": version.generation,
    }
    if version.is_cloud:
        source = version.uri + (f"#{version.generation}" if version.generation else "")
    else:
        source = str(Path(version.uri).absolute())
    columns: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "text")]
    if card.stars is not None:
        columns.append(ColSpec(DataType.double, "stars"))
    with warnings.catch_warnings():
        # MLflow has one kind of source for paths, registered twice.
        warnings.filterwarnings("ignore", ".*can be interpreted in multiple ways.*")
        resolved = resolve_dataset_source(source)
    mlflow.log_input(
        ReviewsDataset(
            resolved,
            Path(version.uri).name,
            version.sha256[:_DIGEST_CHARACTERS],
            Schema(columns),
        ),
        context,
    )
    mlflow.log_text(card.to_markdown(), CARD)
    mlflow.log_text(card.to_json(), CARD_JSON)
    mlflow.log_figure(card.plot_lengths(), "plots/data_lengths.png")
    mlflow.log_figure(card.plot_balance(), "plots/data_balance.png")


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else f"{part:,}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    # A pipe or a line end would end the cell.
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
