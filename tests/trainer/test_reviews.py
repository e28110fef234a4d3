"""Reviews as people have them: every form that is read, every fault that is named."""

import csv
import gzip
import io
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from hypothesis import given
from hypothesis import strategies as st

from tests.emulators import StorageEmulator
from trainer.reviews import (
    DataError,
    Review,
    Split,
    Tally,
    check_splits,
    position_of,
    read_reviews,
    split_of,
    stream_reviews,
)

REVIEWS = [
    Review("The room was cold, the soup was not.", 4),
    Review('They call it "fresh".\nIt was "fresh" last week.', 1),
    Review("Très bon café 😀\r\nTerrible wait", 3),
    Review("Meh; 2.5 of 5", 2.5),
    Review("Never again", 0),
]

# Enough texts of both kinds for every split.
BASE = [Review(f"visit {number} was as expected", number % 5 + 1) for number in range(300)]

Reviewer = Callable[[bytes], Path]


def as_csv(reviews: list[Review]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["stars", "text"])
    writer.writerows((review.stars, review.text) for review in reviews)
    return text.getvalue().encode()


def as_json_lines(reviews: list[Review]) -> bytes:
    rows = ({"review_id": "x", **review._asdict(), "useful": 0} for review in reviews)
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def file(tmp_path: Path) -> Reviewer:
    """Write a file whose name says nothing of its form."""

    def write(content: bytes) -> Path:
        path = tmp_path / "reviews.data"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def bucket(storage_emulator: StorageEmulator, monkeypatch: pytest.MonkeyPatch) -> storage.Bucket:
    """Return a bucket for reviews, where the libraries find it."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_emulator.url)
    storage_emulator.upload("greenroom-data", "made", {"empty": b""})
    client = storage.Client(project="greenroom", credentials=AnonymousCredentials())
    return client.bucket("greenroom-data")


class TestForms:
    @pytest.mark.parametrize("write", [as_csv, as_json_lines])
    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    def test_what_was_written_is_read(
        self, file: Reviewer, write: Callable[[list[Review]], bytes], pack: Callable[..., bytes]
    ) -> None:
        result = read_reviews(file(pack(write(REVIEWS))))
        assert result.reviews == REVIEWS
        assert result.rows == len(REVIEWS)
        assert not result.skipped
        assert not result.duplicates

    @pytest.mark.parametrize("write", [as_csv, as_json_lines])
    def test_the_digest_is_of_the_content(
        self, file: Reviewer, write: Callable[[list[Review]], bytes]
    ) -> None:
        # Larger than every buffer that it is read through.
        content = write([*REVIEWS, *(Review(f"{n} x" * 500, 3) for n in range(2000))])
        plain = read_reviews(file(content)).digest
        assert len(plain) == 64
        assert read_reviews(file(gzip.compress(content))).digest == plain
        assert read_reviews(file(gzip.compress(content, 1, mtime=1))).digest == plain
        assert read_reviews(file(content + write([Review("more", 1)]))).digest != plain

    @pytest.mark.parametrize("write", [as_csv, as_json_lines])
    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    def test_a_byte_order_mark_is_no_content(
        self, file: Reviewer, write: Callable[[list[Review]], bytes], pack: Callable[..., bytes]
    ) -> None:
        content = b"\xef\xbb\xbf" + write(REVIEWS)
        assert read_reviews(file(pack(content))).reviews == REVIEWS

    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
    def test_line_ends(self, file: Reviewer, end: bytes) -> None:
        content = end.join([b"stars,text", b"5,good", b"1,bad"])
        assert read_reviews(file(content)).reviews == [Review("good", 5), Review("bad", 1)]

    def test_blank_lines_are_no_rows(self, file: Reviewer) -> None:
        content = b'\n\r\n{"stars": 5, "text": "good"}\r\n\n{"stars": 1, "text": "bad"}'
        assert read_reviews(file(content)).rows == 2

    def test_column_order_case_and_more_columns(self, file: Reviewer) -> None:
        content = b"id, Text ,useful,STARS\n1,good,9,5\n2,bad,9,1\n"
        assert read_reviews(file(content)).reviews == [Review("good", 5), Review("bad", 1)]

    @pytest.mark.parametrize("delimiter", [";", "\t"])
    def test_other_delimiters(self, file: Reviewer, delimiter: str) -> None:
        content = f'stars{delimiter}text\r\n5{delimiter}"good, ""very"""\r\n1{delimiter}bad\r\n'
        result = read_reviews(file(content.encode()))
        assert result.reviews == [Review('good, "very"', 5), Review("bad", 1)]

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
    @pytest.mark.parametrize("write", [as_csv, as_json_lines])
    def test_utf_16_with_its_mark(
        self, file: Reviewer, write: Callable[[list[Review]], bytes], encoding: str
    ) -> None:
        mark = "" if encoding == "utf-16" else "\ufeff"
        content = (mark + write(REVIEWS).decode()).encode(encoding)
        assert read_reviews(file(content)).reviews == REVIEWS

    def test_rows_of_windows_1252_among_utf_8(self, file: Reviewer) -> None:
        content = b"stars,text\n5,caf\xc3\xa9 \xf0\x9f\x98\x80\n1,caf\xe9 \x96 5 \x80\n"
        texts = [review.text for review in read_reviews(file(content)).reviews]
        assert texts == ["caf\u00e9 \U0001f600", "caf\u00e9 \u2013 5 \u20ac"]

    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    def test_polarity_as_fasttext_and_torchtext_have_it(
        self, file: Reviewer, pack: Callable[..., bytes]
    ) -> None:
        content = b'"1","Cold.\\nAnd ""slow"", very slow."\n"2","Lovely"\n2,fine\n"3","?"\n"2",""\n'
        result = read_reviews(file(pack(content)), max_bad_share=1)
        assert result.reviews == [
            Review('Cold.\nAnd "slow", very slow.', None, polarity=False),
            Review("Lovely", None, polarity=True),
            Review("fine", None, polarity=True),
        ]
        assert [review.is_positive for review in result.reviews] == [False, True, True]
        assert result.skipped == {
            "with a label that is neither 1 nor 2": 1,
            "without text": 1,
        }

    def test_repeated_texts_count_once(self, file: Reviewer) -> None:
        reviews = [*REVIEWS, Review("never  AGAIN ", 5), REVIEWS[0]]
        result = read_reviews(file(as_csv(reviews)))
        assert result.reviews == REVIEWS
        assert result.duplicates == 2
        assert result.rows == 7


class TestBadRows:
    def test_of_csv(self, file: Reviewer) -> None:
        rows = b"nan,a\n6,b\n-1,c\nfive,d\n,e\n5,\n5,  \n5\n"
        result = read_reviews(file(as_csv(REVIEWS) + rows), max_bad_share=1)
        assert result.reviews == REVIEWS
        assert result.skipped == {
            "with stars outside 0 to 5": 3,
            "with stars that are no number": 2,
            "without text": 3,
        }

    def test_of_json_lines(self, file: Reviewer) -> None:
        bad = [
            b"{",
            b'{"stars": 1, "text": "\xff"}',
            # Ended the reading with RecursionError and with OverflowError once.
            b'{"stars": 1, "text": "a", "other": ' + b"[" * 100_000,
            b'{"stars": 1' + b"0" * 400 + b', "text": "a"}',
            b'["stars", "text"]',
            b'{"stars": 1}',
            b'{"stars": 1, "text": ["a"]}',
            b'{"text": "a"}',
            b'{"stars": true, "text": "a"}',
            b'{"stars": NaN, "text": "a"}',
            rb'{"stars": 1, "text": "\ud800"}',
        ]
        content = as_json_lines(REVIEWS) + b"\n".join(bad)
        result = read_reviews(file(content), max_bad_share=1)
        assert result.reviews == REVIEWS
        assert result.skipped == {
            "not JSON": 2,
            "not UTF-8": 1,
            "with stars outside 0 to 5": 2,
            "not an object": 1,
            "without text": 2,
            "without stars": 2,
            "with lone surrogates": 1,
        }

    def test_too_many_are_refused_with_their_reasons(self, file: Reviewer) -> None:
        content = as_csv(BASE[:95]) + b"9,a\n9,b\nx,c\n9,d\n5,\n"
        path = file(content)
        assert read_reviews(path, max_bad_share=0.05).skipped.total() == 5
        with pytest.raises(DataError) as caught:
            read_reviews(path, max_bad_share=0.04)
        for words in (
            str(path),
            "5 of 100 rows",
            "3 with stars outside 0 to 5",
            "1 with stars that are no number",
            "1 without text",
            "--max-bad-share",
        ):
            assert words in str(caught.value)

    def test_repeated_rows_are_not_bad(self, file: Reviewer) -> None:
        assert read_reviews(file(as_csv(REVIEWS * 10)), max_bad_share=0).duplicates == 45


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            pytest.param(b"", "no reviews", id="empty"),
            pytest.param(gzip.compress(b""), "no reviews", id="empty gzip"),
            pytest.param(b"stars,text\n", "no reviews", id="header only"),
            pytest.param(b"5,good\n1,bad\n", "begins with '5,good'", id="no header"),
            pytest.param(b"stars|text\n5|good\n", "neither CSV", id="bars"),
            pytest.param(b'[{"stars": 5, "text": "x"}]', "neither CSV", id="JSON array"),
            pytest.param("Étoiles,text\n5,x\n".encode("cp1252"), "'Étoiles,text'", id="cp1252"),
            pytest.param(as_csv(BASE[2:5]), "of one kind: 3 positive [(]", id="positive only"),
            pytest.param(as_csv(BASE[:2]), "of one kind: 2 negative [(]", id="negative only"),
            pytest.param(
                b"stars,text\n5,x\n1,X\n1,x \n", "1 positive, without 2 repeated", id="one text"
            ),
            pytest.param(gzip.compress(as_csv(BASE))[:-9], "can't be read", id="truncated gzip"),
            pytest.param(b"\x1f\x8b" + b"x" * 99, "can't be read", id="no gzip after all"),
            pytest.param(bytes(range(1, 256)) * 99, "not text", id="binary"),
            pytest.param(bytes(9999), "not text", id="zeros"),
            pytest.param(b"stars,text\n5," + b"x" * 17 * 1024**2, "field larger", id="huge field"),
        ],
    )
    def test_with_the_file_and_the_reason(
        self, file: Reviewer, content: bytes, reason: str
    ) -> None:
        path = file(content)
        with pytest.raises(DataError, match=reason) as caught:
            read_reviews(path, max_bad_share=1)
        assert str(caught.value).startswith(f"{path}: ")
        # A binary file's first line may be all of it.
        assert len(str(caught.value)) < 500

    def test_a_damaged_gzip(self, file: Reviewer) -> None:
        """Ended in zlib.error once, which no one expected."""
        packed = bytearray(gzip.compress(random.Random(0).randbytes(50_000).hex().encode()))
        packed[2000:2100] = bytes(100)
        with pytest.raises(DataError):
            read_reviews(file(bytes(packed)))

    def test_a_folder_and_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="directory"):
            read_reviews(tmp_path)
        with pytest.raises(DataError, match="No such file"):
            read_reviews(tmp_path / "missing.csv")


class TestSplit:
    def split(self, text: str) -> Split:
        return split_of(position_of(text), validation_share=0.2, test_share=0.1)

    def test_shares_are_about_right(self) -> None:
        counts = Counter(self.split(f"text {number}") for number in range(5000))
        assert counts[Split.VALIDATION] == pytest.approx(1000, rel=0.15)
        assert counts[Split.TEST] == pytest.approx(500, rel=0.15)

    def test_a_text_stays_where_it_is(self) -> None:
        """Fixed once and for all: else a model meets in its test what an earlier one learned."""
        texts = [f"text {number}" for number in range(20)]
        assert "".join(str(int(self.split(text))) for text in texts) == "00000011000122100102"

    @given(st.text(st.characters(max_codepoint=127)))
    def test_variants_of_a_text_stay_together(self, text: str) -> None:
        variants = [text, text.swapcase(), f" {text}\n", text.replace(" ", " \t ")]
        assert len(set(map(position_of, variants))) == 1

    @given(st.lists(st.text(min_size=1).filter(str.strip), unique_by=str.lower, max_size=20))
    def test_the_position_is_that_of_the_text(self, texts: list[str]) -> None:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            rows = [Review(text, 5) for text in texts]
            file.write(as_json_lines([*BASE, *rows]))
            file.flush()
            for review, position in stream_reviews(Path(file.name), Tally(), max_bad_share=1):
                assert position == position_of(review.text)

    @pytest.mark.parametrize(
        "missing", [(split, positive) for split in Split for positive in (True, False)]
    )
    def test_a_split_of_one_kind_is_refused(self, missing: tuple[Split, bool]) -> None:
        kinds = {(split, positive): 3 for split in Split for positive in (True, False)}
        check_splits("reviews.csv", kinds)
        del kinds[missing]
        name = missing[0].name.lower()
        with pytest.raises(
            DataError, match=f"the {name} split has [03] negative and [03] positive"
        ):
            check_splits("reviews.csv", kinds)


class TestCloudStorage:
    def test_an_object_is_read_as_a_file_is(self, file: Reviewer, bucket: storage.Bucket) -> None:
        content = as_csv([*REVIEWS, *BASE])
        for name, stored, encoding in (
            ("plain", content, None),
            ("packed.gz", gzip.compress(content), None),
            # Marked, so that most clients would unpack it on the way.
            ("marked.gz", gzip.compress(content), "gzip"),
        ):
            blob = bucket.blob(f"reviews/{name}")
            blob.content_encoding = encoding
            blob.upload_from_string(stored)
            result = read_reviews(f"gs://{bucket.name}/reviews/{name}")
            assert result.generation == bucket.get_blob(f"reviews/{name}").generation
            assert replace(result, generation=None) == read_reviews(file(content)), name

    @pytest.mark.parametrize(
        ("uri", "reason"),
        [
            ("gs://{bucket}/missing.csv", "there is no such object"),
            ("gs://no-such-bucket/reviews.csv", "no such object|Cloud Storage"),
            ("gs://{bucket}", "is not gs://BUCKET/OBJECT"),
        ],
    )
    def test_what_is_not_there_is_named(
        self, bucket: storage.Bucket, uri: str, reason: str
    ) -> None:
        uri = uri.format(bucket=bucket.name)
        with pytest.raises(DataError, match=reason) as caught:
            read_reviews(uri)
        assert uri in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_five_gigabytes_are_streamed(tmp_path: Path) -> None:
    """One that was read whole would need over 5 GB; the packed file is a few megabytes."""
    path = tmp_path / "large.csv.gz"
    texts = [f"{n} " + "the food was good and the wait was long " * 2500 for n in range(50)]
    block = as_csv([Review(text, n % 5 + 1) for n, text in enumerate(texts)])
    rows = block.partition(b"\r\n")[2]
    repeats = 5 * 10**9 // len(rows) + 1
    packed = gzip.compress(rows, 1)
    with path.open("wb") as out:
        out.write(gzip.compress(b"stars,text\r\n"))
        for _ in range(repeats):
            out.write(packed)
    script = (
        "import sys; from pathlib import Path; "
        "from trainer.reviews import read_reviews; "
        "result = read_reviews(Path(sys.argv[1])); "
        # Not getrusage: its peak begins with that of the process that forked this one.
        "status = Path('/proc/self/status').read_text(); "
        "print(result.rows, status.partition('VmHWM:')[2].split()[0])"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True
    ).stdout
    count, kilobytes = map(int, output.split())
    assert count == repeats * len(texts)
    assert kilobytes < 300 * 1024
