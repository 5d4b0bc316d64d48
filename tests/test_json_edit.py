"""One value changes in a body, and not one byte of anything else."""

from __future__ import annotations

import json
import random

import pytest

from claude_proxy.json_edit import (
    OUTER_BYTES,
    UnreadMembers,
    array_items,
    cut_items,
    edited,
    member_edits,
    object_members,
    outer_members,
    read_members,
)


def replace_members(body, values):
    text = body.decode()
    return edited(text, member_edits(text, values)).encode()


HUGE = "1" * 5000
EDITS = [
    (b'{"model":"a","x":1}', {"model": "b"}, b'{"model":"b","x":1}'),
    (b' \n{ "model" :\t"a" , "x":1.10e5 }\r\n', {"model": "b"}, b' \n{ "model" :\t"b" , "x":1.10e5 }\r\n'),
    (b'{"x":{"model":"a"},"model":"a"}', {"model": "b"}, b'{"x":{"model":"a"},"model":"b"}'),
    (b'{"mod\\u0065l":"a"}', {"model": "b"}, b'{"mod\\u0065l":"b"}'),
    (b'{"model":"a","model":"c"}', {"model": "b"}, b'{"model":"b","model":"b"}'),
    (b'{"model":"a\\"}{,"}', {"model": "b"}, b'{"model":"b"}'),
    (b'{"model":null}', {"model": "b"}, b'{"model":"b"}'),
    (b'{"model":["a",{"b":1}],"y":2}', {"model": "b"}, b'{"model":"b","y":2}'),
    (b'{"x":%b,"model":"a"}' % HUGE.encode(), {"model": "b"}, b'{"x":%b,"model":"b"}' % HUGE.encode()),
    (b'{"x":NaN,"model":"a"}', {"model": "b"}, b'{"x":NaN,"model":"b"}'),
    ('{"\u00fc":"\U0001f600","model":"a","z":"\u20ac"}'.encode(), {"model": "\u00e4"},
     '{"\u00fc":"\U0001f600","model":"\\u00e4","z":"\u20ac"}'.encode()),
    ('\ufeff{"model":"a"}'.encode(), {"model": "b"}, '\ufeff{"model":"b"}'.encode()),
    (b'{"x":1}', {"stream": True}, b'{"stream": true, "x":1}'),
    (b'{}', {"stream": True}, b'{"stream": true}'),
    (b'{ }', {"stream": True}, b'{"stream": true }'),
    (b'{"stream":false,"model":"a"}', {"stream": True, "model": "b"}, b'{"stream":true,"model":"b"}'),
]


@pytest.mark.parametrize("body,values,expected", EDITS)
def test_edits(body, values, expected):
    assert replace_members(body, values) == expected


@pytest.mark.parametrize("body", [b"", b"[]", b"5", b'{"a"', b'{"a":}', b'{"a":1', b'{"a":1,}', b"{a:1}", b"\xff{}", b'{"a" 1}'])
def test_what_is_no_object_is_not_edited(body):
    with pytest.raises(ValueError):
        replace_members(body, {"model": "b"})


def odd_json(dice, depth=0):
    """JSON text that is legal and looks as nobody writes it."""
    blank = dice.choice(["", "", " ", "\n\t", "\r\n"])
    kind = dice.randrange(8 if depth < 4 else 5)
    if kind == 0:
        return blank + dice.choice(["1" * dice.randrange(1, 60), "-0", "1.50", "1E400", "0.1e-7"])
    if kind < 4:
        letters = ["a", "\\u0041", "\\\"", "\\\\", "\u00fc", "\U0001f600", "\\ud83d", "{", "}", ",", ":", "model"]
        return blank + '"' + "".join(dice.choice(letters) for _ in range(dice.randrange(6))) + '"' + blank
    if kind == 4:
        return blank + dice.choice(["null", "true", "false"])
    inner = [odd_json(dice, depth + 1) for _ in range(dice.randrange(4))]
    if kind == 5:
        return "[" + blank + ",".join(inner) + blank + "]"
    names = ['"a"', '"model"', '"str\\u0065am"', '"stream"', '""']
    return "{" + blank + ",".join(f"{dice.choice(names)}{blank}:{value}" for value in inner) + "}"


def test_odd_bodies_keep_every_other_byte():
    dice = random.Random(7)
    for _ in range(2000):
        body = "{" + ",".join(f'"k{n}":{odd_json(dice)}' for n in range(dice.randrange(4)))
        body += ("," if len(body) > 1 else "") + f'"model": {odd_json(dice)} }}'
        changed = replace_members(body.encode(), {"model": "new"}).decode()
        _, members = object_members(body)
        _, after = object_members(changed)
        assert [m.name for m in members] == [m.name for m in after]
        start, end = members[-1].start, members[-1].end
        assert changed == body[:start] + '"new"' + body[end:]


@pytest.mark.parametrize("body,model", [
    (b'{"model":"a","n":%b}' % HUGE.encode(), "a"), (b'{"model":"a","n":NaN,"f":1e999}', "a"),
    ('\ufeff{"model":"a"}'.encode(), "a")])
def test_routing_reads_odd_bodies(body, model):
    assert read_members(body)["model"] == model


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff", b'{"a":' * 100_000])
def test_what_cannot_be_read_is_none(body):
    assert read_members(body) is None


def test_large_bodies_are_edited_fast():
    body = json.dumps({"messages": ["x" * 100] * 20_000, "model": "a"}).encode()
    assert replace_members(body, {"model": "b"}) == body[: -len('"a"}')] + b'"b"}'


FILL = "x" * OUTER_BYTES
OUTER = [
    ('{"model":"a","messages":[%s],"max_tokens":5,"stream":true}', {"model": "a", "max_tokens": 5, "stream": True}),
    (' { "model" : "\u00e9" ,\n"messages":[%s] , "stream"\t: false }\r\n', {"model": "\u00e9", "stream": False}),
    ('{"messages":[%s],"model":"a","stream":null}', {"model": "a", "stream": None}),
    ('{"model":"a","stream":true,"messages":[%s]}', {"model": "a", "stream": True}),
    ('{"model":"a","messages":[%s],"thinking":{"stream":true}}', {"model": "a"}),
    ('{"model":"a","messages":[%s],"stream":true,"x":[]}', {"model": "a"}),
    ('{"model":"a","messages":[%s],"x":",\\"stream\\":true"}', {"model": "a"}),
    ('{"model":"a","messages":[%s],"x,":",","stream":true}', {"model": "a", "stream": True}),
    ('{"model":"a","messages":[%s],"stream" :1.5}', {"model": "a"}),
    ('{"model":"a","messages":[%s],"model":"b"}', {"model": "b"}),
    ('{"model":"a\\u0062","messages":[%s],"str\\u0065am":true}', {}),
    ('{"model":"a","messages":[%s],"n":007}', {}),
    ('{"model":"a","messages":[%s],"stream":true}}', {"model": "a"}),
    ('{"model":"a","messages":[%s],"stream":true', {"model": "a"}),
    ('\ufeff{"model":"a","messages":[%s]}', {}),
    ('[%s]', {}),
]


@pytest.mark.parametrize("text,known", OUTER)
@pytest.mark.parametrize("fill", ["", f'"{FILL}"', f'",\\"stream\\":true}}{FILL}"'], ids=["short", "long", "with quotes"])
def test_members_at_both_ends(text, known, fill):
    assert outer_members((text % fill).encode()) == known


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b"}", b",", b'{"a":"\xff","b":[]}', b'{"a":"\x01","b":[]}', b'{"model":"a"}'])
def test_ends_that_tell_nothing(body):
    assert outer_members(body) == {}


def test_what_the_ends_tell_is_so():
    dice, told = random.Random(11), 0
    for _ in range(3000):
        members = [f'"k{"abc"[n]}":{odd_json(dice)}' for n in range(dice.randrange(4))]
        members += ['"model":"claude-a"', dice.choice(['"stream":true', '"stream" : false', '"max_tokens":64000'])]
        dice.shuffle(members)
        body = "{" + ",".join(members) + "}"
        known, whole = outer_members(body.encode()), json.loads(body)
        assert all(name in whole and whole[name] == value for name, value in known.items()), body
        told += len(known)
    assert told > 3000


def test_the_rest_is_read_when_it_is_asked_for():
    unread = UnreadMembers({"model": "a"}, b'{"model":"a","system":"s"}')
    assert (unread["model"], unread.get("system"), unread.get("tools")) == ("a", "s", None)
    assert {**unread} == {"model": "a", "system": "s"} and len(unread) == 2
    broken = UnreadMembers({"model": "a"}, b'{"model":"a","system":')
    assert broken and {**broken} == {"model": "a"} and broken.get("system") is None


ITEMS = [
    ("[1,2,3]", {1}, "[2,3]"), ("[1,2,3]", {2}, "[1,3]"), ("[1,2,3]", {3}, "[1,2]"), ("[ 1 , 2 ,\n3 ]", {1, 3}, "[ 2 ]"),
    ("[1,2,3,4]", {2, 3}, "[1,4]"), ("[1,2,3]", {2, 3}, "[1]"), ("[ 1,2 ]", {1, 2}, "[ 0 ]"), ("[1,2]", {9}, "[1,2]"),
    ("[]", {1}, "[]"), ("[ ]", {1}, "[ ]"), ("{}", {1}, "{}"), ('"[1]"', {1}, '"[1]"'), ("[[1],1.0,1]", {1}, "[[1]]"),
]


@pytest.mark.parametrize("text,unwanted,expected", ITEMS)
def test_items_are_cut_out(text, unwanted, expected):
    edits = cut_items(text, 0, lambda value: isinstance(value, (int, float)) and value in unwanted, "0")
    assert edited(text, edits) == expected
    assert json.loads(expected) is not None


@pytest.mark.parametrize("text", ["[", "[1", "[1,", "[1,]", "[1 2]", "[,]", "[1}"])
def test_what_is_no_array_is_not_cut(text):
    with pytest.raises(ValueError):
        array_items(text, 0)
