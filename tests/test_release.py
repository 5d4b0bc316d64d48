"""What is handed out: the same bytes each time, sums that fit, and a bill of materials by the book."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from claude_proxy.amalgamate import build
from claude_proxy.config import VERSION
from claude_proxy.release import main, make_sbom, sums_text
from tests.support import ROOT

PACKAGE = ROOT / "claude_proxy"
NAMES = ["LICENSE", "SHA256SUMS", "claude_api_proxy.py", "sbom.cdx.json"]
DIGEST = hashlib.sha256(b"a file").hexdigest()

# --- CycloneDX 1.5, as far as we use it: object -> (members it must have, all members it may have) ---

TEXT, LINK = str, re.compile(r"[\x21-\x7e]+")
COMPONENT = {
    "type": re.compile("application|framework|library|container|platform|operating-system|device|device-driver"
                       "|firmware|file|machine-learning-model|data"),
    "name": TEXT, "version": TEXT, "description": TEXT, "bom-ref": LINK, "purl": LINK,
    "supplier": ("entity",), "hashes": ["hash"], "licenses": ["licence choice"], "properties": ["property"],
}
SHAPES = {
    "bom": (("bomFormat", "specVersion", "version"), {
        "$schema": re.compile(re.escape("http://cyclonedx.org/schema/bom-1.5.schema.json")),
        "bomFormat": re.compile("CycloneDX"), "specVersion": re.compile(r"1\.5"), "version": int,
        "serialNumber": re.compile("urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
        "metadata": ("metadata",), "components": ["component"], "dependencies": ["dependency"],
        "compositions": ["composition"],
    }),
    "metadata": ((), {
        "timestamp": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "tools": ("tools",), "authors": ["contact"],
        "component": ("component",),
    }),
    "tools": ((), {"components": ["component"]}),
    "contact": ((), {"name": TEXT, "email": TEXT, "phone": TEXT}),
    "entity": ((), {"name": TEXT, "url": [LINK], "contact": ["contact"]}),
    "component": (("type", "name"), COMPONENT),
    "hash": (("alg", "content"), {
        "alg": re.compile("SHA-256|SHA-384|SHA-512"), "content": re.compile("[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}"),
    }),
    "licence choice": (("license",), {"license": ("licence",)}),
    "licence": ((), {"id": re.compile("MIT"), "name": TEXT}),
    "property": ((), {"name": TEXT, "value": TEXT}),
    "dependency": (("ref",), {"ref": LINK, "dependsOn": [LINK]}),
    "composition": (("aggregate",), {
        "aggregate": re.compile("complete|incomplete|unknown|not_specified"), "assemblies": [LINK], "dependencies": [LINK],
    }),
}


def mistakes(value, shape, place=""):
    """What is wrong with a value: (name,) is an object of SHAPES, a list holds values of one shape, all different."""
    if isinstance(shape, list):
        if not isinstance(value, list) or len({json.dumps(item) for item in value}) < len(value):
            return [f"{place}: no list of different things"]
        one = (shape[0],) if isinstance(shape[0], str) else shape[0]
        return [wrong for item in value for wrong in mistakes(item, one, f"{place}[]")]
    if isinstance(shape, tuple):
        if not isinstance(value, dict):
            return [f"{place}: no object"]
        needed, members = SHAPES[shape[0]]
        odd = [f"{place}.{name}: missing" for name in needed if name not in value]
        odd += [f"{place}.{name}: unknown" for name in value if name not in members]
        return odd + [wrong for name in value if name in members
                      for wrong in mistakes(value[name], members[name], f"{place}.{name}")]
    if isinstance(shape, type):
        return [] if type(value) is shape else [f"{place}: no {shape.__name__}"]
    return [] if isinstance(value, str) and shape.fullmatch(value) else [f"{place}: {value!r}"]


@pytest.mark.parametrize("seconds", [None, 0, 1_800_000_000])
def test_the_bill_of_materials_is_by_the_book(seconds):
    assert mistakes(make_sbom(b"a file", seconds), ("bom",)) == []


@pytest.mark.parametrize("change,wrong", [
    (lambda bom: bom.pop("bomFormat"), ".bomFormat: missing"),
    (lambda bom: bom.update(licence="MIT"), ".licence: unknown"),
    (lambda bom: bom.update(version="1"), ".version: no int"),
    (lambda bom: bom.update(serialNumber="urn:uuid:ABC"), ".serialNumber: 'urn:uuid:ABC'"),
    (lambda bom: bom["metadata"]["component"].pop("name"), ".metadata.component.name: missing"),
    (lambda bom: bom["metadata"]["component"]["hashes"][0].update(alg="MD4"), ".metadata.component.hashes[].alg: 'MD4'"),
    (lambda bom: bom.update(components=[{"type": "gadget", "name": "x"}]), ".components[].type: 'gadget'"),
    (lambda bom: bom["dependencies"].append(bom["dependencies"][0]), ".dependencies: no list of different things"),
])
def test_the_book_is_strict(change, wrong):
    bom = make_sbom(b"a file")
    change(bom)
    assert mistakes(bom, ("bom",)) == [wrong]


def test_the_bill_of_materials_says_what_the_file_is():
    bom = make_sbom(b"a file")
    component = bom["metadata"]["component"]
    assert (component["version"], component["licenses"]) == (VERSION, [{"license": {"id": "MIT"}}])
    assert component["hashes"] == [{"alg": "SHA-256", "content": DIGEST}] and DIGEST in component["purl"]
    assert bom["components"] == [] and bom["dependencies"] == [{"ref": component["bom-ref"], "dependsOn": []}]
    assert bom["compositions"] == [{"aggregate": "complete", "dependencies": [component["bom-ref"]]}]


def test_the_serial_number_is_of_the_file_alone():
    numbers = [make_sbom(data, at)["serialNumber"] for data, at in ((b"a", 1), (b"a", 2), (b"b", 1))]
    assert numbers[0] == numbers[1] != numbers[2]


def test_sums_are_those_that_sha256sum_reads():
    assert sums_text({"b": b"", "a": b"a file"}) == f"{DIGEST}  a\n{hashlib.sha256().hexdigest()}  b\n"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "dist"
    assert main(["--output", str(folder), "--time", "1800000000"]) == 0
    return folder


def test_the_release_is_the_source_and_nothing_else(released):
    files = {path.name: path.read_bytes() for path in released.iterdir()}
    assert sorted(files) == NAMES and files["claude_api_proxy.py"] == build(PACKAGE).encode()
    assert files["LICENSE"] == (ROOT / "LICENSE").read_bytes()
    bom = json.loads(files["sbom.cdx.json"])
    assert mistakes(bom, ("bom",)) == [] and bom["metadata"]["timestamp"] == "2027-01-15T08:00:00Z"


def test_two_runs_write_the_same_bytes(released, tmp_path):
    """In another process too, with another order of hashes, in another time zone and language."""
    one, other = released, tmp_path / "other"
    environ = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    command = [sys.executable, "-m", "claude_proxy.release", "--output", str(other), "--time", "1800000000"]
    subprocess.run(command, cwd=ROOT, env=environ, check=True)
    assert [sorted(path.name for path in folder.iterdir()) for folder in (one, other)] == [NAMES, NAMES]
    assert [(one / name).read_bytes() == (other / name).read_bytes() for name in NAMES] == [True] * 4


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="sha256sum is not here")
def test_sha256sum_agrees_and_sees_a_change(released, tmp_path):
    folder, check = shutil.copytree(released, tmp_path / "copy"), ["sha256sum", "-c", "SHA256SUMS"]
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 0
    with open(folder / "claude_api_proxy.py", "ab") as file:
        file.write(b"#")
    assert b"claude_api_proxy.py: FAILED" in subprocess.run(check, cwd=folder, capture_output=True).stdout


@pytest.mark.skipif(os.name != "posix", reason="a mode is a matter of POSIX")
def test_the_released_file_can_be_run_and_tells_the_sum(released):
    program = released / "claude_api_proxy.py"
    told = subprocess.run([sys.executable, "-I", "-S", str(program), "--version"],
                          capture_output=True, text=True, check=True).stdout
    sums = dict(line.split()[::-1] for line in (released / "SHA256SUMS").read_text().splitlines())
    assert f"sha256 {sums[program.name]}\n" in told and os.access(program, os.X_OK)
