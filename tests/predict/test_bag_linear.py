"""The compiled scorer gives what the portable one gives, on any vocabulary and any text."""

import json
import math
import mmap
import os
import random
import subprocess
import sys
from array import array
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from functions.predict import bag_linear, compile
from functions.predict.bag_linear import BagLinear
from functions.predict.bundle import IS_COMPILED
from functions.predict.scorer import CompiledScorer, Contribution, Scorer
from functions.predict.tokenizer import ngrams, tokenize
from tests.predict.conftest import PYTHON, ROOT

NUMBERS = st.floats(-20, 20, width=32)
# Any text, and texts dense in what the tokenizer or JSON treats apart: every kind of space,
# letters that change their length in lower case, characters of one to four bytes.
SPACES = " \n\t\x0b\x1c\x1f\x85\xa0\u1680\u2003\u2028\u3000"
DENSE = f"{SPACES}ab.,;:!?'\"()<br />BRİΣςß\x00\\\x7f😀"
TEXTS = st.text(max_size=120) | st.text(DENSE, max_size=120)
# The longest text is made of one of them, again and again.
PIECES = ["(", "a", '"', "'", "İ", "<", "<br", '<"', "<br />", "\\", "\x01", "\u2028", "a.", "𝒳"]


def make_pair(
    scores: dict[str, float], *, bias: float = 0.5, unknown: float = -1.0, order: int = 2
) -> tuple[Scorer, CompiledScorer]:
    """Return the portable and the compiled scorer of one model."""
    model = BagLinear(
        "".join(f"{term}\n" for term in scores).encode(),
        array("f", scores.values()),
        bias=bias,
        unknown=unknown,
        order=order,
    )
    return Scorer(scores, bias=bias, unknown=unknown, order=order), CompiledScorer(model, bias=bias)


@st.composite
def models_and_texts(draw: st.DrawFn) -> tuple[dict[str, float], int, str]:
    """Draw a vocabulary with n-grams of the text in it, an order, and the text."""
    text = draw(TEXTS)
    order = draw(st.integers(1, 8))
    terms = ngrams(tokenize(text), order)
    known = draw(st.lists(st.sampled_from(terms), max_size=20)) if terms else []
    others = draw(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"))))
    return {term: draw(NUMBERS) for term in [*known, *others]}, order, text


def test_it_is_compiled_for_the_environment_that_serves() -> None:
    program = "from functions.predict.bundle import IS_COMPILED; print(IS_COMPILED)"
    found = subprocess.run([PYTHON, "-c", program], cwd=ROOT, capture_output=True, text=True)
    message = "compile it: .venv/bin/python -m functions.predict.compile"
    assert IS_COMPILED, message
    assert found.stdout.strip() == "True", message


@given(models_and_texts(), NUMBERS, NUMBERS)
@example(({"a b": 1.0, "b": -2.0}, 8, "a b"), 0.0, 1.0)
@example(({}, 2, 'İ <"br"" /"> \x00\\ İ"x"<br />.<br /'), 0.0, 1.0)
@example(({"<unk>": 3.0, "": 1.0, " ": 2.0, "a  b": 1.0}, 2, "a  b <unk>"), 0.0, 1.0)
@settings(max_examples=400, deadline=None)
def test_both_scorers_give_the_same(
    drawn: tuple[dict[str, float], int, str], bias: float, unknown: float
) -> None:
    scores, order, text = drawn
    portable, compiled = make_pair(scores, bias=bias, unknown=unknown, order=order)
    expected, found = portable.assess(text), compiled.assess(text)
    assert found.score == pytest.approx(expected.score, rel=1e-12)
    assert found[1:] == expected[1:]
    explanation = compiled.explain(text)
    assert explanation.assessment == found
    # Not only close: the same numbers, for the same n-grams, at the same places.
    assert explanation[1:] == portable.explain(text)[1:]


@given(models_and_texts())
@settings(deadline=None)
def test_an_encoded_explanation_is_json_that_adds_up(
    drawn: tuple[dict[str, float], int, str],
) -> None:
    scores, order, text = drawn
    for scorer in make_pair(scores, order=order):
        assessment, bias, encoded = scorer.explain_encoded(text)
        contributions = json.loads(encoded)
        assert contributions == msgspec.to_builtins(scorer.explain(text).contributions)
        # A reader that tells numbers apart finds one type everywhere.
        assert all(isinstance(item["contribution"], float) for item in contributions)
        logit = math.fsum(item["contribution"] for item in contributions) + bias
        assert 1 / (1 + math.exp(-logit)) == pytest.approx(assessment.score, abs=1e-12)


@given(st.text(st.characters(codec=None), max_size=60), st.integers(1, 8))
@example("\ud800 a\udfff", 2)
def test_lone_surrogates_are_tokens_that_nobody_knows(text: str, order: int) -> None:
    portable, compiled = make_pair({"a": 1.0}, order=order)
    assert compiled.assess(text) == pytest.approx(portable.assess(text), rel=1e-12)


def test_an_explanation_can_not_hold_a_lone_surrogate() -> None:
    for scorer in make_pair({}):
        with pytest.raises(UnicodeEncodeError):
            scorer.explain_encoded("\ud800")


@pytest.mark.parametrize(
    "scores",
    [
        [3.4e38, 1.0, -3.4e38],
        [1e-45, 1.0, -1.0],
        [3.4e38, 3.4e38, 3.4e38],
        [16777216.0, 1.0, -16777216.0],
        [0.0, -0.0, 5.0],
    ],
)
def test_numbers_of_any_size_are_added_without_loss(scores: list[float]) -> None:
    numbers = dict(zip("abc", array("f", scores), strict=True))
    portable, compiled = make_pair(numbers, bias=0.0, unknown=0.0, order=1)
    assert compiled.score("a b c") == pytest.approx(portable.score("a b c"), rel=1e-12)
    found = compiled.explain("a b c").contributions
    assert found == portable.explain("a b c").contributions
    assert [item.token for item in found] == ["a", "b", "c"]


def test_every_line_of_a_large_vocabulary_is_found_and_no_other() -> None:
    """Thousands of slots in a row are taken now and then: the search goes on, and ends."""
    random_numbers = random.Random(0)
    terms = [f"{random_numbers.getrandbits(40):x}" for _ in range(50_000)]
    known = {term: float(number) for number, term in enumerate(dict.fromkeys(terms))}
    _, compiled = make_pair(known, bias=0.0, unknown=-1.0, order=1)
    texts = [" ".join(terms[at : at + 1000]) for at in range(0, len(terms), 1000)]
    for text in texts:
        contributions = compiled.explain(text).contributions
        count = len(contributions)
        assert [item.contribution for item in contributions] == [
            known[item.token] / count for item in contributions
        ]
    assert compiled.assess(" ".join(f"{term}x" for term in terms)).unknown == len(terms)


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("order", [1, 8])
def test_a_long_text_of_one_piece(piece: str, order: int) -> None:
    text = (piece * 20_000)[:20_000]
    portable, compiled = make_pair({piece.lower(): 1.0}, order=order)
    assert compiled.assess(text) == pytest.approx(portable.assess(text), rel=1e-12)
    if order == 1:
        assert compiled.explain(text)[1:] == portable.explain(text)[1:]


@given(st.binary(max_size=60), st.integers(1, 8))
def test_bytes_that_are_no_text_do_no_harm(lowered: bytes, order: int) -> None:
    """Python gives UTF-8; this reads parts of characters, too, and nothing beyond the end."""
    lines = lowered.replace(b"\n", b"") + b"\n"
    model = BagLinear(lines, array("f", [1.0]), bias=0.0, unknown=0.0, order=order)
    logit, tokens, unknown = model.assess(lowered)
    assert math.isfinite(logit)
    assert 0 <= unknown <= tokens <= len(lowered)
    assert model.explain(lowered)[:3] == (logit, tokens, unknown)


def test_a_repeated_line_counts_once() -> None:
    model = BagLinear(b"a\nb\na\n", array("f", [1, 2, 3]), bias=0, unknown=0, order=1)
    assert len(model) == 2
    assert model.assess(b"a") == (1.0, 1, 0)


def test_no_lines_at_all() -> None:
    model = BagLinear(b"", array("f"), bias=0.5, unknown=2.0, order=2)
    assert len(model) == 0
    assert model.assess(b"a b") == (2.5, 2, 2)
    assert model.explain(b"") == (0.5, 0, 0, b"[]")


@pytest.mark.parametrize(
    ("lines", "scores", "order", "message"),
    [
        (b"a\nb", array("f", [1, 2]), 1, "the last line has no end"),
        (b"a\nb\n", array("f", [1]), 1, "1 scores for 2 lines"),
        (b"a\n", array("f", [1, 2]), 1, "2 scores for 1 lines"),
        (b"a\n", array("f", [1]), 0, "an order of 0"),
        (b"a\n", array("f", [1]), 9, "an order of 9"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    lines: bytes, scores: "array[float]", order: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BagLinear(lines, scores, bias=0, unknown=0, order=order)


STRIDED = memoryview(array("f", [1, 2, 3]))[::2]


@pytest.mark.parametrize("scores", [array("d", [1]), array("i", [1]), b"\0\0\0\0", STRIDED])
def test_only_float32_numbers_are_taken(scores: "array[float]") -> None:
    for use in (lambda: bag_linear.total(scores), lambda: BagLinear(b"a\n", scores, **NOTHING)):
        with pytest.raises((TypeError, BufferError)):
            use()


NOTHING = {"bias": 0, "unknown": 0, "order": 1}


@pytest.mark.parametrize("origin", [[], [0], "a", [0, "b"], [2**70] * 2])
def test_places_that_do_not_fit_the_text_are_refused(origin: Sequence[int]) -> None:
    model = BagLinear(b"a\n", array("f", [1]), bias=0, unknown=0, order=1)
    with pytest.raises((IndexError, TypeError, OverflowError)):
        model.explain(b"a b", origin)


def test_the_lines_are_kept_while_the_model_lives() -> None:
    content = mmap.mmap(-1, 4096)
    content[:4] = b"a\nb\n"
    model = BagLinear(memoryview(content)[:4], array("f", [1, 2]), bias=0, unknown=0, order=1)
    with pytest.raises(BufferError):
        content.close()
    assert model.assess(b"b") == (2.0, 1, 0)
    del model
    content.close()


def test_a_total_that_is_not_finite_shows() -> None:
    assert bag_linear.total(array("f", [1, 2, 0.5])) == 3.5
    for number in (math.inf, -math.inf, math.nan):
        assert not math.isfinite(bag_linear.total(array("f", [3e38, number, -3e38])))


@given(st.lists(st.sampled_from([b"\n", b"a", b"\r", b"\xff\n"])).map(b"".join))
def test_lines_are_counted(content: bytes) -> None:
    assert bag_linear.count_lines(content) == content.count(b"\n")
    assert bag_linear.count_lines(memoryview(content)) == content.count(b"\n")


def test_a_contribution_reads_as_the_same_number() -> None:
    scores = {"a": 0.1, "b": 1e-30, "c": -3.4e38, "d": 0.0}
    rounded = dict(zip(scores, array("f", scores.values()), strict=True))
    _, compiled = make_pair(rounded, order=1)
    assert compiled.explain("a b c d").contributions == [
        Contribution(term, 2 * at, 2 * at + 1, number / 4)
        for at, (term, number) in enumerate(rounded.items())
    ]


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(1, 300))
@example(1.0, 1)
@example(1 - 2**-24, 1)
@example(-(2.0**-36), 1)
@example(2.0**-37, 1)
@example(1.0, 3 * 2**8)
@example(-0.0, 1)
@example(16777215.0, 300)
@settings(max_examples=2_000, deadline=None)
def test_any_contribution_reads_as_the_same_number(number: float, count: int) -> None:
    """Most are written by a shorter way than others: both ways, and where one becomes the other."""
    _, compiled = make_pair({"a": number}, unknown=-number, order=1)
    known, unknown = (
        compiled.explain_encoded(f"{word} {'b ' * (count - 1)}").contributions for word in "ab"
    )
    assert msgspec.json.decode(known)[0]["contribution"] == number / count
    assert msgspec.json.decode(unknown)[0]["contribution"] == -number / count
    # Every reader of JSON takes them, and as a number with a fraction.
    assert all(isinstance(item["contribution"], float) for item in json.loads(known))


@pytest.mark.parametrize("size", [31, 32, 33, 40])
def test_long_words_are_written_whole(size: int) -> None:
    words = ["x" * size, "y" * size, "z"]
    _, compiled = make_pair({}, order=2)
    found = [item.token for item in compiled.explain(" ".join(words)).contributions]
    assert found == [*words, " ".join(words[:2]), " ".join(words[1:])]


@pytest.mark.parametrize(
    ("compiler", "words"),
    [("no-such-compiler", "install a C++ compiler"), ("false", "false ended with 1")],
)
def test_what_stops_the_compiling_is_told_and_the_module_stays(compiler: str, words: str) -> None:
    before = compile.TARGET.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "functions.predict.compile"],
        cwd=ROOT,
        env={**os.environ, "CXX": compiler},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert compile.TARGET.read_bytes() == before
    assert not list(compile.SOURCE.parent.glob("tmp*"))


def test_without_the_module_the_portable_scorer_serves() -> None:
    """As in a logged model, whose copy of the sources has no compiled one."""
    program = (
        "import sys; sys.modules['functions.predict.bag_linear'] = None\n"
        "from functions.predict import bundle\n"
        "from tests.bundles import make_bundle\n"
        "scorer = bundle.read_bundle(make_bundle()).scorer\n"
        "print(bundle.IS_COMPILED, type(scorer).__name__, scorer.assess('very cool!'))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout.startswith("False Scorer Assessment(score=0.7"), found.stderr
