"""What SecureChatAI does to an answer's text on its way, PHP's ways included.

Steps: pick, remember a JSON value (not for Claude), trim, decode entities, rewrite what looks like
JSON, cut up to a `final_answer`, write the JSON value anew.
"""

from __future__ import annotations

import html.entities
import json
import re
from typing import Any, Dict, Optional, Tuple

REWRITTEN = "I apologize, but I wasn't able to complete that request properly. Could you try rephrasing?"
ENTITY = re.compile(r"&(?:#([0-9]+)|#[xX]([0-9A-Fa-f]+)|([A-Za-z][A-Za-z0-9]*));")
FINAL_ANSWER = re.compile(r'\{\s*"final_answer"\s*:\s*"')
PHP_BLANKS = " \t\r\n\0\x0b"
NUMERIC_ENTITIES = ((0x9, 0xA), (0xD, 0xD), (0x20, 0x7E), (0xA0, 0xD7FF), (0xE000, 0x10FFFF))
REPLACING_KEYS = ("final_answer", "tool_call", "content", "message")


class PhpFatal(Exception):
    """An error that the module does not catch."""


def passed_text(text: str, claude: bool) -> Any:
    """The text as a client gets it; False where PHP cannot write it. PhpFatal where PHP dies."""
    value = None if claude else php_json(text)
    text = decode_entities(text.strip(PHP_BLANKS))
    if text and text != "0" and (text.startswith("{") or text.startswith("```json")):
        text, whole = rewritten(text, value)
        if whole:
            return php_dumps(value[0])
    if isinstance(text, list):
        raise PhpFatal("a list for a text")
    return cut_final_answer(text) if isinstance(text, str) else php_dumps(text)


def decode_entities(text: str) -> str:
    """PHP's html_entity_decode with ENT_QUOTES and HTML 4.01, once."""
    return ENTITY.sub(decoded_entity, text)


def decoded_entity(match: re.Match[str]) -> str:
    decimal, hexadecimal, name = match.groups()
    if name:
        code = html.entities.name2codepoint.get(name)
        return match.group() if code is None else chr(code)
    code = int(decimal or hexadecimal, 10 if decimal else 16)
    allowed = any(low <= code <= high for low, high in NUMERIC_ENTITIES)
    return chr(code) if allowed else match.group()


def rewritten(text: str, value: Optional[Tuple[Any]]) -> Tuple[Any, bool]:
    """(text, whether the remembered value takes its place)."""
    text = re.sub(r"\A```json", "", text)
    text = re.sub(r"```\s*\Z", "", text).strip(PHP_BLANKS)
    parsed = php_json(re.sub(r"[\x00-\x1f]", "", text))
    if parsed is None:
        return text, False
    if value is not None:
        return text, True
    if isinstance(parsed[0], dict):
        for key in REPLACING_KEYS:
            if parsed[0].get(key) is not None:
                return (REWRITTEN if key == "tool_call" else parsed[0][key]), False
    return text, False


def cut_final_answer(text: str) -> str:
    match = FINAL_ANSWER.search(text)
    if match is None:
        return text
    rest = text[match.end() :].rstrip('"} \t\r\n')
    for escaped, plain in (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t"), ('\\"', '"'), ("\\\\", "\\")):
        rest = rest.replace(escaped, plain)
    return rest


# --- PHP's JSON ---------------------------------------------------------------------------------


def php_json(text: str) -> Optional[Tuple[Any]]:
    """(value,) of an object or a list in JSON, else None. PHP knows no half surrogates."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return (value,) if isinstance(value, (dict, list)) else None


def php_dumps(value: Any) -> Any:
    """A value as PHP writes it, or False: PHP cannot write infinity."""
    try:
        return json.dumps(php_value(value), separators=(",", ":"), allow_nan=False).replace("/", "\\/")
    except ValueError:
        return False


def php_value(value: Any) -> Any:
    """What PHP keeps of a value: objects are arrays there, whole floats lose their point."""
    if isinstance(value, list):
        return [php_value(item) for item in value]
    if isinstance(value, dict):
        items: Dict[str, Any] = {key: php_value(item) for key, item in value.items()}
        in_order = list(items) == [str(number) for number in range(len(items))]
        return list(items.values()) if in_order else items
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return float(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return value
