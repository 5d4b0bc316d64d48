"""What is handed out: the single file, its licence, its bill of materials, and their SHA-256.

    claude_api_proxy.py   LICENSE   sbom.cdx.json   SHA256SUMS

All is made from the source alone: two runs write the same bytes, on whatever machine. The bill of
materials is CycloneDX 1.5; it lists no components, for there are none. Not part of the single file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Dict, Optional

from claude_proxy.amalgamate import AmalgamateError, build
from claude_proxy.config import VERSION

RELEASED_FILE = "claude_api_proxy.py"
SBOM_FILE = "sbom.cdx.json"
SUMS_FILE = "SHA256SUMS"
AUTHORS = "The claude_proxy authors"
REFERENCE = f"claude_proxy@{VERSION}"
# What a reader could take for a component, but which is the host's own.
RUNS_ON = "Python 3.9 or later with its standard library, both of the host; nothing else"


def make_sbom(data: bytes, seconds: Optional[int] = None) -> Dict[str, Any]:
    """The bill of materials of a single file with these bytes; `seconds` is its time, if any."""
    digest = hashlib.sha256(data).hexdigest()
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    maker = {"type": "application", "name": "claude_proxy.release", "version": VERSION}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid_of(digest)}",
        "version": 1,
        "metadata": {
            **({} if seconds is None else {"timestamp": moment}),
            "tools": {"components": [maker]},
            "authors": [{"name": AUTHORS}],
            "component": described_component(digest),
        },
        "components": [],
        "dependencies": [{"ref": REFERENCE, "dependsOn": []}],
        "compositions": [{"aggregate": "complete", "dependencies": [REFERENCE]}],
    }


def described_component(digest: str) -> Dict[str, Any]:
    return {
        "type": "application",
        "bom-ref": REFERENCE,
        "supplier": {"name": AUTHORS},
        "name": "claude_proxy",
        "version": VERSION,
        "description": f"{RELEASED_FILE}, the whole program in one file",
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [{"license": {"id": "MIT"}}],
        "purl": f"pkg:generic/{REFERENCE}?checksum=sha256:{digest}",
        "properties": [{"name": "claude_proxy:runs-on", "value": RUNS_ON}],
    }


def uuid_of(digest: str) -> str:
    """A UUID of version 8 (of one's own making), the same for the same digest."""
    return f"{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-a{digest[17:20]}-{digest[20:32]}"


def release_files(package: Path, seconds: Optional[int] = None) -> Dict[str, bytes]:
    """Name -> bytes of everything that is handed out."""
    data = build(package).encode()
    sbom = json.dumps(make_sbom(data, seconds), indent=2) + "\n"
    files = {
        RELEASED_FILE: data,
        "LICENSE": (package.parent / "LICENSE").read_bytes(),
        SBOM_FILE: sbom.encode("ascii"),
    }
    return {**files, SUMS_FILE: sums_text(files).encode("ascii")}


def sums_text(files: Mapping[str, bytes]) -> str:
    """As sha256sum writes it and `sha256sum -c` reads it."""
    rows = ((hashlib.sha256(data).hexdigest(), name) for name, data in sorted(files.items()))
    return "".join(f"{digest}  {name}\n" for digest, name in rows)


def main(argv: Optional[Sequence[str]] = None) -> int:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Write what is handed out into a folder.")
    parser.add_argument("--output", type=Path, default=here.parent / "dist")
    parser.add_argument(
        "--time", type=int, metavar="SECONDS",
        help="the release's time since 1970, such as its commit's; without it none is written",
    )  # fmt: skip
    options = parser.parse_args(argv)
    try:
        files = release_files(here, options.time)
    except AmalgamateError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (options.output / name).write_bytes(data)
    (options.output / RELEASED_FILE).chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main())
