"""A pattern that waits for its first use is the pattern it stands for."""

import re

import pytest

from claude_proxy.patterns import LazyPattern

USES = [
    ("fullmatch", ("ab12",)),
    ("search", ("..ab12..",)),
    ("sub", ("-", "ab12 cd34")),
    ("findall", ("ab12 CD34",)),
    ("split", ("x ab12 y",)),
    ("groupindex", None),
    ("pattern", None),
]


@pytest.mark.parametrize(("name", "arguments"), USES, ids=[row[0] for row in USES])
def test_every_use_is_the_patterns_own(name, arguments):
    lazy, made = LazyPattern(r"(?P<word>[a-z]+)(\d+)", re.I), re.compile(r"(?P<word>[a-z]+)(\d+)", re.I)
    for _ in range(2):
        found, wanted = getattr(lazy, name), getattr(made, name)
        if arguments is not None:
            found, wanted = found(*arguments), wanted(*arguments)
        if isinstance(wanted, re.Match):
            found, wanted = found.groups(), wanted.groups()
        assert found == wanted


def test_nothing_is_compiled_before():
    assert "search" not in vars(LazyPattern("(", 0))
    with pytest.raises(re.error):
        LazyPattern("(").search("")


def test_what_a_pattern_has_not_is_missing():
    with pytest.raises(AttributeError):
        LazyPattern("a").nothing  # noqa: B018
