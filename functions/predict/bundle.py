"""The serving bundle: the files that a model is served from, and their checks.

========================  ====================================================
``manifest.json``         what the model is, where it came from, and the
                          SHA-256 and size of every other file
``vocabulary.txt``        UTF-8, one n-gram a line; the line number, from 0, is
                          its index; line 0 is ``<unk>``
``scores.safetensors``    ``score`` float32[V], ``bias`` float32[1],
                          ``unknown`` float32[1]
``golden.jsonl``          texts with the score that the torch module gave
========================  ====================================================

A bundle is named by the SHA-256 of its manifest, which names all the rest.
Nothing in it is executable: no pickle, in any file.
"""

import codecs
import hashlib
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import safetensors

from functions.predict import tokenizer
from functions.predict.scorer import CompiledScorer, Scorer

try:
    from functions.predict import bag_linear
except ImportError:
    # In a logged model, and wherever it was not compiled.
    IS_COMPILED = False
else:
    IS_COMPILED = True

FORMAT_VERSION = 1
KIND = "bag-linear"
UNKNOWN_TOKEN = "<unk>"  # noqa: S105  # torchtext's name for an unknown token

MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.txt"
SCORES = "scores.safetensors"
GOLDEN = "golden.jsonl"
FILES = (VOCABULARY, SCORES, GOLDEN)

MIN_GOLDEN_TEXTS = 20
MAX_FILE_BYTES = 2 * 1024**3
MAX_ORDER = 8

# Of a file that is looked at piece by piece.
_PIECE_BYTES = 1024**2

_T = TypeVar("_T")

Content = bytes | memoryview
"""What is in a file; a view of bytes saves a copy."""


class BundleError(ValueError):
    """A bundle is incomplete, damaged, or of a form that this version does not serve."""


class Metric(msgspec.Struct, frozen=True):
    """An evaluation metric with its confidence interval (None: not estimated)."""

    value: float
    low: float | None = None
    high: float | None = None


# JSON has larger ones, which could be read but not written again.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Histogram(msgspec.Struct, frozen=True):
    """Counts between `edges`: ``len(counts) == len(edges) - 1``."""

    edges: list[float]
    counts: list[Count]


class FileEntry(msgspec.Struct, frozen=True):
    """Digest (SHA-256, lower-case hex) and size of one file of the bundle."""

    sha256: str
    bytes: int


class Lineage(msgspec.Struct, frozen=True):
    """Where a model came from."""

    model_name: str
    mlflow_run_id: str
    git_commit: str | None
    training_image_digest: str | None
    data_digest: str


class Reference(msgspec.Struct, frozen=True):
    """How the model behaves on its test split, for later comparison with traffic."""

    score: Histogram
    length: Histogram
    """Tokens in a text."""
    unknown_share: Histogram
    """Share of a text's tokens that the vocabulary lacks."""


class Manifest(msgspec.Struct, frozen=True):
    """The content of ``manifest.json``."""

    format_version: int
    kind: str
    model_name: str
    mlflow_run_id: str
    git_commit: str | None
    training_image_digest: str | None
    data_digest: str
    tokenizer: str
    ngrams: int
    threshold: float
    labels: list[str]
    metrics: dict[str, Metric]
    reference: Reference
    files: dict[str, FileEntry]


class GoldenText(msgspec.Struct, frozen=True):
    """A text and the score that the torch module gave it, in float64."""

    text: str
    score: float


class Bundle(NamedTuple):
    """A verified bundle, ready to serve."""

    manifest: Manifest
    digest: str
    """SHA-256 of ``manifest.json``: the name of the bundle."""
    scorer: Scorer


def digest(content: Content) -> str:
    """Return the SHA-256 of `content` as lower-case hex."""
    return hashlib.sha256(content).hexdigest()


def build_bundle(
    *,
    lineage: Lineage,
    vocabulary: Sequence[str],
    scores: Sequence[float],
    bias: float,
    ngrams: int,
    threshold: float,
    metrics: Mapping[str, Metric],
    reference: Reference,
    golden: Iterable[GoldenText],
) -> dict[str, bytes]:
    """Return the files of a bundle, name -> content, already read back and verified.

    Args:
        lineage: where the model came from.
        vocabulary: V n-grams by index; the first is ``<unk>``.
        scores: V numbers, ``w . E[t]``; the first is that of an unknown n-gram.
        bias: logit of an empty text.
        ngrams: longest n-gram.
        threshold: least score, 0 to 1, that is called positive.
        metrics: evaluation metrics by name.
        reference: histograms of the test split.
        golden: at least 20 texts with the torch module's score.

    Raises:
        BundleError: the parts do not fit together.
    """
    tensors = {
        "score": array("f", scores),
        "bias": array("f", [bias]),
        "unknown": array("f", scores[:1]),
    }
    files = {
        VOCABULARY: "".join(f"{ngram}\n" for ngram in vocabulary).encode(),
        SCORES: bytes(
            safetensors.serialize({name: _spec(values) for name, values in tensors.items()})
        ),
        GOLDEN: b"".join(msgspec.json.encode(item) + b"\n" for item in golden),
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        kind=KIND,
        model_name=lineage.model_name,
        mlflow_run_id=lineage.mlflow_run_id,
        git_commit=lineage.git_commit,
        training_image_digest=lineage.training_image_digest,
        data_digest=lineage.data_digest,
        tokenizer=tokenizer.NAME,
        ngrams=ngrams,
        threshold=threshold,
        labels=["negative", "positive"],
        metrics=dict(metrics),
        reference=reference,
        files={name: FileEntry(digest(content), len(content)) for name, content in files.items()},
    )
    files[MANIFEST] = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    read_bundle(files)
    return files


def read_manifest(content: Content) -> Manifest:
    """Return the manifest in `content`, checked.

    Raises:
        BundleError: it is not a manifest that this version can serve; the
            message says which field is wrong.
    """
    manifest = _decode(MANIFEST, content, Manifest)
    for field, value, expected in (
        ("format_version", manifest.format_version, FORMAT_VERSION),
        ("kind", manifest.kind, KIND),
        ("tokenizer", manifest.tokenizer, tokenizer.NAME),
        ("files", sorted(manifest.files), sorted(FILES)),
    ):
        if value != expected:
            raise BundleError(f"{MANIFEST}: {field} is {value!r}, must be {expected!r}")
    if not 1 <= manifest.ngrams <= MAX_ORDER:
        raise BundleError(f"{MANIFEST}: ngrams is {manifest.ngrams}, must be 1 to {MAX_ORDER}")
    if not 0 <= manifest.threshold <= 1:
        raise BundleError(f"{MANIFEST}: threshold is {manifest.threshold}, must be 0 to 1")
    if len(manifest.labels) != 2:
        raise BundleError(f"{MANIFEST}: {len(manifest.labels)} labels, must be 2")
    for name, entry in manifest.files.items():
        if not 0 <= entry.bytes <= MAX_FILE_BYTES:
            raise BundleError(f"{MANIFEST}: {name} of {entry.bytes} bytes is out of bounds")
    return manifest


def verify_file(name: str, content: Content, entry: FileEntry) -> None:
    """Check one file against its entry in the manifest.

    Raises:
        BundleError: size or digest differ; the message gives both.
    """
    if len(content) != entry.bytes:
        raise BundleError(f"{name}: {len(content)} bytes, the manifest says {entry.bytes}")
    if (actual := digest(content)) != entry.sha256:
        raise BundleError(f"{name}: SHA-256 {actual}, the manifest says {entry.sha256}")


def read_bundle(files: Mapping[str, Content]) -> Bundle:
    """Return the bundle in `files`, every part of it verified.

    Args:
        files: name -> content; names that do not belong to a bundle are ignored. The
            vocabulary may be kept, as it is, by the scorer.

    Raises:
        BundleError: a file is missing, differs from the manifest, or is malformed;
            the message names the file.
    """
    for name in (MANIFEST, *FILES):
        if name not in files:
            raise BundleError(f"{name}: missing")
    manifest = read_manifest(files[MANIFEST])
    for name, entry in manifest.files.items():
        verify_file(name, files[name], entry)
    _check_vocabulary(files[VOCABULARY])
    tensors = _read_tensors(files[SCORES])
    scorer = _make_scorer(files[VOCABULARY], tensors, order=manifest.ngrams)
    read_golden(bytes(files[GOLDEN]))  # checked only: serving has no use for them
    return Bundle(manifest, digest(files[MANIFEST]), scorer)


def read_golden(content: bytes) -> list[GoldenText]:
    """Return the golden texts in ``golden.jsonl``.

    Raises:
        BundleError: a line is malformed, a score is no probability, or there are too few.
    """
    golden = []
    for number, line in enumerate(content.splitlines(), start=1):
        item = _decode(f"{GOLDEN}: line {number}", line, GoldenText)
        if not 0 <= item.score <= 1:
            raise BundleError(f"{GOLDEN}: line {number}: score {item.score}, must be 0 to 1")
        golden.append(item)
    if len(golden) < MIN_GOLDEN_TEXTS:
        raise BundleError(f"{GOLDEN}: {len(golden)} texts, must be at least {MIN_GOLDEN_TEXTS}")
    return golden


def _decode(place: str, content: Content, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{place}: {error}") from error
    except RecursionError as error:
        raise BundleError(f"{place}: nested too deeply") from error


def _spec(values: "array[float]") -> safetensors.TensorSpec:
    address, length = values.buffer_info()
    return safetensors.TensorSpec(
        dtype="float32", shape=[length], data_ptr=address, data_len=length * values.itemsize
    )


def _check_vocabulary(content: Content) -> None:
    start = 0
    while start < len(content):
        # Piece by piece: as a string, all of it may take four times its size.
        piece = content[start : start + _PIECE_BYTES]
        is_last = start + len(piece) == len(content)
        try:
            start += codecs.utf_8_decode(piece, "strict", is_last)[1]
        except UnicodeDecodeError as error:
            raise BundleError(
                f"{VOCABULARY}: '{error.encoding}' codec can't decode byte "
                f"0x{piece[error.start]:02x} in position {start + error.start}: {error.reason}"
            ) from error
    if len(content) and content[-1] != ord("\n"):
        raise BundleError(f"{VOCABULARY}: the last line has no end")
    first = f"{UNKNOWN_TOKEN}\n".encode()
    if content[: len(first)] != first:
        raise BundleError(f"{VOCABULARY}: the first line must be {UNKNOWN_TOKEN}")


def _make_scorer(
    vocabulary: Content, tensors: "Mapping[str, memoryview[float]]", *, order: int
) -> Scorer:
    scores, bias, unknown = tensors["score"], tensors["bias"][0], tensors["unknown"][0]

    def check(count: int) -> None:
        if len(scores) != count:
            raise BundleError(
                f"{SCORES}: {len(scores)} scores for the {count} lines of {VOCABULARY}"
            )

    if IS_COMPILED:
        check(bag_linear.count_lines(vocabulary))
        model = bag_linear.BagLinear(vocabulary, scores, bias=bias, unknown=unknown, order=order)
        different = len(model)
        scorer: Scorer = CompiledScorer(model, bias=bias)
    else:
        lines = str(vocabulary, "utf-8").split("\n")[:-1]
        check(len(lines))
        index = _index(lines, scores)
        different = len(index)
        scorer = Scorer(index, bias=bias, unknown=unknown, order=order)
    if different != len(scores):
        raise BundleError(f"{VOCABULARY}: an n-gram stands there twice")
    return scorer


def _index(vocabulary: Sequence[str], values: Iterable[float]) -> dict[str, float]:
    # With a key that is no string, CPython's dictionary keeps each hash beside its key, and
    # passes over other keys without a look at their strings: a third faster to build, a
    # tenth faster to ask.
    scores: dict[Any, float] = {None: 0.0}
    scores.update(zip(vocabulary, values, strict=True))
    del scores[None]
    return scores


def _read_tensors(content: Content) -> "dict[str, memoryview[float]]":
    try:
        tensors = dict(safetensors.deserialize(bytes(content)))
    except safetensors.SafetensorError as error:
        raise BundleError(f"{SCORES}: {error}") from error
    if sorted(tensors) != ["bias", "score", "unknown"]:
        raise BundleError(f"{SCORES}: tensors {sorted(tensors)}, must be bias, score, unknown")
    result: dict[str, memoryview[float]] = {}
    for name, tensor in tensors.items():
        if tensor["dtype"] != "F32" or len(tensor["shape"]) != 1:
            raise BundleError(
                f"{SCORES}: {name} is {tensor['dtype']}{tensor['shape']}, must be F32 of one axis"
            )
        # The format is little-endian, as is every machine that Cloud Run has.
        values = memoryview(tensor["data"]).cast("f")
        # A sum of float32 numbers does not overflow in float64; one that is not finite stays.
        total = bag_linear.total(values) if IS_COMPILED else sum(values)
        if not math.isfinite(total):
            raise BundleError(f"{SCORES}: {name} has a number that is not finite")
        if name != "score" and len(values) != 1:
            raise BundleError(f"{SCORES}: {name} has {len(values)} numbers, must be 1")
        result[name] = values
    return result
