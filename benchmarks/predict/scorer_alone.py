"""Time the scorer without a server: microseconds for one text, the median of rounds."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from functions.predict.bundle import FILES, IS_COMPILED, MANIFEST, read_bundle

_ROUNDS = 9


def _microseconds(function: Callable[[str], object], texts: list[str]) -> float:
    rounds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for text in texts:
            function(text)
        rounds.append(time.perf_counter() - start)
    return statistics.median(rounds) / len(texts) * 1e6


def main() -> None:
    """Print the figures as JSON, for the bundle and the texts in the folder given."""
    folder = Path(sys.argv[1])
    scorer = read_bundle({name: (folder / name).read_bytes() for name in (MANIFEST, *FILES)}).scorer
    texts = json.loads((folder / "texts.json").read_text())
    figures = {
        "scorer_score_us": _microseconds(scorer.score, texts),
        "scorer_explain_us": _microseconds(scorer.explain_encoded, texts),
    }
    sys.stdout.write(json.dumps({"is_compiled": IS_COMPILED, "figures": figures}))


if __name__ == "__main__":
    main()
