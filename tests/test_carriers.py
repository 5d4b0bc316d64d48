"""What is carried in a signature comes back as it was, and nobody else's signature is taken for ours."""

from __future__ import annotations

import pytest

from claude_proxy.dialects.carriers import (
    is_carrier,
    merge_details,
    pack_carrier,
    pack_details,
    unpack_carrier,
    unpack_details,
)

DETAILS = [
    {"type": "reasoning.text", "text": "a", "index": 0, "format": "x"},
    {"type": "reasoning.text", "text": "b", "index": 0, "signature": None},
    {"type": "reasoning.text", "text": "", "index": 0, "signature": "sig"},
    {"type": "reasoning.encrypted", "data": "AAAA", "index": 1, "id": "r1"},
]
WHOLE = [
    {"type": "reasoning.text", "text": "ab", "index": 0, "format": "x", "signature": "sig"},
    {"type": "reasoning.encrypted", "data": "AAAA", "index": 1, "id": "r1"},
]


@pytest.mark.parametrize("data", [None, [], {"a": "\u00fc\ud83d"}, "text", 5])
def test_data_comes_back(data):
    signature = pack_carrier("extra_content", data)
    assert is_carrier(signature) and signature.isascii() and unpack_carrier(signature, "extra_content") == data
    assert unpack_carrier(signature, "reasoning_details") is None


@pytest.mark.parametrize("signature", [
    None, 5, "", "EqQBCkYIA", "cp1.", "cp1.!!!!", "cp1.AAAA", "cp1.W10", "cp1.\u00fc", "cp2.e30"])
def test_no_other_signature_is_taken(signature):
    assert unpack_carrier(signature, "extra_content") is None


@pytest.mark.parametrize("details,whole", [
    ([], []), (DETAILS, WHOLE),
    ([{"type": "a"}, {"type": "a"}], [{"type": "a"}, {"type": "a"}]),
    ([{"type": "a", "index": 0, "text": "x"}, {"type": "a", "index": 1, "text": "y"}],
     [{"type": "a", "index": 0, "text": "x"}, {"type": "a", "index": 1, "text": "y"}]),
])
def test_pieces_are_joined(details, whole):
    before = [dict(piece) for piece in details]
    assert merge_details(details) == whole and details == before


@pytest.mark.parametrize("thinking", ["ab", "other", ""])
def test_details_come_back_whole_and_the_blocks_own_text_is_not_told_twice(thinking):
    signature = pack_details(DETAILS, thinking)
    assert unpack_details({"thinking": thinking, "signature": signature}) == WHOLE
    assert len(pack_details(DETAILS, "ab")) < len(pack_details(DETAILS, "other")) + 1


@pytest.mark.parametrize("block", [{}, {"signature": "EqQ"}, {"signature": pack_carrier("reasoning_details", 5)}])
def test_no_details(block):
    assert unpack_details(block) == []
