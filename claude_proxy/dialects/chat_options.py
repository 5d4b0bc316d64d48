"""What one provider and model want otherwise than most, in a Chat Completions request."""

from __future__ import annotations

from typing import NamedTuple


class ChatOptions(NamedTuple):
    """What one provider and model want otherwise than most."""

    max_tokens_key: str = "max_tokens"
    max_output: int = 0  # more max_tokens than this are refused; 0: not known
    drop: frozenset = frozenset()  # top-level keys that are refused
    top_k: bool = False  # top_k is understood
    files: bool = False  # PDF documents are taken as file parts
    reasoning_effort: bool = False  # output_config.effort is passed on
