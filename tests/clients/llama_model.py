"""A language model of a few hundred kilobytes, made on the spot, for llama.cpp to serve.

Its weights are worked out, not learnt: attention and feed-forward add nothing, so that what comes
next hangs on the last token alone. A prompt ends with a cue that the chat template chooses (below),
and after a cue comes one chain of pieces and the end. All the rest (the tokenizer, the template's
rendering, the grammars, the reading of tool calls, HTTP) is llama.cpp's own.
"""

from __future__ import annotations

import array
import pathlib
import string
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Dict, List, NamedTuple, Tuple

WIDTH = 96  # of the model: one place for each token that has a successor of its own, and one over
FEED_FORWARD = 32
HEAD = 8
CONTEXT = 262144
BYTES = 256
ALIGNMENT = 32
NORMAL, CONTROL = 1, 3  # kinds of token
START, END = "<|im_start|>", "<|im_end|>"
CALL_WORDS, TWO_WORDS, THINK_WORDS = "Call the tool", "Call it twice", "Think first"
RESULT_WORDS = "from-llama"
OPENING = "<tool_call>\n"

# What is said after which cue. No piece may stand twice, nor be a single byte.
CHAINS: Dict[str, List[str]] = {
    f"<|cue_{name}|>": pieces.split("|")
    for name, pieces in {
        "text": "Words| that| a tiny| model| said|.\n|Gr\u00fc\u00dfe| \u2713",
        "call": (
            "Let| me| look.\n|"
            f'{OPENING}|{{"name": |"Bash"|, "arguments"|: {{|"command": "echo| from|-llama"|'
            ', "description"|: "Says so"|}}|\n</tool_call>'
        ),
        "two": (
            '<tool_call>|\n{"name"|: "get_|weather", |"arguments": {|"city": "Par|is"}}\n|</tool_call>|'
            '<tool_|call>\n{"na|me": "get|_weather"|, "arguments": |{"city"|: "R\u00f4|me"}|}\n</tool_call>'
        ),
        "result": "The tool| has| spoken.",
        "think": "<think>\n|Two| and two|\n</think>\n\n|Four| it is.",
    }.items()
}
TEXT, CALL, TWO, RESULT, THINK = CHAINS
SAID = {cue: "".join(pieces) for cue, pieces in CHAINS.items()}

# Hermes' and Qwen's way to show tools, calls and results; only the cue at the end is our own.
TEMPLATE = (
    """\
{%- if tools %}{{ '<|im_start|>system\\n# Tools\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' + tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\nAnswer with <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content %}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
{%- endif %}
{%- if message.content %}{{ message.content }}{%- endif %}
{%- if message.tool_calls %}{%- for call in message.tool_calls %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- set last = messages[-1].content or '' %}
"""
    f"{{%- if messages[-1].role == 'tool' and '{RESULT_WORDS}' in last %}}{RESULT}\n"
    f"{{%- elif '{CALL_WORDS}' in last %}}{CALL}\n"
    f"{{%- elif '{TWO_WORDS}' in last %}}{TWO}\n"
    f"{{%- elif '{THINK_WORDS}' in last %}}{THINK}\n"
    f"{{%- else %}}{TEXT}\n"
    "{%- endif %}{%- endif %}"
)


class Token(NamedTuple):
    text: str
    kind: int = NORMAL


def byte_letters() -> List[str]:
    """GPT-2's printable letter for each of the 256 bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(BYTES) if byte not in printable]
    return [chr(b if b in printable else BYTES + others.index(b)) for b in range(BYTES)]


def spelled(text: str) -> str:
    letters = byte_letters()
    return "".join(letters[byte] for byte in text.encode())


def pairs_of_letters() -> List[Tuple[str, str]]:
    """What the tokenizer joins: it nearly halves a prompt."""
    letters = string.ascii_lowercase
    return [(spelled(first), second) for first in " " + letters for second in letters]


def vocabulary() -> List[Token]:
    tokens = [Token(letter) for letter in byte_letters()]
    tokens += [Token(first + second) for first, second in pairs_of_letters()]
    tokens += [Token(text, CONTROL) for text in (START, END, *CHAINS)]
    tokens += [Token(spelled(piece)) for pieces in CHAINS.values() for piece in pieces]
    assert len({token.text for token in tokens}) == len(tokens), "a piece stands twice"
    return tokens


def successors(tokens: Sequence[Token]) -> List[Tuple[int, int]]:
    """(token, the one after it) along the chains; from any other token it is to the end."""
    number = {token.text: at for at, token in enumerate(tokens)}
    pairs = []
    for cue, pieces in CHAINS.items():
        line = [number[cue], *(number[spelled(piece)] for piece in pieces), number[END]]
        pairs += list(zip(line, line[1:]))
    return pairs


def embeddings(tokens: Sequence[Token]) -> Tuple[List[float], List[float]]:
    """The input and the output matrix: a place says which token was, and so which comes.

    A grammar may forbid that. After the chains' ends a tool's call is then the next best, and
    everywhere a single byte is better than a piece (not white space, which could go on for long),
    best of all the one that may close a call.
    """
    pairs = successors(tokens)
    assert len(pairs) < WIDTH, "more tokens than places"
    size = len(tokens) * WIDTH
    came, comes = [0.0] * size, [0.0] * size
    place = {token: at + 1 for at, (token, _) in enumerate(pairs)}
    for token in range(len(tokens)):
        came[token * WIDTH + place.get(token, 0)] = 8.0
    end, opening = (tokens.index(token) for token in (Token(END, CONTROL), Token(spelled(OPENING))))
    for token in set(range(BYTES)) - set(b" \n\r\t"):
        liking = 3.0 if token == ord("<") else 2.0
        comes[token * WIDTH : (token + 1) * WIDTH] = [liking] * WIDTH
    comes[end * WIDTH] = 8.0
    for token, following in pairs:
        comes[following * WIDTH + place[token]] = 8.0
        if following == end:
            comes[opening * WIDTH + place[token]] = 4.0
    return came, comes


def tensors(tokens: Sequence[Token]) -> List[Tuple[str, Tuple[int, ...], List[float]]]:
    came, comes = embeddings(tokens)
    narrow, wide = (WIDTH, HEAD), (WIDTH, FEED_FORWARD)
    nothing = {
        "attn_q": narrow,
        "attn_k": narrow,
        "attn_v": narrow,
        "attn_output": narrow[::-1],
        "ffn_gate": wide,
        "ffn_up": wide,
        "ffn_down": wide[::-1],
    }
    ones = [1.0] * WIDTH
    return [
        ("token_embd.weight", (WIDTH, len(tokens)), came),
        ("output.weight", (WIDTH, len(tokens)), comes),
        ("output_norm.weight", (WIDTH,), ones),
        ("blk.0.attn_norm.weight", (WIDTH,), ones),
        ("blk.0.ffn_norm.weight", (WIDTH,), ones),
        *((f"blk.0.{n}.weight", s, [0.0] * (s[0] * s[1])) for n, s in nothing.items()),
    ]


def settings(tokens: Sequence[Token]) -> Dict[str, Any]:
    texts = [token.text for token in tokens]
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.block_count": 1,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": 1,
        "llama.attention.key_length": HEAD,
        "llama.attention.value_length": HEAD,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [token.kind for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in pairs_of_letters()],
        "tokenizer.ggml.eos_token_id": texts.index(END),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def typed(value: Any) -> bytes:
    """A value of GGUF's metadata, its type before it."""
    if isinstance(value, list):
        of = 8 if not value or isinstance(value[0], str) else 5
        return struct.pack("<IIQ", 9, of, len(value)) + b"".join(typed(v)[4:] for v in value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_text(value)
    number, letter = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}[type(value)]
    return struct.pack(f"<I{letter}", number, value)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % ALIGNMENT)


def raw(numbers: Iterable[float]) -> bytes:
    floats = array.array("f", numbers)
    if sys.byteorder == "big":
        floats.byteswap()
    return padded(floats.tobytes())


def write_model(path: pathlib.Path) -> None:
    """The whole model as a GGUF file, version 3."""
    tokens = vocabulary()
    pairs, matrices = settings(tokens), tensors(tokens)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(matrices), len(pairs))
    head += b"".join(gguf_text(name) + typed(value) for name, value in pairs.items())
    body = b""
    for name, shape, numbers in matrices:
        head += gguf_text(name) + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(body)
        )
        body += raw(numbers)
    path.write_bytes(padded(head) + body)
