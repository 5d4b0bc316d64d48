"""Finding tool calls in an answer's text, as it comes. Pure. The syntax is in `text_tools`.

    text --feed--> parts: text that can be told, calls that are whole;   finish: what was left

Text flows at once and is held back only where a call may begin, and blanks until something follows
them. Between the tags the end of the JSON object is found by its own grammar, never by searching
for the closing tag: a file's content may hold one. After a call, text waits for the next call, and
what follows the last one is dropped: models go on there to invent results.

A call that cannot be read, or that names no tool, ends the finding; `complaint` says what is wrong
with it in words for the model. An answer that ends within a call sets `truncated` instead.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Dict, List, NamedTuple, NoReturn, Optional, Union

from claude_proxy.dialects.text_tools import CALL_CLOSE, CALL_OPEN, RESULT_OPEN
from claude_proxy.dialects.think_tags import LONGEST_BLANK
from claude_proxy.events import input_float
from claude_proxy.patterns import LazyPattern

TEXT_MARK = LazyPattern(f"{CALL_OPEN}|{RESULT_OPEN}")
# Between the tag and the object, and behind the object: some models put a fence around it.
CALL_LEAD = LazyPattern(r"\s*(?:```(?:json)?\s*)?")
CALL_TAIL = LazyPattern(r"\s*(?:```)?\s*")
STRING_MARK = LazyPattern(r'["\\]')
OBJECT_MARK = LazyPattern(r'["{}\[\]]')
# Members under which models write the input; Qwen's and Hermes' own call syntax says "arguments".
INPUT_MEMBERS = ("input", "arguments", "parameters")
MOST_NAMES_TOLD = 60
# No tool wants more, and how deep a JSON decoder goes depends on the Python that runs it.
DEEPEST_CALL = 400
TOO_DEEP = "the JSON is not valid: it is nested too deeply"


class TextCall(NamedTuple):
    name: str
    input: Dict[str, Any]


TextPart = Union[str, TextCall]


class ObjectEnd:
    """Finds where a JSON object ends. Every character is looked at once."""

    def __init__(self) -> None:
        self.deepest = 0
        self._depth = 0
        self._in_string = False
        self._skip = 0

    def feed(self, text: str) -> int:
        """The offset behind the object's last brace in this piece, or -1."""
        at, self._skip = self._skip, 0
        while True:
            match = (STRING_MARK if self._in_string else OBJECT_MARK).search(text, at)
            if match is None:
                self._skip = max(0, at - len(text))
                return -1
            at = match.end()
            mark = match.group()
            if mark == "\\":
                at += 1
            elif mark == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if mark in "{[" else -1
                self.deepest = max(self.deepest, self._depth)
                if self._depth <= 0:
                    return at


class CallSplitter:
    """Splits one answer into text and calls. `begun` is where the last call begins, in characters;
    `cut` says that an invented result, and all behind it, was left out."""

    def __init__(self, names: Collection[str], single: bool = False) -> None:
        self.calls = 0
        self.complaint = ""
        self.truncated = False
        self.cut = False
        self.begun = 0
        self._fed = 0
        self._names = names
        self._single = single
        self._step = self._text
        self._rest = ""
        self._line_blank = True
        self._between: List[str] = []
        self._call: List[str] = []
        self._end = ObjectEnd()

    def feed(self, text: str) -> List[TextPart]:
        """Take a piece of the answer; the parts that are certain by now."""
        parts: List[TextPart] = []
        self._rest += text
        self._fed += len(text)
        # A step leaves another step to do, or waits for more text.
        while self._rest and self._step(parts):
            pass
        return parts

    def finish(self) -> List[TextPart]:
        """The answer has ended."""
        parts: List[TextPart] = []
        if self._step == self._text:
            self._tell(parts, self._rest)
        elif self._step == self._lead and not self._line_blank:
            self._tell(parts, self._call[0] + CALL_OPEN + self._rest)
        elif self._step == self._lead:
            self.truncated = True
        elif self._step == self._object:
            self._unfinished()
        elif self._step == self._tail:
            self._finish_tail(parts)
        self._step = self._over
        return parts

    def drop_blanks(self) -> None:
        """Something else follows: blanks that were held back for what comes next go."""
        if self._step == self._text and not self._rest.strip():
            self._rest = ""

    # --- steps: each takes from `_rest`, and says whether another step can follow -------------

    def _text(self, parts: List[TextPart]) -> bool:
        match = TEXT_MARK.search(self._rest)
        if match is None:
            kept = held_back(self._rest)
            self._tell(parts, self._rest[: len(self._rest) - kept])
            self._rest = self._rest[len(self._rest) - kept :]
            return False
        before, mark = self._rest[: match.start()], match.group()
        if mark == CALL_OPEN and self._single and self.calls:
            return self._stop()
        at_line_start = blank_line_end(self._line_blank, before)
        if mark == RESULT_OPEN and not (self.calls or at_line_start):
            self._tell(parts, before + mark)
            self._rest = self._rest[match.end() :]
            return True
        self._tell(parts, before.rstrip())
        self._line_blank = at_line_start
        if mark == RESULT_OPEN:
            self.cut = True
            return self._stop()
        self._call, self._end = [before[len(before.rstrip()) :]], ObjectEnd()
        self.begun = self._fed - len(self._rest) + match.start()
        self._rest = self._rest[match.end() :]
        self._step = self._lead
        return True

    def _lead(self, parts: List[TextPart]) -> bool:
        lead = CALL_LEAD.match(self._rest)
        found = self._rest[lead.end() : lead.end() + 1]
        waits = not found or "```json".startswith(self._rest.strip())
        if waits and len(self._rest) <= LONGEST_BLANK:
            return False
        if found == "{":
            self._rest = self._rest[lead.end() :]
            self._step = self._object
            return True
        if self._line_blank:
            return self._refuse("behind <tool_call> there is no JSON object")
        # In mid-sentence, and nothing like a call: somebody is writing about the tag.
        self._tell(parts, self._call[0] + CALL_OPEN)
        self._step = self._text
        return True

    def _object(self, parts: List[TextPart]) -> bool:
        end = self._end.feed(self._rest)
        self._call.append(self._rest if end < 0 else self._rest[:end])
        self._rest = "" if end < 0 else self._rest[end:]
        if end >= 0:
            self._step = self._tail
        return end >= 0

    def _tail(self, parts: List[TextPart]) -> bool:
        rest = self._rest[CALL_TAIL.match(self._rest).end() :]
        if rest.startswith(CALL_CLOSE):
            self._rest = rest[len(CALL_CLOSE) :]
            return self._take(parts)
        if rest.startswith(CALL_OPEN):  # the closing tag was forgotten
            self._rest = rest
            return self._take(parts)
        self._rest = rest
        return False if may_be_tail(rest) else self._refuse(stray_text(rest))

    def _over(self, parts: List[TextPart]) -> bool:
        self._rest = ""
        return False

    # --- what steps lead to -------------------------------------------------------------------

    def _tell(self, parts: List[TextPart], text: str) -> None:
        if not text:
            return
        self._line_blank = blank_line_end(self._line_blank, text)
        if self.calls:
            self._between.append(text)
        else:
            parts.append(text)

    def _take(self, parts: List[TextPart]) -> bool:
        """A whole object between the tags: a call, or a complaint."""
        self._step = self._text
        self._line_blank = True
        if self._end.deepest > DEEPEST_CALL:
            return self._refuse(TOO_DEEP)
        try:
            call = read_call("".join(self._call[1:]), self._names)
        except ValueError as error:
            return self._refuse(str(error))
        between = "".join(self._between).strip()
        parts += [between] if between else []
        parts.append(call)
        self.calls += 1
        self._between = []
        return True

    def _stop(self) -> bool:
        self._step = self._over
        return True

    def _refuse(self, complaint: str) -> bool:
        self.complaint = complaint
        return self._stop()

    def _unfinished(self) -> None:
        """The answer ended within an object: cut off, or written so that it never closes."""
        text = "".join(self._call[1:])
        # JSON escapes line breaks, so behind a raw one the tag is no part of a string.
        closed = "\n" + CALL_CLOSE in text or text.rstrip().endswith(CALL_CLOSE)
        problem = json_problem(text)
        if closed or not problem.at_end:
            self.complaint = problem.words
        else:
            self.truncated = True

    def _finish_tail(self, parts: List[TextPart]) -> None:
        rest = self._rest[CALL_TAIL.match(self._rest).end() :]
        if may_be_tail(rest):
            self._rest = ""
            self._take(parts)
        else:
            self._refuse(stray_text(rest))


def held_back(text: str) -> int:
    """How much of the text's end may be the beginning of a mark, with the blanks before it."""
    start = max(text.rfind("<", max(0, len(text) - len(RESULT_OPEN))), -1)
    tail = text[start:] if start >= 0 else ""
    begins = bool(tail) and any(mark.startswith(tail) for mark in (CALL_OPEN, RESULT_OPEN))
    before = text[:start] if begins else text
    return len(text) - len(before.rstrip())


def may_be_tail(rest: str) -> bool:
    """Whether a tag, or a fence before it, may be what begins here."""
    return any(mark.startswith(rest) for mark in (CALL_CLOSE, CALL_OPEN, "```"))


def stray_text(rest: str) -> str:
    return f"behind the JSON object stands {json.dumps(rest[:1])}, not </tool_call>"


def blank_line_end(was_blank: bool, text: str) -> bool:
    """Whether the line that is being written is blank so far, behind this text."""
    _, newline, last = text.rpartition("\n")
    return not last.strip() and (was_blank or bool(newline))


# --- one call ----------------------------------------------------------------------------------


def refuse_call_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


# Not strict: a raw line break in a string is what it looks like.
CALL_DECODER = json.JSONDecoder(
    strict=False, parse_float=input_float, parse_constant=refuse_call_constant
)


class JsonProblem(NamedTuple):
    words: str
    at_end: bool


def json_problem(text: str) -> JsonProblem:
    """What is wrong with a text that is no JSON value, and whether it is only too short."""
    try:
        CALL_DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        words = f"the JSON is not valid: {error.msg} at character {error.pos}"
        # Half a literal or half an escape is told a few characters before the end.
        near_end = error.pos + len("\\uD83D") + 1 >= len(text.rstrip())
        return JsonProblem(words, near_end or error.msg.startswith("Unterminated string"))
    except ValueError as error:
        return JsonProblem(f"the JSON is not valid: {error}", False)
    except RecursionError:
        pass
    return JsonProblem(TOO_DEEP, False)


def read_call(text: str, names: Collection[str]) -> TextCall:
    """The call in a JSON object; ValueError with words for the model."""
    try:
        call, end = CALL_DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        raise ValueError(json_problem(text).words) from None
    if text[end:].strip():
        raise ValueError("the JSON object ends too early: a brace too many")
    name = call.get("name")
    if not isinstance(name, str) or name not in names:
        known = ", ".join(sorted(names)[:MOST_NAMES_TOLD])
        raise ValueError(f"there is no tool {encode_name(name)}; the tools are {known}")
    return TextCall(name, call_input(call))


def encode_name(name: Any) -> str:
    return json.dumps(name)[:200]


def call_input(call: Dict[str, Any]) -> Dict[str, Any]:
    member = next((member for member in INPUT_MEMBERS if member in call), None)
    found = decoded_input(call[member]) if member else {}
    if found is None:
        raise ValueError('"input" must be a JSON object')
    return found


def decoded_input(value: Any) -> Optional[Dict[str, Any]]:
    """An object as it is, an empty list as an empty one (PHP knows no difference), and the object
    in a JSON text; None for anything else."""
    if isinstance(value, dict) or value in ([], None):
        return value or {}
    if isinstance(value, str):
        try:
            inner = CALL_DECODER.decode(value)
        except (ValueError, RecursionError):
            return None
        return inner if isinstance(inner, dict) else None
    return None
