"""Regular expressions that are compiled when they are first used.

The tables of this program hold some hundred patterns, of which most processes need a few: compiling
them all takes longer than everything else at the start. Pure.
"""

from __future__ import annotations

import re
from typing import Any, Union


class LazyPattern:
    """Used like `re.compile(pattern, flags)`, which it becomes at its first use. Two threads may
    both compile it, to the same."""

    def __init__(self, pattern: Union[str, bytes], flags: int = 0):
        self.pattern, self.flags = pattern, flags

    def __getattr__(self, name: str) -> Any:
        # Asked only for what is not there yet: from then on a method is the pattern's own.
        member = getattr(re.compile(self.pattern, self.flags), name)
        setattr(self, name, member)
        return member
