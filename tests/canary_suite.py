"""Run the whole suite with every log at DEBUG and every byte kept, then look for what was said.

The words to look for are the tests' own:

- what their clients and their upstreams said when the suite was run: credentials in headers, and each
  line of each text in JSON and in events, but for members that are names (a model's, a type's, ids);
- literals in their source that are keys, by their look, their name or the setting or header that
  they stand for, and literals that somebody says (prompts, answers, an upstream's errors).

Short ones, and those that the program itself says somewhere, are left out.
"""

from __future__ import annotations

import ast
import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Dict, List, Tuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import parts  # noqa: E402
from tests.canary import SHORTEST_NEEDLE, Hit, Needles  # noqa: E402
from tests.canary_tee import NOT_KEPT  # noqa: E402

KEY_LOOKS = re.compile(
    r"(?i)\b(?:sk|pk|key)-(?=[\w.-]*\d)[\w.-]{5,}|\b\w*canary\w*|\b[0-9a-f]{32}(?:[0-9a-f]{32})?\b|(?<=bearer )\S{6,}|(?<=basic )\S{8,}"
    r"|(?<=x-api-key: )\S{4,}|(?<=cookie: )\S{4,}|(?<=://)[^/@\s{}]+:[^/@\s{}]+(?=@)"
)
KEY_NAMES = re.compile(r"(?i)(?:^|_)(?:key|keys|token|secret|passphrase|password|canary|shown|cookie)$|^custom_header_|canary")
# Members of requests and answers, and functions of the tests, in which somebody speaks.
SAID_MEMBERS = frozenset(
    "text content thinking system partial_json arguments data title context description signature message detail msg raw reason "
    "reasoning reasoning_content refusal input query command cited_text prompt stop_sequences user_id error".split())
SAID_BY = frozenset("message_body text_answer reply call call_ai_reply delta user assistant ask said text words body".split())
SHORTEST_TEXT = 12
# Files whose literals are identifiers of patients, all of them.
SAID_FILES = ("phi_samples.py",)


def literals(node: ast.AST) -> Iterator[str]:
    """The texts in an expression; parts of f-strings too."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, (str, bytes)):
            value = inner.value
            yield value if isinstance(value, str) else value.decode("latin-1")


def named_values(node: ast.AST) -> Iterator[Tuple[str, ast.AST]]:
    """(name, value) of what a piece of source gives a name to: variables, members, arguments."""
    if isinstance(node, ast.Assign):
        targets = [name for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        yield from ((name.id, node.value) for name in targets)
    elif isinstance(node, ast.keyword) and node.arg:
        yield node.arg, node.value
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, value


def called(node: ast.AST) -> str:
    function = getattr(node, "func", None)
    return getattr(function, "id", getattr(function, "attr", ""))


def file_words(path: pathlib.Path) -> Dict[str, str]:
    """word -> "key" or "said", of one file of tests."""
    found: Dict[str, str] = {}

    def add(kind: str, texts: Iterable[str]) -> None:
        for text in texts:
            for word in text.splitlines():
                found.setdefault(word.strip(), kind)

    tree = ast.parse(path.read_text(encoding="utf-8"))
    add("key", (word for text in literals(tree) for word in KEY_LOOKS.findall(text)))
    if path.name in SAID_FILES:
        add("said", (text for text in literals(tree) if re.search(r"\d{3}", text)))
    for node in ast.walk(tree):
        for name, value in named_values(node):
            if KEY_NAMES.search(name) and not isinstance(value, (ast.Call, ast.Lambda)):
                add("key", (text for text in literals(value) if " " not in text))
            if name in SAID_MEMBERS:
                add("said", literals(value))
        if isinstance(node, ast.Call) and called(node) in SAID_BY:
            add("said", (text for argument in node.args for text in literals(argument)))
    return found


def suite_words(folder: pathlib.Path) -> Tuple[Dict[str, str], int]:
    """The words to look for, each with where it is from; and how many were left out."""
    own = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "claude_proxy").rglob("*.py"))).lower()
    words: Dict[str, str] = {}
    for path in sorted((ROOT / "tests").glob("*.py")):
        for word, kind in file_words(path).items():
            if path.name in NOT_KEPT or word in words:
                continue
            words[word] = f"{kind}, {path.name}: {word}"
    for path in folder.glob("*.said"):
        for line in set(path.read_text(encoding="utf-8").splitlines()):
            kind, word = json.loads(line)
            words.setdefault(word, f"{kind}, by a test: {word}")
    telling = {word: place for word, place in words.items() if tells(word, place) and word.lower() not in own}
    return telling, len(words) - len(telling)


def tells(word: str, place: str) -> bool:
    """Whether a word is long and peculiar enough to be looked for."""
    if place.startswith("key"):
        return len(word) >= SHORTEST_NEEDLE and not re.fullmatch(r"[\w-]+\.[a-z]{2,5}", word)  # a file's name
    return len(re.sub(r"\W", "", word)) >= SHORTEST_TEXT and (" " in word or bool(re.search(r"\d|[A-Z]", word)))


def search(folder: pathlib.Path, needles: Needles) -> Tuple[int, List[Hit]]:
    size, hits = 0, {}
    for path in sorted(path for path in folder.iterdir() if path.suffix != ".said"):
        data = path.read_bytes()
        size += len(data)
        for hit in needles.hits(data, path.suffix[1:]):
            hits.setdefault((hit.place, hit.where), hit)
    return size, list(hits.values())


def main(arguments: Any = None) -> int:
    with tempfile.TemporaryDirectory() as name:
        os.environ["CANARY_TEE"] = name
        failed = parts.main()
        words, left_out = suite_words(pathlib.Path(name))
        needles = Needles((place, word) for word, place in words.items())
        size, hits = search(pathlib.Path(name), needles)
    for hit in hits:
        print(f"LEAK: {hit}")
    keys = sum(place.startswith("key") for place in words.values())
    print(f"searched {size} bytes of output for {keys} keys and {len(words) - keys} texts in {needles.forms} forms"
          f" ({left_out} short or own words left out): {len(hits)} hits")
    return 1 if hits or failed or not size else 0


if __name__ == "__main__":
    sys.exit(main())
