"""Valid files with a few places changed, as readers mostly fail close to valid input."""

from __future__ import annotations

from hypothesis import strategies as st

from diablo_ds.files.strict_json import MAX_DIGITS

FRAGMENTS = [
    *rb"[ ] { } , : null NaN -0 1e999 true \ud800 \udc00\ud800 \\ \" 0001".split(),
    b'{"a": 1, "a": 2}',
    b"7" * (MAX_DIGITS + 1),
    b"[" * 2000,
    b'{"a":' * 2000,
    b"\0",
    b"\r",
    b"\n",
    b"\xff",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
]


@st.composite
def mutated(draw, valid: list[bytes]) -> bytes:
    """Draw one of the valid files, and change up to four places in it."""
    data = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 2, 4, 16, 1 << 30])))
        new = draw(st.one_of(st.sampled_from([b"", *FRAGMENTS]), st.binary(max_size=8)))
        data = data[:start] + new + data[end:]
    return data


TEXT = st.text(st.characters(), max_size=12)  # with surrogates
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**30, 0.0, -0.0, 1e308, 0.5, "auto", "1", ""]),
    st.floats(),
    TEXT,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)
