"""Collects texts of many kinds from what lies on a machine, for `calibrate.py`. Run by hand.

    python corpus.py OUT --source DIR [DIR ...] [--diff OLD NEW] [--request FILE] [--share /usr/share]

OUT gets one folder per kind with one file per source file. `--source` are folders with code and
documentation in them (a Python installation, node_modules, a compiler's documentation); `--diff`
are two versions of one tree; `--request` is a captured Messages request, for its tools and system
text; `--share` brings languages (gettext catalogues, translated man pages). The texts are other
people's: OUT stays outside the repository.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import gettext
import gzip
import hashlib
import html
import json
import random
import re
from itertools import zip_longest
from pathlib import Path

MOST_FILES, MOST_BYTES, LEAST_BYTES = 220, 60_000, 900

SUFFIXES = {
    "python": "py pyi",
    "javascript": "js mjs cjs",
    "typescript": "ts tsx",
    "c": "c h cc hpp",
    "other code": "rs go java cs php sql rb pl pm lua tcl vim cmake",
    "shell": "sh bash",
    "markup": "css xml svg",
    "html": "html htm",
    "markdown": "md rst",
    "json": "json",
    "settings": "yml yaml toml ini cfg",
    "csv": "csv",
    "log": "log",
    "text": "txt",
}
KIND_OF = {suffix: kind for kind, names in SUFFIXES.items() for suffix in names.split()}
LANGUAGES = (
    "ar bg bn cs da de el es fa fi fr he hi hu id it ja ka ko nl pl pt_BR ro ru sr sv ta te th tr uk"
    " vi zh_CN zh_TW"
).split()


class Corpus:
    """The folder that is filled: at most `MOST_FILES` texts a kind."""

    def __init__(self, out: Path):
        self._out, self._counts = out, {}

    def full(self, kind: str) -> bool:
        return self._counts.get(kind, 0) >= MOST_FILES

    def add(self, kind: str, origin: str, text: str) -> None:
        """One text. The name comes from the origin alone: two kinds of one file fall on one side."""
        if self.full(kind) or len(text.encode("utf-8", "replace")) < LEAST_BYTES:
            return
        name = hashlib.sha1(origin.encode()).hexdigest()[:16]
        folder = self._out / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text(text[:MOST_BYTES], "utf-8", "replace", "")
        self._counts[kind] = self._counts.get(kind, 0) + 1


def read(path: Path) -> str:
    data = path.read_bytes()[:400_000]
    return data.decode("utf-8").replace("\r\n", "\n")


def files(folder: Path) -> list[Path]:
    """All files inside, in an order that mixes the folders and is the same in every run."""
    found = [path for path in folder.rglob("*") if path.suffix[1:] in KIND_OF and path.is_file()]
    return sorted(found, key=lambda path: hashlib.sha1(str(path).encode()).digest())


def plain(page: str) -> str:
    """An HTML page's words."""
    page = re.sub(r"(?s)<(script|style|nav|head).*?</\1>", "", page)
    return re.sub(r"\n\s*\n+", "\n\n", html.unescape(re.sub(r"<[^>]+>", "", page))).strip()


def add_file(corpus: Corpus, path: Path, seen: set) -> None:
    kind = KIND_OF[path.suffix[1:]]
    try:
        text = read(path)
    except (UnicodeDecodeError, OSError):
        return
    digest = hashlib.sha1(text[:2000].encode()).digest()
    if digest in seen or "\0" in text or is_table(kind, text):
        return
    seen.add(digest)
    origin, lines = str(path), text.splitlines()
    if len(text) > 300 * (1 + len(lines)):
        kind = "minified" if kind in ("javascript", "markup", "html") else kind
    if kind == "html" and "/doc" in origin:
        corpus.add("prose", origin, plain(text))
    corpus.add(kind, origin, text)
    if kind == "json":
        add_json(corpus, origin, text)
    if kind in ("python", "javascript", "typescript", "other code", "markdown"):
        corpus.add("numbered", origin, "\n".join(f"{n:6}\t{s}" for n, s in enumerate(lines, 1)))
        hits = [f"{path.name}:{n}:{s}" for n, s in enumerate(lines, 1) if n % 7 in (1, 2)]
        corpus.add("grep", origin, "\n".join(f"src/{path.parent.name}/{hit}" for hit in hits))


def is_table(kind: str, text: str) -> bool:
    """Whether a source file holds other scripts in bulk: a table of characters, no text."""
    return (
        kind not in ("markdown", "html", "text") and sum(c > "\x7f" for c in text) > len(text) / 10
    )


def add_json(corpus: Corpus, origin: str, text: str) -> None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    corpus.add("json compact", origin, json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def add_listings(corpus: Corpus, folder: Path) -> None:
    """What ls -l, find and a list of checksums print about the files of a folder."""
    chosen = random.Random(str(folder))
    for parent in sorted({path.parent for path in files(folder)}):
        names = sorted(path for path in parent.iterdir() if path.is_file())[:300]
        corpus.add("find", str(parent), "\n".join(map(str, names)))
        days = [f"{chosen.choice(['Nov', 'Jun', 'Jan'])} {chosen.randint(1, 28):2}" for _ in names]
        rows = [
            f"-rw-r--r-- 1 root root {path.stat().st_size:9} {day} {chosen.randint(0, 23):02}:42 {path.name}"
            for path, day in zip(names, days)
        ]
        corpus.add("ls", str(parent), "\n".join(rows))


def add_diffs(corpus: Corpus, old: Path, new: Path) -> None:
    for path in files(old):
        other = new / path.relative_to(old)
        if corpus.full("diff") or path.suffix not in (".py", ".js", ".rst", ".md", ".h"):
            continue
        try:
            pair = [read(side).splitlines()[:3000] for side in (path, other)]
        except (UnicodeDecodeError, OSError):
            continue
        name = str(path.relative_to(old))
        corpus.add(
            "diff",
            str(path),
            "\n".join(difflib.unified_diff(*pair, f"a/{name}", f"b/{name}", lineterm="")),
        )


def add_request(corpus: Corpus, path: Path) -> None:
    request = json.loads(read(path))
    for tool in request.get("tools", ()):
        text = json.dumps(tool, ensure_ascii=False, separators=(",", ":"))
        corpus.add("tools", tool.get("name", "?"), text)
    system = [request.get("system"), *(m["content"] for m in request["messages"])]
    blocks = [block for item in system for block in (item if isinstance(item, list) else [item])]
    text = "\n".join(b if isinstance(b, str) else b.get("text", "") for b in blocks if b)
    for start in range(0, len(text), 3000):
        corpus.add("system", f"system {start}", text[start : start + 3000])


def add_languages(corpus: Corpus, share: Path) -> None:
    for language in LANGUAGES:
        for path in sorted(share.glob(f"locale/{language}/LC_MESSAGES/*.mo")):
            try:
                catalogue = gettext.GNUTranslations(path.open("rb"))._catalog
            except (OSError, UnicodeError, ValueError):
                continue
            whole = [
                text
                for key, text in catalogue.items()
                if key and len(str(key)) > 60 and text != key
            ]
            corpus.add(f"language {language}", f"{language} {path.name}", "\n".join(whole))
        for path in sorted(share.glob(f"man/{language}/man*/*.gz")):
            add_manual(corpus, f"language {language}", path)
        tutor = next(share.glob(f"vim/*/tutor/tutor.{language.lower()}.utf-8"), None)
        if tutor:
            corpus.add(f"language {language}", str(tutor), read(tutor))
    for path in sorted(share.glob("man/man*/*.gz"), key=lambda path: path.name[::-1]):
        add_manual(corpus, "manual", path)


def add_manual(corpus: Corpus, kind: str, path: Path) -> None:
    """A man page without its marks."""
    try:
        text = gzip.decompress(path.read_bytes()).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return
    text = re.sub(r"(?m)^[.'].{0,3}\\\".*$|^\.(?:SH|TP|PP|IP|B|I|BR|\w{1,2})\b", "", text)
    text = re.sub(r"\\f.|\\&|\\\(..", "", text).replace("\\-", "-")
    text = re.sub(r"(?<=[\u3000-\u9fff]) (?=[\u3000-\u9fff])", "", text)  # set wide by some
    corpus.add(kind, str(path), re.sub(r"\n\s*\n+", "\n\n", text))


def add_blobs(corpus: Corpus) -> None:
    """Unbroken strings: what no vocabulary knows."""
    for number in range(40):
        chosen = random.Random(number)
        data = bytes(chosen.randrange(256) for _ in range(9000))
        rows = [data[at : at + 16].hex() for at in range(0, 9000, 16)]
        corpus.add("base64", str(number), base64.b64encode(data).decode())
        corpus.add("base64 lines", str(number), base64.encodebytes(data).decode())
        corpus.add("hex", str(number), data.hex())
        corpus.add(
            "uuids",
            str(number),
            "\n".join(re.sub(r"(.{8})(.{4})(.{4})(.{4})", r"\1-\2-\3-\4-", r) for r in rows),
        )
        corpus.add(
            "numbers",
            str(number),
            "\n".join(
                ",".join(str(chosen.randint(0, 10 ** chosen.randint(1, 7))) for _ in range(8))
                for _ in range(300)
            ),
        )
        corpus.add(
            "decimals",
            str(number),
            "\n".join(f"{chosen.random() * 100:.4f}\t{chosen.gauss(0, 1):.6f}" for _ in range(600)),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, nargs="*", default=[])
    parser.add_argument("--diff", type=Path, nargs=2)
    parser.add_argument("--request", type=Path)
    parser.add_argument("--share", type=Path)
    options = parser.parse_args()
    corpus, seen = Corpus(options.out), set()
    for round_ in zip_longest(*map(files, options.source)):
        for path in filter(None, round_):
            if not corpus.full(KIND_OF[path.suffix[1:]]):
                add_file(corpus, path, seen)
    for folder in options.source:
        add_listings(corpus, folder)
    if options.diff:
        add_diffs(corpus, *options.diff)
    if options.request:
        add_request(corpus, options.request)
    if options.share:
        add_languages(corpus, options.share)
    add_blobs(corpus)


if __name__ == "__main__":
    main()
