# cython: language_level=3, cdivision=True
"""A bag-linear model, compiled: the vocabulary's index, and the tokens of a text looked up in it.

The index is an open hash table over the bytes of ``vocabulary.txt``. A slot holds where a
line starts, 32 bits of its hash, and its score. What is found is compared with the line
itself: no hash is ever taken for an n-gram. The hash is Python's own for bytes, with a key
that each process draws anew: neither a vocabulary nor a text can be made to collide.

A text's tokens are written one after the other with a space between: each of its n-grams is
a run of those bytes, and none is copied.
"""

from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_ND,
    PyBUF_SIMPLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, PyObject
from libc.math cimport NAN, isnan
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy
from libcpp.vector cimport vector
from posix.mman cimport (
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    munmap,
)

cdef extern from "Python.h":
    Py_hash_t _Py_HashBytes(const void* source, Py_ssize_t length)
    bint Py_UNICODE_ISSPACE(Py_UCS4 character)
    # Without counting references: the bytes are written, and get their size, while they are new.
    PyObject* PyBytes_FromStringAndSize(const char* content, Py_ssize_t size)
    int _PyBytes_Resize(PyObject** content, Py_ssize_t size)

cdef extern from *:
    """
    #include <charconv>
    #include <cstring>

    template <std::size_t size>
    static inline char* write_literal(char* at, const char (&literal)[size]) {
        std::memcpy(at, literal, size - 1);
        return at + size - 1;
    }

    /* Most are short; then what follows them is copied, too, and written over. */
    static inline char* write_bytes(char* at, const char* bytes, std::size_t size) {
        if (size <= 32)
            std::memcpy(at, bytes, 32);
        else
            std::memcpy(at, bytes, size);
        return at + size;
    }

    /* Two digits at a time. */
    static const char PAIRS[] =
        "00010203040506070809101112131415161718192021222324"
        "25262728293031323334353637383940414243444546474849"
        "50515253545556575859606162636465666768697071727374"
        "75767778798081828384858687888990919293949596979899";

    static inline char* write_pair(char* at, std::uint32_t value) {
        std::memcpy(at, PAIRS + 2 * value, 2);
        return at + 2;
    }

    /* All eight digits at once: halves, quarters and eighths of a word of 64 bits, each divided
       by multiplying and shifting, which is exact for numbers as small as these. */
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first digit is the lowest byte");
    static inline char* write_eight(char* at, std::uint32_t value) {
        std::uint64_t fours = value / 10000 | static_cast<std::uint64_t>(value % 10000) << 32;
        std::uint64_t upper = (fours * 10486 >> 20) & 0x0000007F0000007Fu;
        std::uint64_t twos = upper | (fours - 100 * upper) << 16;
        upper = (twos * 103 >> 10) & 0x000F000F000F000Fu;
        std::uint64_t ones = upper | (twos - 10 * upper) << 8;
        ones |= 0x3030303030303030u;
        std::memcpy(at, &ones, sizeof ones);
        return at + sizeof ones;
    }

    static inline char* write_count(char* at, std::int64_t value) {
        if (value < 0 || value >= 10000)
            return std::to_chars(at, at + 20, value).ptr;
        std::uint32_t count = static_cast<std::uint32_t>(value);
        if (count >= 1000)
            return write_pair(write_pair(at, count / 100), count % 100);
        if (count >= 100) {
            *at = static_cast<char>('0' + count / 100);
            return write_pair(at + 1, count % 100);
        }
        if (count >= 10)
            return write_pair(at, count);
        *at = static_cast<char>('0' + count);
        return at + 1;
    }

    /* The shortest digits that read back as `value`, which is finite; never like an integer's. */
    static inline char* write_any_number(char* at, double value) {
        char* end = std::to_chars(at, at + 30, value).ptr;
        for (char* digit = at; digit < end; ++digit)
            if (*digit == '.' || *digit == 'e')
                return end;
        return write_literal(end, ".0");
    }

    /* Powers of 5, from the 18th to the last one below 2^63. */
    static const std::uint64_t POWERS_OF_5[] = {
        3814697265625u,       19073486328125u,       95367431640625u,      476837158203125u,
        2384185791015625u,    11920928955078125u,    59604644775390625u,   298023223876953125u,
        1490116119384765625u, 7450580596923828125u,
    };

    /* Digits that read back as `value`, which is finite; never like an integer's.

       Shares of a logit are small, and there are hundreds in an answer: from 2^-36 to 1 all
       take the same few steps. They get 17 digits or 18 after their zeros; 17 always read back
       as the same double (IEEE 754-2019, 5.12.2). Those are the integer nearest to
       value * 10^places == significand * 5^places / 2^shift, whose product fits 128 bits. */
    static inline char* write_number(char* at, double value) {
        std::uint64_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        int power = static_cast<int>(bits >> 52 & 0x7FF) - 1023; /* 2^power <= |value| */
        if (power < -36 || power > -1)
            return write_any_number(at, value);
        /* 0.30103 is a little more than log10(2): 10^16 <= 2^power * 10^places < 10^18. */
        int places = 16 + (-power * 30103 + 99999) / 100000;
        if (places < 18)
            places = 18;
        std::uint64_t significand = (bits & ((std::uint64_t{1} << 52) - 1)) | std::uint64_t{1} << 52;
        int shift = 52 - power - places;
        unsigned __int128 product =
            static_cast<unsigned __int128>(significand) * POWERS_OF_5[places - 18];
        product += static_cast<unsigned __int128>(1) << (shift - 1);
        std::uint64_t digits = static_cast<std::uint64_t>(product >> shift);
        *at = '-';
        at += bits >> 63;
        std::memcpy(at, "0.00000000000000", 16);
        at += 2 + places - 18;
        std::uint64_t head = digits / 100000000u;
        at = write_pair(at, static_cast<std::uint32_t>(head / 100000000u));
        at = write_eight(at, static_cast<std::uint32_t>(head % 100000000u));
        return write_eight(at, static_cast<std::uint32_t>(digits % 100000000u));
    }
    """
    char* write_literal(char* at, const char* literal)
    char* write_bytes(char* at, const char* content, size_t size)
    char* write_count(char* at, int64_t value)
    char* write_number(char* at, double value)
    void prefetch "__builtin_prefetch"(const void* address)


cdef enum:
    # Where a line starts, and one more, fit 32 bits.
    MAX_BYTES = 2147483648
    MAX_ORDER = 8
    # So many accesses to memory are under way at a time.
    BLOCK = 32
    # What an entry of an explanation takes at most, apart from its n-gram.
    ENTRY_BYTES = 128
    # What JSON makes of a byte at most.
    ESCAPED_BYTES = 6

cdef enum Kind:
    ORDINARY
    ESCAPED  # ordinary, but not in JSON
    SPACE
    ALONE
    QUOTE
    LESS_THAN
    BEYOND_ASCII

cdef struct Slot:
    uint32_t place  # where the line starts, and one more; 0: the slot is free
    uint32_t fingerprint
    float score

cdef struct Term:
    const char* start
    Py_ssize_t length
    uint64_t hash
    Slot* slot

cdef struct Token:
    # Its bytes, among those of all tokens.
    Py_ssize_t start
    Py_ssize_t end
    # The code points that it was made from: the first, and one past the last.
    int64_t first
    int64_t last

cdef uint8_t[256] KINDS


cdef int _fill_kinds() except -1:
    cdef int byte
    for byte in range(256):
        if byte >= 0xC2:  # begins a code point in UTF-8, which may be a space
            KINDS[byte] = BEYOND_ASCII
        elif byte < 128 and (Py_UNICODE_ISSPACE(byte) or byte in b";:"):
            KINDS[byte] = SPACE
        elif byte in b".,()!?'":
            KINDS[byte] = ALONE
        elif byte < 0x20 or byte == ord("\\"):
            KINDS[byte] = ESCAPED
        else:
            KINDS[byte] = ORDINARY
    KINDS[ord('"')] = QUOTE
    KINDS[ord("<")] = LESS_THAN
    return 0


_fill_kinds()


cdef class _Memory:
    """The memory of an object with the buffer protocol, held while this lives."""

    cdef Py_buffer view

    def __cinit__(self, content, int flags):
        PyObject_GetBuffer(content, &self.view, flags)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef _Memory _numbers(values):
    cdef _Memory memory = _Memory(values, PyBUF_ND | PyBUF_FORMAT)
    cdef const char* item = memory.view.format
    if memory.view.itemsize != sizeof(float) or item == NULL or item[0] != c"f" or item[1]:
        raise TypeError("expected float32 numbers")
    return memory


def total(values):
    """Return the sum of float32 numbers, in float64: not finite if one of them is not."""
    cdef _Memory memory = _numbers(values)
    cdef const float* numbers = <const float*>memory.view.buf
    cdef double result = 0
    cdef Py_ssize_t i
    for i in range(memory.view.len // <Py_ssize_t>sizeof(float)):
        result += numbers[i]
    return result


def count_lines(lines):
    """Return how many line ends there are in a bytes-like object."""
    cdef _Memory memory = _Memory(lines, PyBUF_SIMPLE)
    cdef const char* text = <const char*>memory.view.buf
    cdef Py_ssize_t count = 0
    cdef Py_ssize_t i
    for i in range(memory.view.len):
        count += text[i] == c"\n"
    return count


cdef class BagLinear:
    """A bag-linear model, ready to score.

    Args:
        lines: UTF-8, an n-gram a line, each with its line end; bytes-like, and not to be
            changed while the model lives.
        scores: float32[V], the number of each line's n-gram; all finite.
        bias: logit of an empty text.
        unknown: number of an n-gram that has no line.
        order: longest n-gram, 1 to 8.

    Raises:
        ValueError: lines and scores differ in number, the last line has no end, there are
            more than 2 GiB of lines, or `order` is out of bounds.

    ``len()`` gives the number of different n-grams.
    """

    cdef _Memory _lines
    cdef const char* _text
    cdef Slot* _slots
    cdef Slot* _last_slot
    cdef uint64_t _mask
    cdef Py_ssize_t _count
    cdef double _bias
    cdef double _unknown
    cdef Py_ssize_t _order

    def __cinit__(self, lines, scores, *, double bias, double unknown, Py_ssize_t order):
        cdef _Memory numbers = _numbers(scores)
        self._lines = _Memory(lines, PyBUF_SIMPLE)
        self._text = <const char*>self._lines.view.buf
        cdef Py_ssize_t length = self._lines.view.len
        cdef Py_ssize_t count = numbers.view.len // <Py_ssize_t>sizeof(float)
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"an order of {order}, must be 1 to {MAX_ORDER}")
        if length > MAX_BYTES:
            raise ValueError(f"{length} bytes of lines, must be at most {MAX_BYTES}")
        if length and self._text[length - 1] != c"\n":
            raise ValueError("the last line has no end")
        if count_lines(lines) != count:
            raise ValueError(f"{count} scores for {count_lines(lines)} lines")
        cdef uint64_t capacity = 16
        # A third of the slots at least is free: a search ends, and soon.
        while 2 * capacity < 3 * <uint64_t>count:
            capacity *= 2
        cdef void* memory = mmap(
            NULL,
            capacity * sizeof(Slot),
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS,
            -1,
            0,
        )
        if memory == MAP_FAILED:
            raise MemoryError
        # In large pages where there are such: finding a page costs more than reading it.
        madvise(memory, capacity * sizeof(Slot), MADV_HUGEPAGE)
        self._slots = <Slot*>memory
        self._mask = capacity - 1
        self._last_slot = &self._slots[self._mask]
        self._bias = bias
        self._unknown = unknown
        self._order = order
        self._fill(<const float*>numbers.view.buf, length)

    def __dealloc__(self):
        if self._slots != NULL:
            munmap(self._slots, (self._mask + 1) * sizeof(Slot))

    def __len__(self):
        return self._count

    def assess(self, bytes lowered not None):
        """Return the logit of a text, its number of tokens, and of those without a line.

        Args:
            lowered: the text in lower case, UTF-8.
        """
        cdef vector[char] text
        cdef vector[Token] tokens
        cdef vector[float] scores
        _tokenize(lowered, text, tokens)
        self._look_up(text, tokens, scores)
        return self._judge(tokens, scores)

    def explain(self, bytes lowered not None, origin=None):
        """Return the same as `assess`, and what each n-gram adds to the logit as a JSON list.

        Args:
            lowered: the text in lower case, UTF-8 without surrogates.
            origin: code point of `lowered` -> the one of the text that it comes from, where
                they differ.
        """
        cdef vector[char] text
        cdef vector[Token] tokens
        cdef vector[float] scores
        cdef Py_ssize_t i
        cdef bint is_plain = _tokenize(lowered, text, tokens)
        self._look_up(text, tokens, scores)
        if origin is not None:
            for i in range(<Py_ssize_t>tokens.size()):
                tokens[i].first = origin[tokens[i].first]
                tokens[i].last = origin[tokens[i].last - 1] + 1
        judged = self._judge(tokens, scores)
        return *judged, self._explanation(text, tokens, scores, is_plain)

    cdef tuple _judge(self, vector[Token]& tokens, vector[float]& scores):
        cdef Py_ssize_t count = scores.size()
        cdef Py_ssize_t unknown = 0
        cdef Py_ssize_t unknown_tokens = 0
        cdef Py_ssize_t i
        # Neumaier's sum: what rounding takes away is summed too.
        cdef double known = 0, lost = 0, score, larger
        for i in range(count):
            score = scores[i]
            if isnan(score):
                unknown += 1
                unknown_tokens += i < <Py_ssize_t>tokens.size()
                continue
            larger = known + score
            if abs(known) >= abs(score):
                lost += (known - larger) + score
            else:
                lost += (score - larger) + known
            known = larger
        cdef double mean = 0
        if count:
            mean = (known + lost + unknown * self._unknown) / count
        return mean + self._bias, tokens.size(), unknown_tokens

    cdef bytes _explanation(
        self, vector[char]& text, vector[Token]& tokens, vector[float]& scores, bint is_plain
    ):
        cdef Py_ssize_t count = tokens.size()
        cdef Py_ssize_t length, first, size, i = 0
        cdef Py_ssize_t room = 2 + ENTRY_BYTES * scores.size()
        cdef Token* head
        cdef Token* tail
        for length in range(1, min(self._order, count) + 1):
            for first in range(count - length + 1):
                size = tokens[first + length - 1].end - tokens[first].start
                room += size if is_plain else ESCAPED_BYTES * size
        cdef double score
        cdef PyObject* json = PyBytes_FromStringAndSize(NULL, room)
        if json == NULL:
            raise MemoryError
        cdef char* start = PyBytes_AS_STRING(<object>json)
        cdef char* at = write_literal(start, b"[")
        for length in range(1, min(self._order, count) + 1):
            for first in range(count - length + 1):
                head = &tokens[first]
                tail = &tokens[first + length - 1]
                size = tail.end - head.start
                at = write_literal(at, b'{"token":"')
                if is_plain:
                    at = write_bytes(at, text.data() + head.start, size)
                else:
                    at = _write_escaped(at, text.data() + head.start, text.data() + tail.end)
                at = write_literal(at, b'","start":')
                at = write_count(at, head.first)
                at = write_literal(at, b',"end":')
                at = write_count(at, tail.last)
                at = write_literal(at, b',"contribution":')
                score = self._unknown if isnan(scores[i]) else scores[i]
                at = write_number(at, score / <double>scores.size())
                at = write_literal(at, b"},")
                i += 1
        # In place of the last comma.
        at = write_literal(at - 1 if count else at, b"]")
        # On failure there is no object left, and an exception.
        if _PyBytes_Resize(&json, at - start) < 0:
            raise MemoryError
        result = <bytes>json
        Py_DECREF(result)
        return result

    cdef void _fill(self, const float* scores, Py_ssize_t length) noexcept:
        cdef const char* at = self._text
        cdef const char* end = at + length
        cdef const char* line_end
        cdef Term[BLOCK] terms
        cdef Py_ssize_t size, i
        while at < end:
            size = 0
            while size < BLOCK and at < end:
                line_end = <const char*>memchr(at, c"\n", end - at)
                self._begin(&terms[size], at, line_end - at)
                at = line_end + 1
                size += 1
            for i in range(size):
                self._add(&terms[i], scores[i])
            scores += size

    cdef inline void _add(self, Term* term, float score) noexcept:
        self._find(term)
        if term.slot.place == 0:
            term.slot.place = <uint32_t>(term.start - self._text + 1)
            term.slot.fingerprint = <uint32_t>(term.hash >> 32)
            term.slot.score = score
            self._count += 1

    cdef int _look_up(
        self, vector[char]& text, vector[Token]& tokens, vector[float]& scores
    ) except -1:
        """Set the number of each n-gram, those of one token first; NaN: it has no line."""
        cdef Py_ssize_t count = tokens.size()
        cdef Py_ssize_t length, first, size = 0
        cdef Term[BLOCK] terms
        for length in range(1, min(self._order, count) + 1):
            for first in range(count - length + 1):
                self._begin(
                    &terms[size],
                    text.data() + tokens[first].start,
                    tokens[first + length - 1].end - tokens[first].start,
                )
                size += 1
                if size == BLOCK:
                    self._end(terms, size, scores)
                    size = 0
        self._end(terms, size, scores)
        return 0

    cdef int _end(self, Term* terms, Py_ssize_t size, vector[float]& scores) except -1:
        cdef Py_ssize_t i
        for i in range(size):
            self._approach(&terms[i])
        for i in range(size):
            self._find(&terms[i])
            scores.push_back(terms[i].slot.score if terms[i].slot.place else NAN)
        return 0

    # The search for an n-gram, in steps: the memory that a step needs is asked for in the one
    # before, for a whole block of n-grams.

    cdef inline void _begin(self, Term* term, const char* start, Py_ssize_t length) noexcept:
        term.start = start
        term.length = length
        term.hash = <uint64_t>_Py_HashBytes(start, length)
        term.slot = &self._slots[term.hash & self._mask]
        prefetch(term.slot)

    cdef inline void _approach(self, Term* term) noexcept:
        """Go to the first slot that may be the n-gram's, or is free."""
        cdef uint32_t fingerprint = <uint32_t>(term.hash >> 32)
        while term.slot.place and term.slot.fingerprint != fingerprint:
            self._step(term)
        prefetch(self._text + term.slot.place)

    cdef inline void _find(self, Term* term) noexcept:
        """Go to the n-gram's slot, or the free one where it would be."""
        self._approach(term)
        while term.slot.place and not self._is_line(term.slot.place - 1, term):
            self._step(term)
            self._approach(term)

    cdef inline void _step(self, Term* term) noexcept:
        term.slot = term.slot + 1 if term.slot < self._last_slot else self._slots

    cdef inline bint _is_line(self, Py_ssize_t place, const Term* term) noexcept:
        return (
            term.length < self._lines.view.len - place
            and self._text[place + term.length] == c"\n"
            and memcmp(self._text + place, term.start, term.length) == 0
        )


cdef int _tokenize(bytes lowered, vector[char]& text, vector[Token]& tokens) except -1:
    """Set the bytes of all tokens, a space between each two, and where each of them is.

    As `functions.predict.tokenizer.tokenize` defines them. Returns whether JSON takes all of
    those bytes as they are.
    """
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(lowered)
    cdef const uint8_t* end = at + PyBytes_GET_SIZE(lowered)
    cdef Py_ssize_t size, width  # of a piece, in bytes and in code points
    cdef int64_t here = 0  # code points before `at`
    cdef Kind kind
    cdef Token token
    cdef bint is_open = False
    cdef bint is_plain = True
    # No token is shorter than the space before it.
    text.resize(2 * PyBytes_GET_SIZE(lowered) + 32)
    cdef char* out = text.data()
    while at < end:
        kind = <Kind>KINDS[at[0]]
        size = width = 1
        if kind == BEYOND_ASCII:
            size = _code_point_size(at, end)
            kind = SPACE if _is_space(at, size) else ORDINARY
        elif kind == LESS_THAN:
            width = size = _line_break_size(at, end)
            kind = SPACE if size > 1 else ORDINARY
        elif kind == ESCAPED:
            is_plain = False
            kind = ORDINARY
        if is_open and (kind == SPACE or kind == ALONE):
            token.end = out - text.data()
            tokens.push_back(token)
            is_open = False
        if kind == ORDINARY or kind == ALONE:
            if not is_open:
                if tokens.size():
                    out[0] = c" "
                    out += 1
                token.start = out - text.data()
                token.first = here
                is_open = True
            memcpy(out, at, size)
            out += size
            token.last = here + 1
        if kind == ALONE:
            token.end = out - text.data()
            tokens.push_back(token)
            is_open = False
        at += size
        here += width
    if is_open:
        token.end = out - text.data()
        tokens.push_back(token)
    return is_plain


cdef inline Py_ssize_t _code_point_size(const uint8_t* at, const uint8_t* end) noexcept:
    cdef Py_ssize_t size = 2 if at[0] < 0xE0 else 3 if at[0] < 0xF0 else 4
    return min(size, end - at)


cdef inline bint _is_space(const uint8_t* at, Py_ssize_t size) noexcept:
    # There is none that takes four bytes.
    if size == 2:
        return Py_UNICODE_ISSPACE((at[0] & 0x1F) << 6 | at[1] & 0x3F)
    if size == 3:
        return Py_UNICODE_ISSPACE((at[0] & 0x0F) << 12 | (at[1] & 0x3F) << 6 | at[2] & 0x3F)
    return False


cdef inline Py_ssize_t _line_break_size(const uint8_t* start, const uint8_t* end) noexcept:
    """Return the size of the ``<br />`` at `start`, quotes within it included; else 1."""
    cdef const uint8_t* at = start + 1
    cdef const char* expected = b"br />"
    while at < end and (at[0] == <uint8_t>expected[0] or KINDS[at[0]] == QUOTE):
        if KINDS[at[0]] != QUOTE:
            expected += 1
            if expected[0] == 0:
                return at + 1 - start
        at += 1
    return 1


cdef inline char* _write_escaped(char* at, const char* start, const char* end) noexcept:
    """Write a token in UTF-8, as JSON within quotes: it holds none itself."""
    cdef const char* digits = b"0123456789abcdef"
    cdef uint8_t byte
    while start < end:
        byte = <uint8_t>start[0]
        if byte < 0x20:
            at = write_literal(at, b"\\u00")
            at[0] = digits[byte >> 4]
            at[1] = digits[byte & 0xF]
            at += 2
        else:
            if byte == c"\\":
                at[0] = c"\\"
                at += 1
            at[0] = start[0]
            at += 1
        start += 1
    return at
