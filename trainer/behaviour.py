"""Behavioural tests of a model: what any reader of reviews would get right.

After Ribeiro et al., Beyond Accuracy: Behavioral Testing of NLP Models with CheckList
(ACL 2020), whose three kinds of test they are:

invariance
    A change that says nothing of the quality (another name, place or number, letters
    swapped in a neutral word) must not change the verdict, nor the score much.
direction
    A change that says something of it must move the score the right way: "not", a
    sentence of praise or blame at the end; "very" must not move it the wrong way.
minimum
    Short, clear sentences must be told apart, negation and change over time included.

The texts are our own, filled into templates, always the same and in the same order.
A bag of n-grams can't pass all: it has no way to know what a distant "not" refers to.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

TOLERANCE = 0.1
"""Most that a score may move where it should not: CheckList's own for sentiment."""

Kind = Literal["invariance", "direction", "minimum"]
Expected = Literal[
    "stays", "rises", "falls", "does not fall", "does not rise", "positive", "negative"
]

KINDS: tuple[Kind, ...] = ("invariance", "direction", "minimum")

_KIND: dict[Expected, Kind] = {
    "stays": "invariance",
    "rises": "direction",
    "falls": "direction",
    "does not fall": "direction",
    "does not rise": "direction",
    "positive": "minimum",
    "negative": "minimum",
}

_PRAISING = ("good", "great", "excellent", "amazing", "wonderful", "delicious")
_BLAMING = ("bad", "terrible", "awful", "horrible", "disappointing", "poor")
_THINGS = ("food", "coffee", "pizza", "dinner", "breakfast")

_NAMES = (
    ("Maria", "Dmitri"),
    ("James", "Aisha"),
    ("Wei", "Carlos"),
    ("Priya", "Emma"),
    ("Hans", "Ngozi"),
)
_WITH_NAME = (
    "{} was our server and the food was great.",
    "{} was our server and the food was terrible.",
    "We had a wonderful dinner, and {} looked after us all evening.",
    "I waited an hour for cold food, and {} never came back to the table.",
    "My friend {} loves this place and so do I.",
    "My friend {} hates this place and so do I.",
    "{} cut my hair and I am very happy with it.",
    "{} cut my hair and I left in tears.",
)
_PLACES = (
    ("Phoenix", "Toronto"),
    ("Las Vegas", "Pittsburgh"),
    ("Lisbon", "Nairobi"),
    ("Edinburgh", "Charlotte"),
    ("Mumbai", "Cleveland"),
)
_WITH_PLACE = (
    "The best tacos in {}, we come every week.",
    "The worst tacos in {}, we will never come back.",
    "We stayed a night in {} and the hotel was clean and comfortable.",
    "We stayed a night in {} and the hotel was dirty and loud.",
    "I moved here from {} and finally found a great barber.",
    "I moved here from {} and still look for a decent barber, this one ruined my hair.",
)
_NUMBERS = (("4", "9"), ("12", "17"), ("23", "31"), ("6", "8"), ("52", "74"))
_WITH_NUMBER = (
    "We sat at table {} and everything was delicious.",
    "We sat at table {} and everything was overcooked.",
    "Take bus {} to get here, the breakfast is fantastic.",
    "Take bus {} somewhere else, the breakfast is horrible.",
    "Our room was number {}, and we loved the view and the friendly staff.",
    "Our room was number {}, and it smelled awful and the staff were rude.",
)
_TYPOS = (
    ("restaurant", "restuarant"),
    ("place", "palce"),
    ("kitchen", "kithcen"),
    ("neighborhood", "nieghborhood"),
    ("building", "biulding"),
)
_WITH_TYPO = (
    "I walked past the {} twice, then had a great meal.",
    "I walked past the {} twice, then had a terrible meal.",
    "The people who run this {} are friendly and helpful.",
    "The people who run this {} are rude and unhelpful.",
)

# Said, and denied.
_PRAISE_DENIED = (
    ("I would recommend this place.", "I would not recommend this place."),
    ("We will be back.", "We won't be back."),
    ("I like the new menu.", "I don't like the new menu."),
    ("The waiter was friendly.", "The waiter was not friendly."),
    ("It was worth the money.", "It was not worth the money."),
    ("The staff were helpful.", "The staff were not helpful."),
    ("My steak was cooked well.", "My steak was not cooked well."),
    ("The room was clean.", "The room was not clean."),
    ("I enjoyed the meal.", "I did not enjoy the meal."),
    ("They care about their customers.", "They don't care about their customers."),
)
_BLAME_DENIED = (
    ("The waiter was rude.", "The waiter was never rude."),
    ("The room was dirty.", "The room was not dirty at all."),
    ("We had a problem with our order.", "We had no problem with our order."),
    ("You will be disappointed.", "You will not be disappointed."),
    ("I would change everything.", "I would not change a thing."),
    ("I have complaints about the service.", "I have no complaints about the service."),
)
_PRAISE = (
    "We had lunch here on Tuesday. The soup was great and the staff were friendly.",
    "Great haircut, and the owner is very nice.",
    "Delicious burgers and a lovely patio.",
    "The mechanic was honest and fixed my car quickly.",
    "The room was clean, quiet and comfortable.",
)
_BLAME = (
    "We had lunch here on Tuesday. The soup was cold and the staff were rude.",
    "Terrible haircut, and the owner does not care.",
    "Dry burgers and a dirty patio.",
    "The mechanic lied to me and my car still does not run.",
    "The room was dirty, loud and smelled of smoke.",
)
_PRAISING_END = (
    "I love this place!",
    "Highly recommended.",
    "Best in town, we will definitely be back.",
    "Everything was excellent.",
)
_BLAMING_END = (
    "I hate this place!",
    "Avoid it.",
    "Worst in town, we will never be back.",
    "Everything was awful.",
)

_POSITIVE = (
    "I love it here.",
    "Great food and friendly staff!",
    "Highly recommend this place.",
    "Best coffee in town.",
    "We will definitely be back.",
    "Everything was perfect.",
    "My favorite restaurant.",
    "Delicious!",
    "Fresh, tasty and a fair price.",
    "The staff were so kind and helpful.",
    "They fixed my phone in no time, thank you!",
    "Clean rooms, comfortable beds, great location.",
)
_NEGATIVE = (
    "I hate it here.",
    "Cold food and rude staff!",
    "Stay away from this place.",
    "Worst coffee in town.",
    "We will never come back.",
    "Everything was wrong.",
    "What a waste of money.",
    "Disgusting!",
    "Stale, bland and overpriced.",
    "The staff were so rude and slow.",
    "They broke my phone and refused to give a refund.",
    "Dirty rooms, broken beds, terrible smell.",
)
_NEGATIVE_BY_NEGATION = (
    "I would not recommend this place.",
    "This is not a good restaurant.",
    "Nothing was fresh.",
    "I was not impressed.",
    "Not worth the money.",
    "I can't say that I liked it.",
    "The food did not taste good.",
    "I don't think the service is any good.",
)
_POSITIVE_BY_NEGATION = (
    "I have no complaints.",
    "You can't go wrong here.",
    "Not bad at all.",
    "You will not be disappointed.",
    "It doesn't get better than this.",
    "Never had a bad meal here.",
)
_BETTER_NOW = (
    "It used to be terrible, but now it is great.",
    "I hated this place before, but now I love it.",
    "Their pizza was bad in the past, now it is the best in town.",
)
_WORSE_NOW = (
    "It used to be great, but now it is terrible.",
    "I loved this place before, but now I hate it.",
    "Their pizza was the best in town in the past, now it is bad.",
)


@dataclass(frozen=True)
class Case:
    """One test: what the scores of one or two texts must be like."""

    name: str
    """What is tested, such as ``names``."""
    expected: Expected
    """Of the only text's verdict, or of the score from the first text to the second."""
    texts: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        """The kind of test that it is."""
        return _KIND[self.expected]

    def passes(self, scores: Sequence[float], threshold: float) -> bool:
        """Return whether the scores of the texts are as expected."""
        before, after = scores[0], scores[-1]
        return {
            "stays": abs(after - before) <= TOLERANCE
            and (before >= threshold) == (after >= threshold),
            "rises": after > before,
            "falls": after < before,
            "does not fall": after >= before - TOLERANCE,
            "does not rise": after <= before + TOLERANCE,
            "positive": after >= threshold,
            "negative": after < threshold,
        }[self.expected]


@dataclass(frozen=True)
class Result:
    """A case with what came of it."""

    case: Case
    scores: tuple[float, ...]
    """Of the case's texts."""
    passed: bool


@dataclass(frozen=True)
class Report:
    """All cases with what came of them."""

    results: tuple[Result, ...]

    @property
    def share(self) -> float:
        """The share of cases passed, 0 to 1, each kind with the same weight."""
        return sum(self._share(kind) for kind in KINDS) / len(KINDS)

    def metrics(self) -> dict[str, float]:
        """Return the shares passed, for MLflow: ``behaviour`` and one for each kind."""
        by_kind = {f"behaviour_{kind}": self._share(kind) for kind in KINDS}
        return {"behaviour": self.share, **by_kind}

    def summary(self) -> pd.DataFrame:
        """Return the cases passed, a row for each ``kind`` and ``name`` of test."""
        groups = self.table().groupby(["kind", "name"], sort=False)["passed"]
        summary: pd.DataFrame = groups.agg(passed="sum", n="size", share="mean").reset_index()
        return summary

    def table(self) -> pd.DataFrame:
        """Return all cases, one a row.

        Columns: ``kind``, ``name``, ``expected``, ``passed``, ``text``, ``score``, and
        the second text's ``changed`` and ``changed_score``, missing where there is none.
        """
        return pd.DataFrame(
            {
                "kind": result.case.kind,
                "name": result.case.name,
                "expected": result.case.expected,
                "passed": result.passed,
                "text": result.case.texts[0],
                "score": result.scores[0],
                "changed": result.case.texts[1] if len(result.case.texts) > 1 else None,
                "changed_score": result.scores[1] if len(result.scores) > 1 else None,
            }
            for result in self.results
        )

    def _share(self, kind: Kind) -> float:
        passed = [result.passed for result in self.results if result.case.kind == kind]
        return sum(passed) / len(passed)


def run(score: Callable[[str], float], threshold: float) -> Report:
    """Return how a model does on all cases.

    Args:
        score: gives a text's probability of the positive label, 0 to 1.
        threshold: least score that is called positive.
    """
    results = []
    for case in CASES:
        scores = tuple(map(score, case.texts))
        results.append(Result(case, scores, case.passes(scores, threshold)))
    return Report(tuple(results))


def _invariance() -> Iterator[Case]:
    for name, templates, pairs in (
        ("names", _WITH_NAME, _NAMES),
        ("places", _WITH_PLACE, _PLACES),
        ("digits", _WITH_NUMBER, _NUMBERS),
        ("typos", _WITH_TYPO, _TYPOS),
    ):
        for template, (first, second) in itertools.product(templates, pairs):
            yield Case(name, "stays", (template.format(first), template.format(second)))


def _direction() -> Iterator[Case]:
    for thing, word in itertools.product(_THINGS[:3], _PRAISING):
        said, denied = f"The {thing} was {word}.", f"The {thing} was not {word}."
        yield Case("negated praise", "falls", (said, denied))
    for thing, word in itertools.product(_THINGS[:1], _BLAMING):
        said, denied = f"The {thing} was {word}.", f"The {thing} was not {word}."
        yield Case("negated blame", "rises", (said, denied))
    for pair in _PRAISE_DENIED:
        yield Case("negated praise", "falls", pair)
    for pair in _BLAME_DENIED:
        yield Case("negated blame", "rises", pair)
    for intensifier, thing in itertools.product(("very", "really"), _THINGS[:2]):
        for word in _PRAISING:
            pair = (f"The {thing} was {word}.", f"The {thing} was {intensifier} {word}.")
            yield Case("intensified praise", "does not fall", pair)
        for word in _BLAMING:
            pair = (f"The {thing} was {word}.", f"The {thing} was {intensifier} {word}.")
            yield Case("intensified blame", "does not rise", pair)
    for review, end in itertools.product(_PRAISE, _BLAMING_END):
        yield Case("blame at the end", "falls", (review, f"{review} {end}"))
    for review, end in itertools.product(_BLAME, _PRAISING_END):
        yield Case("praise at the end", "rises", (review, f"{review} {end}"))


def _minimum() -> Iterator[Case]:
    for thing in _THINGS:
        for word in _PRAISING:
            yield Case("praise", "positive", (f"The {thing} was {word}.",))
        for word in _BLAMING:
            yield Case("blame", "negative", (f"The {thing} was {word}.",))
    sentences: tuple[tuple[str, Expected, tuple[str, ...]], ...] = (
        ("praise", "positive", _POSITIVE),
        ("blame", "negative", _NEGATIVE),
        ("negated praise", "negative", _NEGATIVE_BY_NEGATION),
        ("negated blame", "positive", _POSITIVE_BY_NEGATION),
        ("change over time", "positive", _BETTER_NOW),
        ("change over time", "negative", _WORSE_NOW),
    )
    for name, expected, texts in sentences:
        for text in texts:
            yield Case(name, expected, (text,))


CASES: tuple[Case, ...] = (*_invariance(), *_direction(), *_minimum())
