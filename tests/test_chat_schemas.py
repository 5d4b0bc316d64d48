"""Tool schemas at each level: what a provider refuses is gone, what a property is named stays."""

from __future__ import annotations

import copy
import random
import time

import pytest

from claude_proxy.dialects.chat_schemas import fit_schema, meets_strict_rules
from claude_proxy.sse import encode_json


def obj(properties=None, **more):
    return {"type": "object", "properties": properties or {}, **more}


S = {"type": "string"}
LATER = {"$ref": "#/$defs/Node"}

ROWS = [
    ("5.0-empty", 0, {}, obj()),
    ("5.0-no-type", 0, {"properties": {"a": S}}, obj({"a": S})),
    ("5.0-stays", 0, obj({"a": S}, **{"$schema": "x", "additionalProperties": False}),
     obj({"a": S}, **{"$schema": "x", "additionalProperties": False})),
    ("5.0-any-of", 0, {"anyOf": [obj({"a": S}, required=["a"]), obj({"a": S, "b": S}, required=["a", "b"])]},
     obj({"a": S, "b": S}, required=["a"])),
    ("5.0-one-of-beside", 0, obj({"z": S}, required=["z"], oneOf=[obj({"a": S}, required=["a"]), obj({"b": S})]),
     obj({"b": S, "a": S, "z": S}, required=["z"])),
    ("5.0-all-of", 0, {"allOf": [obj({"a": S}, required=["a"]), obj({"b": S}, required=["b"])]},
     obj({"b": S, "a": S}, required=["b", "a"])),
    ("5.0-top-enum-not", 0, obj({"a": S}, enum=[1], **{"not": {}}), obj({"a": S})),
    ("5.0-bad-pattern", 0, obj({"a": {"type": "string", "pattern": r"\p{Cc}"}}), obj({"a": S})),
    ("5.0-good-pattern", 0, obj({"a": {"type": "string", "pattern": "^a+$"}}),
     obj({"a": {"type": "string", "pattern": "^a+$"}})),
    ("5.0-bad-pattern-deep", 0, obj({"a": {"type": "array", "items": {"anyOf": [{"pattern": "("}]}}}),
     obj({"a": {"type": "array", "items": {"anyOf": [{}]}}})),
    ("5.0-bad-pattern-names", 0, obj(patternProperties={"(": S, "a": S}), obj(patternProperties={"a": S})),
    ("5.0-property-named-pattern", 0, obj({"pattern": S, "properties": S, "enum": S}),
     obj({"pattern": S, "properties": S, "enum": S})),
    ("5.0-values-stay", 0, obj({"a": {"default": {"pattern": "("}, "const": {"pattern": "("}, "enum": [{"pattern": "("}]}}),
     obj({"a": {"default": {"pattern": "("}, "const": {"pattern": "("}, "enum": [{"pattern": "("}]}})),
    ("5.0-array-items", 0, obj({"a": {"type": "array"}}), obj({"a": {"type": "array", "items": {}}})),
    ("5.0-array-tuple", 0, obj({"a": {"type": "array", "prefixItems": [S]}}), obj({"a": {"type": "array", "prefixItems": [S]}})),
    ("5.1-meta", 1, obj({"a": {**S, "$comment": "c", "examples": [1]}}, **{"$schema": "x", "$id": "y"}), obj({"a": S})),
    ("5.1-property-names", 1, obj({"a": obj(propertyNames=S)}), obj({"a": obj()})),
    ("5.1-property-named-examples", 1, obj({"examples": S, "$id": S}), obj({"examples": S, "$id": S})),
    ("5.1-ref", 1, obj({"a": {"$ref": "#/$defs/A", "description": "d"}}, **{"$defs": {"A": S}}),
     obj({"a": {**S, "description": "d"}})),
    ("5.1-ref-in-ref", 1, obj({"a": {"$ref": "#/definitions/A"}}, definitions={
        "A": {"type": "array", "items": {"$ref": "#/definitions/B"}}, "B": S}), obj({"a": {"type": "array", "items": S}})),
    ("5.1-cycle", 1, obj({"n": LATER}, **{"$defs": {"Node": obj({"next": LATER})}}), obj({"n": obj({"next": {"type": "object"}})})),
    ("5.1-ref-to-itself", 1, obj({"n": {"$ref": "#"}}), obj({"n": obj({"n": {"type": "object"}})})),
    ("5.1-ref-nowhere", 1, obj({"n": {"$ref": "#/$defs/No"}, "m": {"$ref": "http://x"}}),
     obj({"n": {"type": "object"}, "m": {"type": "object"}})),
    ("5.2-dropped", 2, obj({"a": {"type": "integer", "exclusiveMinimum": 0, "multipleOf": 2, "default": 1, "title": "t"}},
                           additionalProperties=False, **{"not": {}, "if": {}, "deprecated": True}),
     obj({"a": {"type": "integer"}})),
    ("5.2-const", 2, obj({"a": {"const": "x"}}), obj({"a": {"type": "string", "enum": ["x"]}})),
    ("5.2-enum-numbers", 2, obj({"a": {"type": "integer", "enum": [1, 2, None]}}),
     obj({"a": {"type": "string", "enum": ["1", "2"]}})),
    ("5.2-nullable", 2, obj({"a": {"type": ["string", "null"]}}), obj({"a": {"type": "string", "nullable": True}})),
    ("5.2-format", 2, obj({"a": {**S, "format": "uri"}, "b": {**S, "format": "date-time"}}),
     obj({"a": S, "b": {**S, "format": "date-time"}})),
    ("5.2-one-of", 2, obj({"a": {"oneOf": [S, {"type": "number"}]}}), obj({"a": {"anyOf": [S, {"type": "number"}]}})),
    ("5.2-all-of", 2, obj({"a": {"allOf": [S, {"description": "d"}]}}), obj({"a": {"description": "d", **S}})),
    ("5.2-array-items", 2, obj({"a": {"type": "array"}}), obj({"a": {"type": "array", "items": S}})),
    ("5.2-required", 2, obj({"a": S}, required=["a", "b"]), obj({"a": S}, required=["a"])),
    ("5.2-additional-deep", 2, obj({"a": obj({"b": S}, additionalProperties={"type": "number"})}),
     obj({"a": obj({"b": S})})),
    ("5.2-property-named-title", 2, obj({"title": S, "default": S}, required=["title"]),
     obj({"title": S, "default": S}, required=["title"])),
    ("5.3-names-and-types", 3, obj({"a": {**S, "description": "d", "minLength": 1}, "b": obj({"c": S})}, required=["a"],
                                   description="d"), obj({"a": S, "b": {"type": "object"}})),
]


@pytest.mark.parametrize("rule,level,schema,expected", ROWS, ids=[row[0] for row in ROWS])
def test_levels(rule, level, schema, expected):
    before = copy.deepcopy(schema)
    assert fit_schema(schema, level) == expected
    assert schema == before


@pytest.mark.parametrize("rule,level,schema,expected", ROWS, ids=[row[0] for row in ROWS])
def test_a_fitted_schema_stays_as_it_is(rule, level, schema, expected):
    once = fit_schema(schema, level)
    assert encode_json(fit_schema(once, level)) == encode_json(once)


STRICT = [
    (obj({"a": S}, required=["a"], additionalProperties=False), True),
    (obj({"a": S, "b": S}, required=["a"], additionalProperties=False), False),
    (obj({"a": S}, required=["a"]), False),
    (obj(additionalProperties=False), True),
    (obj({"a": {"type": "array", "items": obj({"b": S})}}, required=["a"], additionalProperties=False), False),
    (obj({"a": {"anyOf": [S, obj(additionalProperties=False)]}}, required=["a"], additionalProperties=False), True),
    ({}, True), (5, True),
]


@pytest.mark.parametrize("schema,expected", STRICT)
def test_strict_rules(schema, expected):
    assert meets_strict_rules(schema) is expected


def odd_schema(dice, depth=0):
    if depth > 4 or dice.random() < 0.2:
        return dice.choice([None, True, 5, "text", [], {}, "object", ["a"], {"$ref": "#/$defs/A"}])
    keys = ["type", "properties", "items", "anyOf", "allOf", "oneOf", "enum", "const", "pattern", "required", "$ref",
            "$defs", "A", "additionalProperties", "not", "patternProperties", "format", "a"]
    if dice.random() < 0.2:
        return [odd_schema(dice, depth + 1) for _ in range(dice.randrange(3))]
    return {dice.choice(keys): odd_schema(dice, depth + 1) for _ in range(dice.randrange(5))}


@pytest.mark.parametrize("level", range(4))
def test_any_schema_gives_an_object(level):
    dice = random.Random(level)
    for _ in range(500):
        schema = odd_schema(dice)
        fitted = fit_schema(schema if isinstance(schema, dict) else {}, level)
        assert fitted["type"] == "object" and isinstance(fitted["properties"], dict)
        encode_json(fitted)


def test_references_that_multiply_end():
    defs = {f"D{n}": obj({k: {"$ref": f"#/$defs/D{n + 1}"} for k in "abcd"}) for n in range(30)}
    begun = time.monotonic()
    fit_schema(obj({"a": {"$ref": "#/$defs/D0"}}, **{"$defs": defs}), 1)
    assert time.monotonic() - begun < 5


def test_a_deep_schema_ends():
    schema = {}
    for _ in range(400):
        schema = {"type": "object", "properties": {"a": schema}}
    for level in range(4):
        encode_json(fit_schema(schema, level))
