"""Tool calls in an answer's text: what is found, wherever the answer is cut into pieces."""

from __future__ import annotations

import json
import os
import random
import re
from typing import Any, List, NamedTuple

import pytest

from claude_proxy.dialects.text_calls import CallSplitter, TextCall
from claude_proxy.dialects.text_tools import CALL_CLOSE, CALL_OPEN, RESULT_OPEN

NAMES = frozenset(("Read", "Write", "Bash"))
# Longer samples are not cut at every place: that would take minutes.
CUT_EVERYWHERE = 2000
SEEDS = range(10)
# About five seconds; more of them by the environment.
FUZZ_REPLIES = int(os.environ.get("FUZZ_REPLIES", "30000"))


class Sample(NamedTuple):
    name: str
    reply: str
    parts: List[Any]
    complaint: str = ""  # words in it: the rest is the decoder's, and other versions say it otherwise
    truncated: bool = False
    cut: bool = False
    single: bool = False


class Outcome(NamedTuple):
    parts: List[Any]
    complaint: str
    truncated: bool
    cut: bool
    calls: int
    begun: int


def split(pieces, single=False):
    """What a splitter makes of an answer; text that was told in pieces is one part."""
    splitter = CallSplitter(NAMES, single)
    parts: List[Any] = []
    for told in (*map(splitter.feed, pieces), splitter.finish()):
        for part in told:
            assert part != ""
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
    return Outcome(parts, splitter.complaint, splitter.truncated, splitter.cut, splitter.calls, splitter.begun)


def tagged(text):
    return f"{CALL_OPEN}\n{text}\n{CALL_CLOSE}"


def call(name, **members):
    return tagged(json.dumps({"name": name, "input": members}))


READ, READ_CALL = call("Read", path="a"), TextCall("Read", {"path": "a"})
BASH, BASH_CALL = call("Bash", command="ls"), TextCall("Bash", {"command": "ls"})
DEEP = '{"name":"Read","input":{"a":' + "[" * 5000 + "]" * 5000 + "}}"
RESULT = '<tool_result id="1">\nx = 1\n</tool_result>'

TEXTS = [
    Sample("nothing", "", []),
    Sample("plain text", "It is done.\n\nReally.\n", ["It is done.\n\nReally.\n"]),
    Sample("blanks", " \n\n ", [" \n\n "]),
    Sample("less than", "a < b <c> <tool>, 1<2", ["a < b <c> <tool>, 1<2"]),
    Sample("half a tag", "see <tool_cal, <tool_resul and <<tool_", ["see <tool_cal, <tool_resul and <<tool_"]),
    Sample("half a tag at the end", "see\n<tool_cal", ["see\n<tool_cal"]),
    Sample("a closing tag alone", "so </tool_call> ends it\n</tool_call>", ["so </tool_call> ends it\n</tool_call>"]),
    Sample("the tag in prose", "I write <tool_call> and then JSON.", ["I write <tool_call> and then JSON."]),
    Sample("the tag in prose, twice", "`<tool_call>` ... `</tool_call>`, <tool_call>.\n",
           ["`<tool_call>` ... `</tool_call>`, <tool_call>.\n"]),
    Sample("the tag in prose at the end", "The tag is <tool_call> ", ["The tag is <tool_call> "]),
    Sample("the tag in prose, then a call", f"By <tool_call> I call:\n{READ}", ["By <tool_call> I call:", READ_CALL]),
    Sample("the result's tag in prose", "It comes as <tool_result id=1> later.",
           ["It comes as <tool_result id=1> later."]),
    Sample("Qwen XML in mid-sentence", "Like <tool_call><function=Read>", ["Like <tool_call><function=Read>"]),
    Sample("an emoji and half ones", "\U0001f600 \ud83d \ude00.", ["\U0001f600 \ud83d \ude00."]),
]

CALLS = [
    Sample("one call", READ, [READ_CALL]),
    Sample("text and a call", f"I look.\n\n{READ}\n", ["I look.", READ_CALL]),
    Sample("a call in mid-sentence", f"I look: {READ}", ["I look:", READ_CALL]),
    Sample("blanks before a call", f"\n\n {READ}", [READ_CALL]),
    Sample("on one line", '<tool_call>{"name":"Read","input":{"path":"a"}}</tool_call>', [READ_CALL]),
    Sample("three calls", f"{READ}\n{BASH}{READ}", [READ_CALL, BASH_CALL, READ_CALL]),
    Sample("prose between", f"First\n{READ}\n then \n{BASH}\n", ["First", READ_CALL, "then", BASH_CALL]),
    Sample("the tag in prose between", f"{READ}\nnow <tool_call> again:\n{BASH}",
           [READ_CALL, "now <tool_call> again:", BASH_CALL]),
    Sample("prose behind the last call", f"{READ}\nNow it has 3 lines.", [READ_CALL]),
    Sample("no input", tagged('{"name": "Bash"}'), [TextCall("Bash", {})]),
    Sample("input null", tagged('{"name": "Bash", "input": null}'), [TextCall("Bash", {})]),
    Sample("input []", tagged('{"name": "Bash", "input": []}'), [TextCall("Bash", {})]),
    Sample("arguments", tagged('{"name": "Bash", "arguments": {"command": "ls"}}'), [BASH_CALL]),
    Sample("parameters", tagged('{"id": 1, "parameters": {"command": "ls"}, "name": "Bash"}'), [BASH_CALL]),
    Sample("input before arguments", tagged('{"name": "Bash", "arguments": {"x": 1}, "input": {"command": "ls"}}'),
           [BASH_CALL]),
    Sample("arguments as JSON text", tagged('{"name": "Bash", "arguments": "{\\"command\\": \\"ls\\"}"}'), [BASH_CALL]),
    Sample("closing tag in a string", call("Write", text="a\n</tool_call>\n</tool_call>"),
           [TextCall("Write", {"text": "a\n</tool_call>\n</tool_call>"})]),
    Sample("a call in a string", call("Write", text=READ + RESULT), [TextCall("Write", {"text": READ + RESULT})]),
    Sample("braces and quotes in a string", call("Write", text='}]{[ "\\" \\'),
           [TextCall("Write", {"text": '}]{[ "\\" \\'})]),
    Sample("raw newlines in a string", tagged('{"name":"Write","input":{"text":"a\n\n\tb\r\n</tool_call>\nc"}}'),
           [TextCall("Write", {"text": "a\n\n\tb\r\n</tool_call>\nc"})]),
    Sample("entities as \\u0026", tagged('{"name":"Write","input":{"text":"a \\u0026\\u0026 \\u0026lt;"}}'),
           [TextCall("Write", {"text": "a && &lt;"})]),
    Sample("an emoji, escaped, and half of one",
           tagged('{"name":"Write","input":{"\U0001f600":"\\ud83d\\ude00 \\ud83d"}}'),
           [TextCall("Write", {"\U0001f600": "\U0001f600 \ud83d"})]),
    Sample("half emoji, raw", call("Write", text="\ud83d").replace("\\ud83d", "\ud83d"),
           [TextCall("Write", {"text": "\ud83d"})]),
    Sample("a fence", f"{CALL_OPEN}\n```json\n{{\"name\": \"Bash\"}}\n```\n{CALL_CLOSE}\n", [TextCall("Bash", {})]),
    Sample("a fence without a language", f"{CALL_OPEN}```{{\"name\": \"Bash\"}}```{CALL_CLOSE}",
           [TextCall("Bash", {})]),
    Sample("a fence around the tags", f"So:\n```\n{READ}\n```", ["So:\n```", READ_CALL]),
    Sample("no closing tag at the end", READ[:-len(CALL_CLOSE)], [READ_CALL]),
    Sample("half a closing tag at the end", READ[:-3], [READ_CALL]),
    Sample("no closing tag, half a tag", READ[:-len(CALL_CLOSE)] + "<tool_c", [READ_CALL]),
    Sample("no closing tag before a call", f"{READ[:-len(CALL_CLOSE)]}{BASH}", [READ_CALL, BASH_CALL]),
    Sample("deep", tagged('{"name":"Read","input":{"a":' + "[" * 99 + "]" * 99 + "}}"),
           [TextCall("Read", {"a": json.loads("[" * 99 + "]" * 99)})]),
    Sample("one at most", f"a\n{READ}\nb\n{BASH}", ["a", READ_CALL], single=True),
    Sample("one at most, a bad one behind", f"{READ}<tool_call>oops", [READ_CALL], single=True),
]

ENDS = [
    Sample("an invented result", f"{READ}\n{RESULT}\nIt says 1.\n{BASH}", [READ_CALL], cut=True),
    Sample("an invented result in mid-line", f"{READ} so {RESULT}", [READ_CALL], cut=True),
    Sample("an invented result without a call", f"I looked.\n\n{RESULT} It says 1.", ["I looked."], cut=True),
    Sample("an invented result first", RESULT + READ, [], cut=True),
    Sample("ends behind the tag", f"a\n{CALL_OPEN}", ["a"], truncated=True),
    Sample("ends in a fence", f"a\n{CALL_OPEN}\n```js", ["a"], truncated=True),
    Sample("ends in the head", f'a\n{CALL_OPEN}\n{{"na', ["a"], truncated=True),
    Sample("ends in a string", f'{CALL_OPEN}{{"name": "Write", "input": {{"text": "some te', [], truncated=True),
    Sample("ends in an escape", f'{CALL_OPEN}{{"name": "Write", "input": {{"text": "some\\', [], truncated=True),
    Sample("ends in a long escape", f'{CALL_OPEN}{{"name": "Write", "input": {{"text": "some\\ud83d\\ude', [],
           truncated=True),
    Sample("ends in a literal", f'{CALL_OPEN}{{"name": "Write", "input": {{"all": fals', [], truncated=True),
    Sample("ends behind a good call", f'{READ}\nand\n{CALL_OPEN}\n{{"name": "Bash", "inp', [READ_CALL], truncated=True),
    Sample("ends in a second call's tag", f"{READ}\n<tool_", [READ_CALL]),
    Sample("ends before its last brace", tagged('{"name":"Read"')[:-len(CALL_CLOSE)], [], truncated=True),
]

COMPLAINTS = [
    Sample("an unescaped quote", "x\n" + tagged('{"name":"Write","input":{"text":"say "hi" now"}}'), ["x"],
           "the JSON is not valid: Expecting ',' delimiter at character 38"),
    Sample("one unescaped quote", tagged('{"name":"Write","input":{"text":"5" wide"}}') + "\nDone.", [],
           "the JSON is not valid: Expecting ',' delimiter at character 36"),
    Sample("a trailing comma", tagged('{"name":"Bash","input":{"a":1,}}'), [], "the JSON is not valid: "),
    Sample("single quotes", tagged("{'name': 'Bash', 'input': {}}"), [],
           "the JSON is not valid: Expecting property name"),
    Sample("a brace too few", tagged('{"name":"Bash","input":{"a":1}'), [],
           "the JSON is not valid: Expecting ',' delimiter"),
    Sample("a brace too few, more behind", tagged('{"name":"Bash","input":{"a":1}') + f"\n{READ}", [],
           "the JSON is not valid: "),
    Sample("a quote too few", '<tool_call>{"name":"Write","input":{"text":"a}}</tool_call>', [],
           "the JSON is not valid: Unterminated string"),
    Sample("a quote too few, more behind", tagged('{"name":"Write","input":{"text":"a}}') + "\nDone.", [],
           "the JSON is not valid: Unterminated string"),
    Sample("a brace too many", tagged('{"name":"Bash","input":{"a":1}}}'), [],
           'behind the JSON object stands "}", not </tool_call>'),
    Sample("a bracket for a brace", tagged('{"name":"Bash","input":{"a":1}]'), [], "the JSON is not valid: "),
    Sample("words behind the object", tagged('{"name":"Bash"} # lists'), [], 'behind the JSON object stands "#"'),
    Sample("words and the end", f'{CALL_OPEN}{{"name":"Bash"}} done', [], 'behind the JSON object stands "d"'),
    Sample("no JSON", f"{CALL_OPEN}\nRead a\n{CALL_CLOSE}", [], "behind <tool_call> there is no JSON object"),
    Sample("a list of calls", tagged('[{"name":"Bash"}]'), [], "behind <tool_call> there is no JSON object"),
    Sample("Qwen XML", f"Now:\n{CALL_OPEN}\n<function=Read>\n<parameter=path>a</parameter>\n</function>\n{CALL_CLOSE}",
           ["Now:"], "behind <tool_call> there is no JSON object"),
    Sample("unknown tool", call("Raed"), [], 'there is no tool "Raed"; the tools are Bash, Read, Write'),
    Sample("no name", tagged('{"input":{}}'), [], "there is no tool null; the tools are Bash, Read, Write"),
    Sample("a number for a name", tagged('{"name":5}'), [], "there is no tool 5;"),
    Sample("a list for a name", tagged('{"name":["Read"]}'), [], 'there is no tool ["Read"];'),
    Sample("an object for a name", tagged('{"name":{"name":"Read"}}'), [], "there is no tool {"),
    Sample("input is text", tagged('{"name":"Bash","input":"ls"}'), [], '"input" must be a JSON object'),
    Sample("input is a list", tagged('{"name":"Bash","input":["ls"]}'), [], '"input" must be a JSON object'),
    Sample("input is JSON text of a list", tagged('{"name":"Bash","input":"[1]"}'), [],
           '"input" must be a JSON object'),
    Sample("NaN", tagged('{"name":"Bash","input":{"a":NaN}}'), [], "NaN is not a JSON value"),
    Sample("a number beyond floats", tagged('{"name":"Bash","input":{"a":1e999}}'), [], "the JSON is not valid"),
    Sample("a huge number", tagged('{"name":"Bash","input":{"a":' + "1" * 5000 + "}}"), [], "the JSON is not valid"),
    Sample("nested 5,000 levels", tagged(DEEP), [], "the JSON is not valid"),
    Sample("a good call, then a bad one", f"a\n{READ}\nb\n{call('Raed')}\n{BASH}", ["a", READ_CALL],
           'there is no tool "Raed"'),
    Sample("a good call, then no JSON on its line", f"So: {READ} <tool_call> and", ["So:", READ_CALL],
           "behind <tool_call> there is no JSON object"),
]

SAMPLES = [*TEXTS, *CALLS, *ENDS, *COMPLAINTS]


def cuts(reply):
    """Ways to come: whole, by character, in two pieces cut at every place."""
    yield [reply]
    yield list(reply)
    for at in range(1, len(reply), 1 + len(reply) // CUT_EVERYWHERE * 50):
        yield [reply[:at], reply[at:]]


def sample_id(sample):
    return sample.name


@pytest.mark.parametrize("sample", SAMPLES, ids=sample_id)
def test_samples_at_every_split(sample):
    whole = split([sample.reply], sample.single)
    assert whole.parts == sample.parts
    assert sample.complaint in whole.complaint and bool(sample.complaint) == bool(whole.complaint)
    assert (whole.truncated, whole.cut) == (sample.truncated, sample.cut)
    assert whole.calls == sum(isinstance(part, TextCall) for part in sample.parts)
    for pieces in cuts(sample.reply):
        assert split(pieces, sample.single) == whole, pieces[0][-40:]


@pytest.mark.parametrize("sample", COMPLAINTS, ids=sample_id)
def test_the_place_of_a_bad_call_is_known(sample):
    assert sample.reply[split([sample.reply]).begun:].startswith(CALL_OPEN)


def test_a_complaint_names_some_tools_and_little_of_a_wrong_name():
    splitter = CallSplitter([f"tool{number:03}" for number in range(999)])
    splitter.feed(call("x" * 9999))
    assert "tool059" in splitter.complaint and "tool060" not in splitter.complaint
    assert len(splitter.complaint) < 1000


def test_a_call_that_is_cut_anywhere_is_truncated():
    reply = tagged('{"name": "Write", "input": {"a": [true, null, -15e2, {}], "\\u00e9": "\\ud83d\\ude00 \\"\\\\ \n"}}')
    end = reply.rindex("}") + 1
    for cut in range(len(CALL_OPEN), len(reply)):
        found = split([reply[:cut]])
        assert (found.truncated, found.calls, found.complaint) == (cut < end, int(cut >= end), ""), reply[:cut]


# --- streaming -----------------------------------------------------------------------------------

PROSE = "# A title\n\nif a < b:\n\tx <<= 1  # <tool, <tool_calls\n\n\n- <b>caf\u00e9</b> \U0001f600\n</tool_call>  \n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_prose_is_out_at_once(size):
    """All but blanks at the end and what may be half a tag."""
    splitter, told = CallSplitter(NAMES), ""
    for end in range(size, len(PROSE), size):
        told += "".join(splitter.feed(PROSE[end - size:end]))
        held = PROSE[len(told):end].strip()
        assert PROSE.startswith(told) and any(tag.startswith(held) for tag in (CALL_OPEN, RESULT_OPEN))


def test_a_call_is_out_with_its_last_character():
    splitter = CallSplitter(NAMES)
    assert [splitter.feed(character) for character in READ] == [[]] * (len(READ) - 1) + [[READ_CALL]]
    assert splitter.feed("\nand text waits ") == []
    assert splitter.feed(BASH) == ["and text waits", BASH_CALL]
    assert splitter.finish() == []


def test_nothing_follows_the_end():
    splitter = CallSplitter(NAMES)
    assert splitter.feed(f"{READ}\n{RESULT}") == [READ_CALL]
    assert splitter.feed(READ) == splitter.finish() == splitter.feed(READ) == []
    assert splitter.calls == 1 and splitter.cut


LARGE = {"path": "a", "content": 'a "line" of <b>text</b> \\ with {braces}\n' * 25000}


@pytest.mark.parametrize("input,size", [
    (LARGE, 16), ({"content": LARGE["content"][:200000]}, 1), ({"content": "\\" * 99999}, 1),
    ({"content": "<tool_call>" * 20000}, 1),
])
def test_a_large_call_in_small_pieces(input, size):
    """No time is asserted; anything but linear would take minutes."""
    reply = call("Write", **input)
    pieces = (reply[start:start + size] for start in range(0, len(reply), size))
    assert split(pieces).parts == [TextCall("Write", input)]


@pytest.mark.parametrize("text", ["word < and <b>\n" * 5000, "<" * 50000, "a <tool_call> and\n" * 5000])
def test_long_prose_by_character(text):
    assert split(text).parts == [text]


# --- replies that nobody thought of ----------------------------------------------------------------

POOL = [sample.reply for sample in SAMPLES if 0 < len(sample.reply) < 1000]
CALL_HEAD = re.compile(r"<tool_call>\s*(?:```(?:json)?\s*)?(?=\{)")
LENIENT = json.JSONDecoder(strict=False)


def mutated(dice):
    """A reply with pieces deleted, inserted, doubled, swapped; or its end lost."""
    reply = dice.choice(POOL)
    for _ in range(dice.randrange(1, 4)):
        a, b, c = sorted(int(dice.random() * (len(reply) + 1)) for _ in range(3))
        kind = int(dice.random() * 6)
        if kind == 0:
            reply = reply[:a] + reply[b:]
        elif kind == 1:
            other = dice.choice(POOL)
            start = int(dice.random() * len(other))
            reply = reply[:a] + other[start:start + int(dice.random() * 40)] + reply[a:]
        elif kind == 2:
            reply = reply[:b] + reply[a:]
        elif kind == 3:
            reply = reply[:a] + reply[b:c] + reply[a:b] + reply[c:]
        elif kind == 4:
            reply += "\n" + dice.choice(POOL)
        else:
            reply = reply[:c]
    return reply


def objects_behind_tags(reply):
    """The JSON objects that stand behind a tag, by a decoder alone."""
    for match in CALL_HEAD.finditer(reply):
        try:
            yield LENIENT.raw_decode(reply, match.end())[0]
        except ValueError:
            pass


def says(found, wanted):
    """Whether a JSON object is this call."""
    inputs = [found.get(member) for member in ("input", "arguments", "parameters")]
    if wanted.name != found.get("name"):
        return False
    if wanted.input in inputs or (not wanted.input and any(value in (None, []) for value in inputs)):
        return True
    return any(json.loads(value, strict=False) == wanted.input for value in inputs if isinstance(value, str))


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_found_that_the_answer_did_not_hold(seed):
    dice = random.Random(seed)
    for _ in range(FUZZ_REPLIES // len(SEEDS)):
        reply = mutated(dice)
        whole = split([reply])
        at = int(dice.random() * len(reply))
        assert split([reply[:at], reply[at:]]) == whole, reply
        if "<tool_" not in reply:
            assert whole.parts == ([reply] if reply else [])
        objects, place = objects_behind_tags(reply), 0
        for part in whole.parts:
            if isinstance(part, TextCall):
                assert part.name in NAMES and any(says(found, part) for found in objects), reply
            else:
                place = reply.index(part.strip(), place) + len(part.strip())
