"""Words that must turn up nowhere, and a search for them in every form in which they could."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Dict, List, NamedTuple, Set, Tuple
from urllib.parse import quote, quote_plus

# Shorter ones, and base64 cores that are shorter, turn up by chance.
SHORTEST_NEEDLE = 8
# From so many on it is faster to look at each place of a text than for each beginning.
MANY_BEGINNINGS = 300
# Of a word that is cut off, so much tells.
TELLING = 12


def base64_cores(data: bytes) -> Iterator[bytes]:
    """What stays the same of the base64 of any text that has `data` in it, for each alignment."""
    for before in range(3):
        shifted = b"\0" * before + data
        whole = len(shifted) // 3 * 3
        # The characters that other bytes have a share in are left out.
        core = base64.b64encode(shifted[:whole])[(0, 2, 3)[before]:]
        yield from (core, core.replace(b"+", b"-").replace(b"/", b"_"))


def needle_forms(word: str) -> Dict[bytes, str]:
    """Every form of a word -> what it is called; the first three kinds count in any case."""
    data = word.encode("utf-8", "surrogatepass")
    forms = {data: "plain"}
    forms.setdefault(json.dumps(word)[1:-1].encode(), "JSON")
    for encode in (quote, partial(quote, safe=""), quote_plus):
        forms.setdefault(encode(data).encode(), "URL")
    forms.setdefault(repr(word)[1:-1].encode("utf-8", "replace"), "repr")
    forms.setdefault(data.hex().encode(), "hex")
    for core in base64_cores(data):
        forms.setdefault(core, "base64")
    return {form: kind for form, kind in forms.items() if len(form) >= SHORTEST_NEEDLE}


class Hit(NamedTuple):
    """A word that was found: which, in what form, and what stands around it."""

    place: str
    kind: str
    where: str
    around: str

    def __str__(self) -> str:
        return f"{self.place} ({self.kind}) in {self.where}: ...{self.around}..."


class Needles:
    """Many words, looked for at once: their time is that of the text, not of their number."""

    def __init__(self, words: Iterable[Tuple[str, str]]) -> None:
        """`words` are (place, word) pairs: a hit tells the place."""
        self.count = 0
        # First bytes -> the forms that begin so; without regard to case but for base64.
        self._exact: Dict[bytes, List[Tuple[bytes, str, str]]] = defaultdict(list)
        self._folded: Dict[bytes, List[Tuple[bytes, str, str]]] = defaultdict(list)
        for place, word in words:
            self.count += 1
            for form, kind in needle_forms(word).items():
                exact = kind == "base64"
                form = form if exact else form.lower()
                table = self._exact if exact else self._folded
                table[form[:SHORTEST_NEEDLE]].append((form, kind, place))

    @property
    def forms(self) -> int:
        return sum(len(rows) for table in (self._exact, self._folded) for rows in table.values())

    def hits(self, data: bytes, where: str) -> List[Hit]:
        """Each word once that is in `data`, in the form that was found first."""
        found: Dict[str, Hit] = {}
        for table, text in ((self._folded, data.lower()), (self._exact, data)):
            for at in candidates(text, table):
                for form, kind, place in table[text[at:at + SHORTEST_NEEDLE]]:
                    if place not in found and text.startswith(form, at):
                        around = data[max(0, at - 100):at + len(form) + 40]
                        found[place] = Hit(place, kind, where, around.decode("utf-8", "replace"))
        return list(found.values())


def candidates(text: bytes, table: Dict[bytes, List[Tuple[bytes, str, str]]]) -> Iterator[int]:
    """The places at which one of the table's beginnings stands."""
    if len(table) > MANY_BEGINNINGS:
        yield from every_place(text, set(table))
        return
    for begin in table:
        at = text.find(begin)
        while at >= 0:
            yield at
            at = text.find(begin, at + 1)


def every_place(text: bytes, begins: Set[bytes]) -> Iterator[int]:
    width = SHORTEST_NEEDLE
    return (at for at in range(len(text) - width + 1) if text[at:at + width] in begins)


class Canaries:
    """A word of its own for each place, so that a hit names the place it came from."""

    def __init__(self, salt: str) -> None:
        self._salt = salt
        self.words: Dict[str, str] = {}

    def token(self, place: str) -> str:
        """No shape of a credential: nothing but knowing it can take it out."""
        digest = hashlib.sha256(f"{self._salt} {place}".encode()).digest()
        word = "Zq" + base64.b32encode(digest)[:14].decode().capitalize()
        return self.words.setdefault(place, word)

    def text(self, place: str) -> str:
        """A sentence with the word in it."""
        return f"the patient {self.token(place)} said so"

    def needles(self) -> Needles:
        return Needles((place, word[:TELLING]) for place, word in self.words.items())
