"""Hostile input: requests by the API's description, and bundles that no trainer would write."""

import json
import math
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from functions.predict import app
from functions.predict.bundle import (
    GOLDEN,
    MANIFEST,
    SCORES,
    UNKNOWN_TOKEN,
    VOCABULARY,
    Bundle,
    BundleError,
    digest,
    read_bundle,
)
from functions.predict.scorer import Scorer
from tests.bundles import make_bundle
from tests.predict.conftest import ROOT, Service

DESCRIPTION = ROOT / "functions/predict/openapi.json"
FILES = make_bundle()
# What the reader may take, in Python's own memory, for each byte that it is given.
BYTES_A_BYTE = 100
ANY_BYTES = 16 * 1024**2


SERVED = app.create_app(read_bundle(FILES), model_version="10", revision="predict-00007-abc")

api = schemathesis.openapi.from_path(DESCRIPTION)


@api.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_requests_are_answered_as_described(case: Case[Any], service: Service) -> None:
    response = case.call(base_url=service.url, timeout=20)
    # A batch to explain has limits that its description gives in words; and of a batch that is
    # both too large and wrong, the first is told, by a status that schemathesis doesn't expect.
    is_too_large = case.path == "/predict:batch" and response.status_code == 413
    case.validate_response(
        response,
        excluded_checks=[negative_data_rejection, positive_data_acceptance] if is_too_large else [],
    )


@api.exclude(path_regex="^/(health|ping|openapi.json)$").parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_requests_without_a_model_are_answered_as_described(
    case: Case[Any], empty_service: Service
) -> None:
    response = case.call(base_url=empty_service.url, timeout=20)
    assert response.status_code in (405, 503)
    case.validate_response(response, excluded_checks=[not_a_server_error])


PATHS = ["/predict", "/predict:batch", "/model", "/health", "/ready", "/ping", "/openapi.json"]
BODIES = (
    *(
        b"",
        b"{}",
        b"null",
        b'{"text":1}',
        b'{"texts":"a"}',
        b'{"text":"',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
    ),
    *(b'{"text":"\\ud800"}', b'{"texts":["a","\\udfff"]}', b'{"texts":["\xed\xa0\x80"]}', b"NaN"),
    *(
        b'{"text":"a","text":"b"}',
        b'{"text":"a"}{"text":"b"}',
        b'{"texts":["a",null]}',
        b'{"text":',
    ),
    *(b"[" * 50_000, b'{"text":' + b"[" * 50_000, b'{"texts":[' * 20_000, b'{"a":' * 50_000),
    *(b'{"texts":[' + b'"",' * 1_000 + b'""]}', b"9" * 5_000, b'{"text":' + b"9" * 5_000 + b"}"),
)


@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "", "get", "\u0130"]),
    path=st.sampled_from(PATHS) | st.text(max_size=20),
    query=st.sampled_from([b"explain=true", b"explain=1&explain=%ff", b"&=&", b"%"]) | st.binary(),
    headers=st.lists(st.tuples(st.sampled_from([b"traceparent", b"content-length"]), st.binary())),
    parts=st.lists(st.sampled_from(BODIES) | st.binary(), max_size=3),
    is_cut=st.booleans(),
)
@settings(max_examples=300, deadline=None)
async def test_any_http_request_gets_one_whole_answer(
    method: str,
    path: str,
    query: bytes,
    headers: list[tuple[bytes, bytes]],
    parts: list[bytes],
    is_cut: bool,
) -> None:
    """As a server would hand it over, whatever a client has sent."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": part, "more_body": True} for part in parts
    ]
    messages.append({"type": "http.disconnect"} if is_cut else {"type": "http.request"})
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    await SERVED({**scope, "query_string": query}, receive, send)
    start, body = sent
    assert start["status"] in (200, 400, 404, 405, 413, 422)
    kind = dict(start["headers"])[b"content-type"]
    assert kind == b"application/json" if start["status"] == 200 else b"application/problem+json"
    assert isinstance(json.loads(body["body"]), dict)


@pytest.mark.parametrize(
    "body",
    [
        b'{"texts":["\\ud800"' + b',{"":{}}' * 100_000 + b"]}",
        b'{"texts":["\\ud800"' + b",[]" * 300_000 + b"]}",
        b'{"texts":[' + b'"",' * 300_000,
        b'{"texts":[' + b'"\\u0000",' * 100_000 + b"1]}",
        b'{"text":"' + b"\\u0000" * 150_000 + b'"}',
        b'{"text":"' + b"a" * 2 * 1024**2 + b'"}',
    ],
    ids=["objects", "lists", "open", "escapes", "long", "too long"],
)
@pytest.mark.parametrize("path", ["/predict", "/predict:batch"])
async def test_a_hostile_body_takes_no_more_memory_than_its_size_allows(
    path: str, body: bytes
) -> None:
    transport = httpx.ASGITransport(SERVED)
    async with httpx.AsyncClient(transport=transport, base_url="http://predict") as client:
        tracemalloc.start()
        try:
            response = await client.post(path, content=body)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert response.status_code in (413, 422)
    assert len(response.content) < 1_000
    assert peak < BYTES_A_BYTE * len(body) + ANY_BYTES


def test_the_description_gives_the_limits_in_force() -> None:
    described = json.loads(DESCRIPTION.read_text())
    schemas = described["components"]["schemas"]
    assert schemas["Question"]["properties"]["text"]["maxLength"] == app.MAX_TEXT
    texts = schemas["BatchQuestion"]["properties"]["texts"]
    assert texts["maxItems"] == app.MAX_BATCH_TEXTS
    assert texts["items"]["maxLength"] == app.MAX_TEXT


def sealed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return `files` with a manifest whose digests fit: hostile, not damaged."""
    manifest = json.loads(FILES[MANIFEST])
    manifest["files"] = {
        name: {"sha256": digest(files[name]), "bytes": len(files[name])}
        for name in (VOCABULARY, SCORES, GOLDEN)
    }
    return {**files, MANIFEST: json.dumps(manifest).encode()}


def read(files: Mapping[str, bytes]) -> Bundle | None:
    """Return the bundle, or None when it is refused; nothing else may happen.

    Its memory is bounded by the size of what was given, whatever that says of itself.
    """
    size = sum(map(len, files.values()))
    bundle, message = None, MANIFEST
    tracemalloc.start()
    try:
        bundle = read_bundle(files)
    except BundleError as error:
        message = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert message.split(":")[0] in files
    assert peak < BYTES_A_BYTE * size + ANY_BYTES
    return bundle


def assert_serves(bundle: Bundle, text: str) -> None:
    score = bundle.scorer.score(text)
    assert 0 <= score <= 1
    explanation = bundle.scorer.explain(text)
    assert math.isclose(explanation.score, score, abs_tol=1e-9)
    for item in explanation.contributions:
        assert math.isfinite(item.contribution)
        assert 0 <= item.start < item.end <= len(text)


def safetensors_file(header: object, data: bytes, *, length: int | None = None) -> bytes:
    """Return a safetensors file; `length` is what it says of its header's."""
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


HUGE = [2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1]
sizes = st.integers(0, 40) | st.sampled_from(HUGE)
tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "I8", "BOOL", "F8_E4M3", "F4", "nonsense", "", 3]),
        "shape": st.lists(sizes, max_size=4) | st.just([0] * 1000) | st.just([2**33, 2**33]),
        "data_offsets": st.lists(sizes, min_size=1, max_size=3) | st.just([-1, 0]),
    }
)
names = st.sampled_from(["score", "bias", "unknown", "__metadata__", "", "score\0", "\ud800"])


@given(
    st.dictionaries(names, tensors | st.just({}) | st.just([]), max_size=5),
    st.binary(max_size=64),
    st.none() | sizes,
)
@settings(max_examples=200, deadline=None)
def test_hostile_tensors_are_refused(
    header: dict[str, Any], data: bytes, length: int | None
) -> None:
    assert read(sealed({**FILES, SCORES: safetensors_file(header, data, length=length)})) is None


def spec(first: int, count: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [count], "data_offsets": [4 * first, 4 * (first + count)]}


def with_scores(vocabulary: bytes, scores: list[float], bias: float) -> dict[str, bytes]:
    count = len(scores)
    header = {"score": spec(0, count), "bias": spec(count, 1), "unknown": spec(count + 1, 1)}
    data = struct.pack(f"<{count + 2}f", *scores, bias, scores[0] if scores else 0.0)
    return sealed({**FILES, VOCABULARY: vocabulary, SCORES: safetensors_file(header, data)})


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=6),
    st.floats(width=32),
    st.text("abc .!\"'", max_size=60),
)
@example([3.4e38] * 6, 3.4e38, "a a b c")
@example([-3.4e38] * 6, -3.4e38, "a a b c")
@settings(max_examples=200, deadline=None)
def test_scores_are_finite_or_refused(scores: list[float], bias: float, text: str) -> None:
    lines = [UNKNOWN_TOKEN, "a", "b", "a b", "c", "!"][: len(scores)]
    files = with_scores("".join(f"{line}\n" for line in lines).encode(), scores, bias)
    bundle = read(files)
    assert (bundle is not None) == all(map(math.isfinite, [*scores, bias]))
    if bundle is not None:
        assert_serves(bundle, text)


# Line ends of every kind, NUL, a byte order mark, parts of characters, look-alikes.
PIECES = (
    *(b"a", b" ", b"\n", b"\r", b"\r\n", b"\0", b"\x0b", b"\x1c", b"\xc2\x85", b"\xe2\x80\xa8"),
    *(b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe2\x80"),
    *(UNKNOWN_TOKEN.encode(), "é".encode(), "e\u0301".encode(), "İ".encode(), b"good"),
)


@given(
    st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join),
    st.booleans(),
    st.text(max_size=40),
)
@settings(max_examples=200, deadline=None)
def test_a_hostile_vocabulary_is_served_or_refused(
    noise: bytes, is_started: bool, text: str
) -> None:
    content = UNKNOWN_TOKEN.encode() + b"\n" + noise + b"\n" if is_started else noise
    bundle = read(with_scores(content, [1.0] * content.count(b"\n"), 0.0))
    if bundle is not None:
        # Lines end with "\n" alone; no two are the same; all are text.
        lines = content.decode().split("\n")[:-1]
        assert lines[0] == UNKNOWN_TOKEN
        assert len(set(lines)) == len(lines)
        assert_serves(bundle, text)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from([2**53 + 1, 2**64, -(2**64), 10**400, "0" * 64, "\0", "../../etc/passwd"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the place of every value in a JSON document."""
    if isinstance(value, dict):
        return [path, *(p for key, item in value.items() for p in paths(item, (*path, key)))]
    if isinstance(value, list):
        return [path, *(p for at, item in enumerate(value) for p in paths(item, (*path, at)))]
    return [path]


@given(st.sampled_from(paths(json.loads(FILES[MANIFEST]))), values, st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_manifest_with_any_value_anywhere_is_served_or_refused(
    path: tuple[str | int, ...], value: object, is_removed: bool
) -> None:
    manifest = json.loads(FILES[MANIFEST])
    if not path:
        manifest = value
    else:
        place = manifest
        for key in path[:-1]:
            place = place[key]
        if is_removed:
            del place[path[-1]]
        else:
            place[path[-1]] = value
    bundle = read({**FILES, MANIFEST: json.dumps(manifest).encode()})
    if bundle is not None:
        # GET /model can write what was read.
        msgspec.json.encode(bundle.manifest)
        assert_serves(bundle, "not good")


@given(st.sampled_from([MANIFEST, VOCABULARY, SCORES, GOLDEN]), st.data())
@settings(max_examples=200, deadline=None)
def test_truncated_flipped_and_repeated_bytes_are_served_or_refused(
    name: str, data: st.DataObject
) -> None:
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        match data.draw(st.sampled_from(["truncate", "flip", "repeat", "zero"])):
            case "truncate":
                del content[at:]
            case "flip" if at < len(content):
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "repeat":
                content[at:at] = content[: data.draw(st.integers(0, 64))] * 3
            case _:
                content[at : at + 8] = bytes(8)
    files = {**FILES, name: bytes(content)}
    bundle = read(files if name == MANIFEST else sealed(files))
    if bundle is not None:
        assert_serves(bundle, "not good, but cool!")


MIB = 1024**2
LARGE = {
    "nothing but line ends": (VOCABULARY, b"\n" * MIB),
    "one line": (VOCABULARY, UNKNOWN_TOKEN.encode() + b"\n" + b"a" * MIB + b"\n"),
    "short lines": (
        VOCABULARY,
        "".join(f"{line}\n" for line in (UNKNOWN_TOKEN, *map(chr, range(0x4E00, 0x9FA5)))).encode(),
    ),
    "a header of spaces": (SCORES, struct.pack("<Q", MIB) + b"{" + b" " * (MIB - 1)),
    "a header of brackets": (SCORES, struct.pack("<Q", MIB) + b"[" * MIB),
    "many tensors": (
        SCORES,
        safetensors_file({f"{n}": {**spec(0, 0)} for n in range(20_000)}, b""),
    ),
    "many golden texts": (GOLDEN, b'{"text":"","score":0}\n' * 40_000),
    "empty golden lines": (GOLDEN, b"\n" * MIB),
    "a golden text of escapes": (GOLDEN, b'{"text":"' + b"\\u0000" * 200_000 + b'","score":0}\n'),
    "a manifest of brackets": (MANIFEST, b"[" * MIB),
    "many metrics": (
        MANIFEST,
        FILES[MANIFEST].replace(
            b'"metrics": {',
            b'"metrics": {' + b"".join(b'"%d": {"value": 0},' % n for n in range(40_000)),
        ),
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_hostile_files_take_no_more_memory_than_their_size_allows(name: str) -> None:
    file, content = LARGE[name]
    assert len(content) > MIB / 20
    files = {**FILES, file: content}
    read(files if file == MANIFEST else sealed(files))


READ_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from functions.predict.bundle import BundleError, read_bundle
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 1024**2,) * 2)
for folder in sys.argv[1:]:
    try:
        read_bundle({path.name: path.read_bytes() for path in Path(folder).iterdir()})
    except BundleError as error:
        print("refused:", error)
"""


def test_what_a_file_says_of_its_size_reserves_no_memory(tmp_path: Path) -> None:
    """Python's own figures leave out what compiled code reserves: this process may have little."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    claims = [
        safetensors_file({}, b"", length=size) for size in (2**20, *HUGE, 99_999_999, 100_000_000)
    ]
    for size in HUGE:
        for wrong in ({"shape": [size]}, {"data_offsets": [0, size]}, {"shape": [size, size]}):
            header = {"score": {**empty, **wrong}, "bias": empty, "unknown": empty}
            claims.append(safetensors_file(header, b""))
    folders = []
    for number, content in enumerate(claims):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in sealed({**FILES, SCORES: content}).items():
            (folder / name).write_bytes(data)
        folders.append(str(folder))
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_LITTLE_MEMORY, *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(claims)
    assert all(line.startswith(f"refused: {SCORES}: ") for line in lines)


@pytest.mark.parametrize("order", [1, 2, 8])
@given(
    st.text(max_size=200) | st.text("(\".!?;: \u0130\u00a0\x1c<br/>'", max_size=400),
    st.dictionaries(
        st.text(max_size=4), st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5
    ),
)
@settings(max_examples=80, deadline=None)
def test_any_text_is_scored(order: int, text: str, scores: dict[str, float]) -> None:
    scorer = Scorer(scores, bias=0.5, unknown=-1.0, order=order)
    assert_serves(read_bundle(FILES)._replace(scorer=scorer), text)


@pytest.mark.parametrize("piece", ["(", "a", '"', "'", "İ", "<br />", " ", "\u2028", "a.", "𝒳"])
def test_the_longest_text_of_one_piece_is_scored(piece: str) -> None:
    text = (piece * app.MAX_TEXT)[: app.MAX_TEXT]
    assert_serves(read_bundle(FILES), text)
