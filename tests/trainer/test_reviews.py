"""Reviews as people have them: every form that is read, every fault that is named."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.reviews import DataError, Review, read_reviews, split

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
            "not JSON": 3,
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
            pytest.param(b"", "neither CSV", id="empty"),
            pytest.param(gzip.compress(b""), "neither CSV", id="empty gzip"),
            pytest.param(b"stars,text\n", "no reviews", id="header only"),
            pytest.param(b"5,good\n1,bad\n", "begins with '5, good'", id="no header"),
            pytest.param(b"stars;text\n5;good\n", "neither CSV", id="semicolons"),
            pytest.param(b'[{"stars": 5, "text": "x"}]', "neither CSV", id="JSON array"),
            pytest.param(as_csv(BASE).decode().encode("utf-16"), "neither CSV", id="UTF-16"),
            pytest.param(as_csv(BASE[2:5]), "of one kind", id="positive only"),
            pytest.param(as_csv(BASE[:2]), "of one kind", id="negative only"),
            pytest.param(gzip.compress(as_csv(BASE))[:-9], "can't be read", id="truncated gzip"),
            pytest.param(b"\x1f\x8b" + b"x" * 99, "can't be read", id="no gzip after all"),
            pytest.param(bytes(range(1, 256)) * 99, "neither CSV", id="binary"),
            pytest.param(bytes(9999), "neither CSV", id="zeros"),
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
    def shares(self, reviews: list[Review]) -> dict[str, str]:
        splits = split(reviews, validation_share=0.2, test_share=0.2)
        return {review.text: name for name, part in splits._asdict().items() for review in part}

    def test_shares_are_about_right_and_nothing_is_lost(self) -> None:
        reviews = [Review(f"text {number}", number % 5 + 1) for number in range(5000)]
        splits = split(reviews, validation_share=0.2, test_share=0.1)
        assert sorted(review for part in splits for review in part) == sorted(reviews)
        assert len(splits.validation) == pytest.approx(1000, rel=0.15)
        assert len(splits.test) == pytest.approx(500, rel=0.15)

    @given(st.lists(st.text(), max_size=20), st.randoms(use_true_random=False))
    def test_a_text_stays_where_it_is(self, texts: list[str], chance: random.Random) -> None:
        reviews = [*BASE, *(Review(text, chance.randrange(6)) for text in texts)]
        once = self.shares(reviews)
        chance.shuffle(reviews)
        again = self.shares(reviews)
        alone = self.shares(BASE)
        assert once == again
        assert alone.items() <= once.items()

    @given(st.text(st.characters(max_codepoint=127)))
    def test_variants_of_a_text_stay_together(self, text: str) -> None:
        variants = [text, text.swapcase(), f" {text}\n", text.replace(" ", " \t ")]
        shares = self.shares([*BASE, *(Review(variant, 5) for variant in variants)])
        assert len({shares[variant] for variant in variants}) == 1

    @pytest.mark.parametrize("reviews", [[], BASE[:10], [Review(f"{n}", 5) for n in range(500)]])
    def test_too_few_to_split(self, reviews: list[Review]) -> None:
        with pytest.raises(DataError, match=r"split has .* give more data"):
            split(reviews, validation_share=0.1, test_share=0.1)
