"""What PHP and SecureChatAI make of values and texts on the way. Pure.

PHP has one type for lists and maps. Here a map whose keys count up from 0 is a list, and an empty
one is []; so it comes out of `json_encode` too. A model's reply goes through these in their order:

    pick_...  the text and usage out of a vendor's answer
    polished  trim, decode entities, take apart what looks like the module's own JSON
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from html.entities import name2codepoint
from typing import Any, Callable, Dict, List, NoReturn, Optional

MAX_INT = 2**63 - 1
# As PHP counts: it reads one level of arrays less than it writes.
MAX_READ_DEPTH, MAX_WRITE_DEPTH = 511, 512

APOLOGY = "I apologize, but "
NETWORK_APOLOGY = (
    APOLOGY + "I'm experiencing network difficulties. Please wait a moment and try again."
)
TECHNICAL_APOLOGY = (
    APOLOGY + "I'm experiencing technical difficulties. Please wait a moment and try again."
)
REPHRASE_APOLOGY = (
    APOLOGY + "I wasn't able to complete that request properly. Could you try rephrasing?"
)
# By an error's `type`. Types that only agent mode gives are left out: the API cannot ask for it.
APOLOGIES = {
    "NETWORK_ERROR": NETWORK_APOLOGY,
    "TIMEOUT": APOLOGY + "that request took longer than expected. Please try again in a moment.",
}


class Crash(Exception):
    """A PHP Error: the module catches exceptions only, so it takes the whole request down."""


# --- values -------------------------------------------------------------------------------------


def php_array(members: Dict[str, Any]) -> Any:
    """A map as PHP sees it: a list if its keys are 0, 1, 2 and so on, in this order."""
    if all(key == str(index) for index, key in enumerate(members)):
        return list(members.values())
    return members


def truthy(value: Any) -> bool:
    return not (value is None or value == 0 or value in ("", "0") or value == [])


def dig(value: Any, *path: Any, default: Any = None) -> Any:
    """`$value['a'][0] ?? default`: whatever is missing or null on the way is the default."""
    for key in path:
        if isinstance(value, list):
            value = value[key] if isinstance(key, int) and key < len(value) else None
        else:
            value = value.get(str(key)) if isinstance(value, dict) else None
    return default if value is None else value


def as_string(value: Any) -> str:
    """What a `string` parameter makes of an argument."""
    if isinstance(value, (list, dict)):
        raise Crash("TypeError: must be of type string, array given")
    if value is None or isinstance(value, bool):
        return "1" if value else ""
    return value if isinstance(value, str) else php_encode(value) or ""


# Blanks that only Unicode knows are none, and what follows the number does not matter.
LEADING_NUMBER = re.compile(
    r"[ \t\n\r\v\f]*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)", re.ASCII | re.IGNORECASE
)


def as_float(value: Any) -> float:
    """`(float)` of a form field."""
    if not isinstance(value, str):
        return float(bool(value))
    match = LEADING_NUMBER.match(value)
    return float(match.group(1)) if match else 0.0


def as_int(value: Any) -> int:
    """`(int)` of a form field. Beyond 64 bits is the last number that fits, infinity is 0."""
    number = as_float(value)
    if math.isinf(number):
        return 0
    match = LEADING_NUMBER.match(value) if isinstance(value, str) else None
    digits = match.group(1) if match else ""
    # A float would lose the last digits of a long one.
    whole = int(digits) if digits.lstrip("+-").isdigit() else int(number)
    return max(-MAX_INT - 1, min(MAX_INT, whole))


# --- json_decode --------------------------------------------------------------------------------


def php_decode(text: str) -> Any:
    """`json_decode($text, true)`; ValueError where that fails."""
    try:
        value = JSON_DECODER.decode(text)
        # Half a surrogate, raw or escaped, is an error to PHP and nothing to Python.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("Maximum stack depth exceeded") from None
    if deeper_than(value, MAX_READ_DEPTH):
        raise ValueError("Maximum stack depth exceeded")
    return value


def decoded_int(digits: str) -> Any:
    """Integers beyond 64 bits become floats."""
    number = int(digits) if len(digits) < 25 else None
    return number if number is not None and -MAX_INT - 1 <= number <= MAX_INT else float(digits)


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


JSON_DECODER = json.JSONDecoder(
    object_pairs_hook=lambda pairs: php_array(dict(pairs)),
    parse_int=decoded_int,
    parse_constant=refuse_constant,
)


def deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels + 1):
        layer = [item for item in layer if isinstance(item, (list, dict))]
        if not layer:
            return False
        layer = [child for item in layer for child in members_of(item)]
    return True


def members_of(item: Any) -> List[Any]:
    return list(item.values()) if isinstance(item, dict) else item


# --- json_encode --------------------------------------------------------------------------------


def php_encode(value: Any) -> Optional[str]:
    """`json_encode($value)`, to the byte; None where that gives false. An empty dict is what PHP
    calls an object without members: {}."""
    if deeper_than(value, MAX_WRITE_DEPTH):
        return None
    try:
        return encoded(value)
    except (ValueError, RecursionError):
        return None


def encoded(value: Any) -> str:
    return ENCODERS[type(value)](value)


def encoded_string(text: str) -> str:
    text.encode("utf-8")
    # Python escapes DEL, PHP does not; PHP escapes slashes, Python does not.
    parts = [json.dumps(part)[1:-1] for part in text.split("\x7f")]
    return '"' + "\x7f".join(parts).replace("/", "\\/") + '"'


def encoded_float(number: float) -> str:
    """The shortest digits, like Python; when to write an exponent, and how, is PHP's own."""
    if not math.isfinite(number):
        raise ValueError("Inf and NaN cannot be JSON encoded")
    sign, digits, exponent = Decimal(repr(number)).as_tuple()
    point = len(digits) + int(exponent)
    text = "".join(map(str, digits)).rstrip("0")
    return ("-" if sign else "") + (placed_point(text, point) if text else "0")


def placed_point(digits: str, point: int) -> str:
    """0.`digits` times ten to the power of `point`."""
    if point < -3 or point > 17:
        return f"{digits[0]}.{digits[1:] or '0'}e{point - 1:+d}"
    if point <= 0:
        return "0." + "0" * -point + digits
    whole, rest = digits[:point].ljust(point, "0"), digits[point:]
    return f"{whole}.{rest}" if rest else whole


def encoded_list(items: List[Any]) -> str:
    return "[" + ",".join(map(encoded, items)) + "]"


def encoded_object(members: Dict[str, Any]) -> str:
    pairs = (f"{encoded_string(key)}:{encoded(value)}" for key, value in members.items())
    return "{" + ",".join(pairs) + "}"


ENCODERS: Dict[type, Callable[[Any], str]] = {
    type(None): lambda _: "null",
    bool: lambda value: "true" if value else "false",
    int: str,
    float: encoded_float,
    str: encoded_string,
    list: encoded_list,
    dict: encoded_object,
}


# --- picking: a vendor's answer -> content, usage -----------------------------------------------


def pick_claude(answer: Any, alias: str) -> Dict[str, Any]:
    """The first block's text, and nothing if that block is none."""
    tokens = [dig(answer, "usage", name, default=0) for name in ("input_tokens", "output_tokens")]
    return {
        "content": dig(answer, "content", 0, "text", default=""),
        "role": dig(answer, "role", default="assistant"),
        "model": dig(answer, "model", default="claude"),
        "usage": usage_of(*tokens, sum(tokens)),
    }


def pick_chat(answer: Any, alias: str) -> Dict[str, Any]:
    """A chat completion. Without a content, a call of a tool say, the answer stays as it is."""
    if dig(answer, "choices", 0, "message", "content") is None:
        return answer if isinstance(answer, dict) else {}
    return pick_listed_chat(answer, alias)


def pick_listed_chat(answer: Any, alias: str) -> Dict[str, Any]:
    """The same, but a missing content is an empty one; so the older module does it."""
    content = dig(answer, "choices", 0, "message", "content", default="")
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {
        "content": content,
        **structure_in(as_string(content)),
        "role": dig(answer, "choices", 0, "message", "role", default="assistant"),
        "model": dig(answer, "model", default=alias),
        "usage": usage_of(*(dig(answer, "usage", name, default=0) for name in names)),
    }


def pick_gemini(answer: Any, alias: str) -> Dict[str, Any]:
    """The older module's own way to Gemini: a list of chunks, all their parts."""
    chunks = members_of(answer)
    parts = [part for chunk in chunks for part in gemini_parts(chunk)]
    texts = [as_string(dig(part, "text")) for part in parts if truthy(dig(part, "text"))]
    usage = dig(chunks[-1] if chunks else None, "usageMetadata")
    names = ("promptTokenCount", "candidatesTokenCount", "totalTokenCount")
    return {
        "content": " ".join(texts),
        "role": dig(answer, 0, "candidates", 0, "content", "role", default="model"),
        "model": dig(answer, 0, "modelVersion", default=alias),
        "usage": usage_of(*(dig(usage, name, default=0) for name in names)),
    }


def gemini_parts(chunk: Any) -> List[Any]:
    return members_of(dig(chunk, "candidates", 0, "content", "parts", default=[]))


def usage_of(prompt: Any, completion: Any, total: Any) -> Dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def structure_in(text: str) -> Dict[str, Any]:
    """A text that is a JSON array or object is kept as a value too."""
    value = decoded_array(text)
    return {} if value is None else {"structured_output": value, "preserve_structure": True}


def decoded_array(text: str) -> Any:
    try:
        value = php_decode(text)
    except ValueError:
        return None
    return value if isinstance(value, (list, dict)) else None


# --- polishing: what `sanitizeOutputForUI` does -------------------------------------------------

PHP_BLANKS = " \t\n\r\0\x0b"
ENTITY = re.compile(r"&(?:#[xX]([0-9a-fA-F]+)|#([0-9]+)|([A-Za-z0-9]+));")
FENCES = re.compile(r"^```json\s*|\s*```$", re.ASCII)
FINAL_ANSWER = re.compile(r'\{\s*"final_answer"\s*:\s*"(.*)$', re.ASCII | re.DOTALL)
FINAL_REST = re.compile(r'["}\s]*$', re.ASCII)
# In this order, one after the other: of \\n a backslash and a line break remain.
FINAL_ESCAPES = (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t"), ('\\"', '"'), ("\\\\", "\\"))
# The first of these members that there is stands for the whole text.
TAKEN_MEMBERS = ("final_answer", "tool_call", "content", "message")


def php_trim(value: Any) -> str:
    return as_string(value).strip(PHP_BLANKS)


def polished(answer: Dict[str, Any]) -> Dict[str, Any]:
    if passed_through(answer):
        return answer
    if truthy(answer.get("error")):
        kind = answer.get("type")
        polite = APOLOGIES.get(kind) if isinstance(kind, str) else None
        return {"role": "assistant", "content": polite or TECHNICAL_APOLOGY}
    content = html_decode(php_trim(answer.get("content")))
    if content.startswith(("{", "```json")):
        content = php_trim(FENCES.sub("", content))
        value = decoded_array(re.sub(r"[\x00-\x1f]", "", content))
        if value is not None and answer.get("preserve_structure"):
            return {**answer, "content": content}
        content = content if value is None else taken_member(value, content)
    return {
        "role": dig(answer, "role", default="assistant"),
        "content": final_answer(content) if truthy(content) else content,
        "model": answer.get("model"),
        "usage": answer.get("usage"),
    }


def passed_through(answer: Dict[str, Any]) -> bool:
    """What the module takes for embeddings, speech or a transcript."""
    return (
        (answer.get("data") is not None and answer.get("content") is None)
        or answer.get("audio_base64") is not None
        or (answer.get("text") is not None and answer.get("role") is None)
    )


def html_decode(text: str) -> str:
    """`html_entity_decode($text, ENT_QUOTES)`: once, HTML 4's names, the semicolon is a must."""
    return ENTITY.sub(lambda match: entity_text(*match.groups()) or match.group(), text)


def entity_text(hexadecimal: Optional[str], decimal: Optional[str], name: Optional[str]) -> str:
    if name:
        return chr(name2codepoint[name]) if name in name2codepoint else ""
    digits = (hexadecimal or decimal or "").lstrip("0") or "0"
    code = int(digits, 16 if hexadecimal else 10) if len(digits) < 10 else -1
    return chr(code) if html4_character(code) else ""


def html4_character(code: int) -> bool:
    ranges = ((0x20, 0x7E), (0xA0, 0xD7FF), (0xE000, 0x10FFFF))
    return code in (0x09, 0x0A, 0x0D) or any(low <= code <= high for low, high in ranges)


def taken_member(value: Any, text: str) -> Any:
    """What the text becomes if it is an object with one of the members; not always a text."""
    found = next((name for name in TAKEN_MEMBERS if dig(value, name) is not None), None)
    if found is None:
        return text
    return REPHRASE_APOLOGY if found == "tool_call" else value[found]


def final_answer(content: Any) -> Any:
    """The last resort against the module's own schema; it works on any text that quotes it."""
    match = FINAL_ANSWER.search(as_string(content))
    if match is None:
        return content
    text = FINAL_REST.sub("", match.group(1))
    for escape, character in FINAL_ESCAPES:
        text = text.replace(escape, character)
    return text
