"""Tool schemas as each provider understands them. Pure, and the same for the same schema always.

    level 0  everybody: an object with properties at the top, patterns that can be compiled, items
             wherever there is an array
    level 1  without what validators of grammars refuse; $ref resolved in place
    level 2  Gemini: a small part of OpenAPI's schema
    level 3  names and types only

Only schema positions are changed: a property that is named `pattern`, or a value inside `enum`,
`const` or `default`, stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Callable, Dict, List, Optional, Tuple

Schema = Dict[str, Any]

HIGHEST_SCHEMA_LEVEL = 3
EMPTY_SCHEMA: Schema = {"type": "object", "properties": {}}
DEEPEST_SCHEMA = 60
# Nested references may grow without end; what is left of such a schema is an object.
LARGEST_SCHEMA_NODES = 20_000

# Keyword -> what it holds: one schema, a list of them, or names with a schema each.
ONE_SCHEMA = (
    "items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames",
    "additionalItems", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")

DROPPED_AT_LEVEL_1 = (
    "$schema", "$id", "$comment", "strict", "propertyNames", "examples", "$defs", "definitions",
    "$anchor", "$vocabulary",
)  # fmt: skip
KEPT_AT_LEVEL_2 = (
    "type", "properties", "required", "items", "enum", "description", "nullable", "anyOf", "format",
    "minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength", "pattern",
    "minProperties", "maxProperties",
)  # fmt: skip
FORMATS_AT_LEVEL_2 = ("enum", "date-time")
KEPT_AT_LEVEL_3 = ("type", "items")


def fit_schema(schema: Schema, level: int) -> Schema:
    """The schema of a tool's input at a level; the input stays as it is."""
    if level >= 1:
        schema = SchemaInliner(schema).inline()
    schema = fit_node(flat_top({**EMPTY_SCHEMA, **schema}), level, 0)
    if level >= HIGHEST_SCHEMA_LEVEL:
        schema["properties"] = {
            name: {k: v for k, v in as_schema(one).items() if k in KEPT_AT_LEVEL_3}
            for name, one in schema["properties"].items()
        }
        schema = {"type": "object", "properties": schema["properties"]}
    return schema


def as_schema(value: Any) -> Schema:
    return value if isinstance(value, dict) else {}


def schemas_in(value: Any) -> List[Schema]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def flat_top(schema: Schema) -> Schema:
    """A top level that is an object with properties: alternatives there become one object.

    `required` is what all alternatives demand, or for allOf what any part does.
    """
    properties = dict(as_schema(schema["properties"]))
    required = {name for name in as_names(schema.get("required"))}
    for keyword in ("anyOf", "oneOf", "allOf"):
        parts = schemas_in(schema.get(keyword))
        for part in parts:
            properties = {**as_schema(part.get("properties")), **properties}
        demanded = [set(as_names(part.get("required"))) for part in parts]
        if demanded:
            join = set.union if keyword == "allOf" else set.intersection
            required |= join(*demanded)
    left = ("anyOf", "oneOf", "allOf", "not", "enum", "const", "required")
    flat = {key: value for key, value in schema.items() if key not in left}
    flat.update(type="object", properties=properties)
    if required:
        flat["required"] = [name for name in ordered_names(schema, properties) if name in required]
    return flat


def as_names(value: Any) -> List[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def ordered_names(schema: Schema, properties: Schema) -> List[str]:
    """Names in the order they were given, so that the same schema gives the same bytes."""
    return list(dict.fromkeys([*as_names(schema.get("required")), *properties]))


def fit_node(schema: Any, level: int, depth: int) -> Any:
    """One schema and all inside it."""
    if not isinstance(schema, dict) or depth > DEEPEST_SCHEMA:
        return schema if isinstance(schema, bool) and level < 2 else dict(EMPTY_SCHEMA)
    fitted = {key: fit_keyword(key, value, level, depth) for key, value in schema.items()}
    for rule in SCHEMA_RULES[: level + 1]:
        fitted = rule(fitted)
    return fitted


def fit_keyword(key: str, value: Any, level: int, depth: int) -> Any:
    inner = depth + 1
    if key in NAMED_SCHEMAS and isinstance(value, dict):
        return {name: fit_node(one, level, inner) for name, one in value.items()}
    if key in SCHEMA_LISTS and isinstance(value, list):
        return [fit_node(one, level, inner) for one in value]
    if key in ONE_SCHEMA and isinstance(value, dict):
        return fit_node(value, level, inner)
    return value


# --- the rules ---------------------------------------------------------------------------------


def without_bad_patterns(schema: Schema) -> Schema:
    """Only patterns that Python's `re` can compile."""
    kept = dict(schema)
    if "pattern" in kept and not is_pattern(kept["pattern"]):
        del kept["pattern"]
    if isinstance(kept.get("patternProperties"), dict):
        named = kept["patternProperties"]
        kept["patternProperties"] = {p: one for p, one in named.items() if is_pattern(p)}
    return kept


def without_bad_keywords(schema: Schema) -> Schema:
    """What OpenAI refuses a whole request for: such patterns, and an array that names no items."""
    kept = without_bad_patterns(schema)
    if kept.get("type") == "array" and "items" not in kept and "prefixItems" not in kept:
        kept["items"] = {}
    return kept


def is_pattern(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError, ValueError, OverflowError, RecursionError):
        return False
    return True


def without_meta_keywords(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key not in DROPPED_AT_LEVEL_1}


def as_openapi(schema: Schema) -> Schema:
    """The part of a schema that Gemini takes; it checks that names and items fit together."""
    schema = with_one_type(with_enum(with_any_of(schema)))
    kept = {key: value for key, value in schema.items() if key in KEPT_AT_LEVEL_2}
    if kept.get("format") not in FORMATS_AT_LEVEL_2:
        kept.pop("format", None)
    if kept.get("type") == "array" and not as_schema(kept.get("items")):
        kept["items"] = {"type": "string"}
    if kept.get("type") == "object" or "properties" in kept:
        properties = as_schema(kept.get("properties"))
        kept["required"] = [n for n in as_names(kept.get("required")) if n in properties]
    if not kept.get("required"):
        kept.pop("required", None)
    return kept


def with_any_of(schema: Schema) -> Schema:
    """oneOf is told as anyOf; the parts of allOf are told as one."""
    merged = dict(schema)
    for part in schemas_in(schema.get("allOf")):
        merged = {**part, **merged}
    if isinstance(merged.get("oneOf"), list):
        merged.setdefault("anyOf", merged["oneOf"])
    return merged


def with_enum(schema: Schema) -> Schema:
    """const is an enum of one; and all values are text."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list):
        return schema
    texts = [v if isinstance(v, str) else str(v) for v in values if v not in (None, "")]
    rest = {key: value for key, value in schema.items() if key not in ("enum", "const")}
    return {**rest, "type": "string", "enum": texts} if texts else rest


def with_one_type(schema: Schema) -> Schema:
    types = schema.get("type")
    if not isinstance(types, list):
        return schema
    named = [t for t in types if isinstance(t, str) and t != "null"]
    one = {**schema, "type": named[0] if named else "string"}
    return {**one, "nullable": True} if "null" in types else one


def as_it_is(schema: Schema) -> Schema:
    return schema


# What each level adds to the levels before it.
SCHEMA_RULES: Tuple[Callable[[Schema], Schema], ...] = (
    without_bad_keywords, without_meta_keywords, as_openapi, as_it_is,
)  # fmt: skip


# --- references --------------------------------------------------------------------------------


class SchemaInliner:
    """Puts what `$ref` points to in its place; a cycle becomes an object."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._nodes = 0

    def inline(self) -> Schema:
        return self._node(self._schema, (), 0)

    def _node(self, value: Any, open_refs: Tuple[str, ...], depth: int) -> Any:
        self._nodes += 1
        if isinstance(value, list):
            return [self._node(one, open_refs, depth + 1) for one in value]
        if not isinstance(value, dict):
            return value
        if depth > 2 * DEEPEST_SCHEMA:
            return {"type": "object"}
        ref = value.get("$ref")
        if isinstance(ref, str):
            return self._referred(ref, value, open_refs, depth)
        return {
            key: one if key in ("$defs", "definitions") else self._node(one, open_refs, depth + 1)
            for key, one in value.items()
        }

    def _referred(
        self, ref: str, value: Schema, open_refs: Tuple[str, ...], depth: int
    ) -> Schema:
        target = self._target(ref)
        if target is None or ref in open_refs or self._nodes > LARGEST_SCHEMA_NODES:
            return {"type": "object"}
        beside = {key: one for key, one in value.items() if key != "$ref"}
        return {**self._node(target, (*open_refs, ref), depth + 1), **beside}

    def _target(self, ref: str) -> Optional[Schema]:
        """What a reference within the schema points to."""
        found: Any = self._schema if ref.startswith("#") else None
        for step in ref[1:].strip("/").split("/") if ref != "#" else ():
            name = step.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else None


# --- strict ------------------------------------------------------------------------------------


def meets_strict_rules(schema: Any) -> bool:
    """Whether `strict` may be asked for: every object is closed and demands all its properties."""
    return all(
        node.get("additionalProperties") is False
        and set(as_names(node.get("required"))) == set(as_schema(node.get("properties")))
        for node in schema_nodes(schema)
        if node.get("type") == "object" or "properties" in node
    )


def schema_nodes(schema: Any) -> Iterator[Schema]:
    """Every schema inside a schema, itself first."""
    pending = [schema]
    while pending:
        node = pending.pop()
        if not isinstance(node, dict):
            continue
        yield node
        for key, value in node.items():
            if key in NAMED_SCHEMAS and isinstance(value, dict):
                pending += value.values()
            elif key in SCHEMA_LISTS and isinstance(value, list):
                pending += value
            elif key in ONE_SCHEMA:
                pending.append(value)
