"""Join tokens as text."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.join_token import ENTROPY_BYTES, claims_to_be_join_token, is_join_token, new_token, token_digest


@given(st.binary(min_size=ENTROPY_BYTES, max_size=ENTROPY_BYTES))
def test_a_new_token_has_the_form_that_is_recognised_and_is_kept_under_its_digest(entropy: bytes) -> None:
    text, digest = new_token(entropy)
    assert re.fullmatch(r"citadel-join-[A-Za-z0-9_-]{43}", text)
    assert is_join_token(text)
    assert claims_to_be_join_token(text)
    assert digest == token_digest(text) == hashlib.sha256(text.encode()).digest()


@given(
    st.binary(min_size=ENTROPY_BYTES, max_size=ENTROPY_BYTES), st.binary(min_size=ENTROPY_BYTES, max_size=ENTROPY_BYTES)
)
def test_all_entropy_is_in_the_text(one: bytes, other: bytes) -> None:
    assert (new_token(one) == new_token(other)) == (one == other)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_token_cannot_be_made_from_less_than_256_bits(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        new_token(bytes(size))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "citadel-join-",
        "citadel-join-" + "A" * 42,
        "citadel-join-" + "A" * 44,
        "citadel-join-" + "A" * 43 + "\n",
        "citadel-join-" + "A" * 42 + "=",
        "citadel-join-" + "A" * 42 + "é",
        "CITADEL-JOIN-" + "A" * 43,
        "A" * 43,
    ],
)
def test_other_text_is_no_join_token(text: str) -> None:
    assert not is_join_token(text)
