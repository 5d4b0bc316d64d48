"""What lies in deploy/ fits the program: names, paths, times, and how little each is allowed."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from claude_proxy.app import ENDPOINTS
from claude_proxy.config import VERSION
from claude_proxy.config_load import load_config
from claude_proxy.settings import SETTINGS
from tests.small_yaml import read_yaml
from tests.support import ROOT

DEPLOY = ROOT / "deploy"
SECRETS = {setting.name for setting in SETTINGS if setting.secret}
DOCUMENTS = {document["kind"]: document for document in read_yaml((DEPLOY / "kubernetes.yaml").read_text())}
POD = DOCUMENTS["Deployment"]["spec"]["template"]["spec"]
PROXY, PROGRAM = POD["containers"]
SETTINGS_THERE = DOCUMENTS["ConfigMap"]["data"]

# --- the reader that the rest stands on ---------------------------------------------------------------


@pytest.mark.parametrize("text,value", [
    ("a: 1\nb:\n  c: true\n  d: x y # said\n", {"a": 1, "b": {"c": True, "d": "x y"}}),
    ('# head\na:\n  - name: "b: c"\n    e: 0440\n  - f\ng: []\n', {"a": [{"name": "b: c", "e": 0o440}, "f"], "g": []}),
    ("- - a\n  - b\n- c:\n    - d\n", [["a", "b"], {"c": ["d"]}]),
    ("a: h.x:80\nb:\nc: /livez\n", {"a": "h.x:80", "b": None, "c": "/livez"}),
])
def test_the_small_reader_reads(text, value):
    assert read_yaml(text) == [value]


@pytest.mark.parametrize("text", ["a: {b: 1}", "a: 'b'", "a: |\n  b", "a: &b c", "a: 1\na: 2", "a: 1\n   b: 2", "a: *b", "a: [1]",
                                  "a: 1.5", "a: no", "a: 1:30"])
def test_the_small_reader_refuses(text):
    with pytest.raises(ValueError):
        read_yaml(text)


def test_the_small_reader_agrees_with_another():
    yaml = pytest.importorskip("yaml")
    for path in (DEPLOY / "kubernetes.yaml", ROOT / "docker-compose.yml"):
        assert read_yaml(path.read_text()) == list(yaml.safe_load_all(path.read_text()))


# --- Kubernetes ---------------------------------------------------------------------------------------


def test_all_that_a_pod_needs_is_there_in_one_namespace():
    assert sorted(DOCUMENTS) == ["ConfigMap", "Deployment", "Namespace", "NetworkPolicy"]
    name = DOCUMENTS["Namespace"]["metadata"]["name"]
    assert {d["metadata"].get("namespace", name) for d in DOCUMENTS.values()} == {name}
    assert DOCUMENTS["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_pod_is_allowed_nothing():
    assert (POD["automountServiceAccountToken"], POD["enableServiceLinks"]) == (False, False)
    assert POD["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(POD)


@pytest.mark.parametrize("container", [PROXY, PROGRAM], ids=["proxy", "program"])
def test_each_container_is_allowed_nothing(container):
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]["limits"]) == set(container["resources"]["requests"]) == {"cpu", "memory"}


def test_the_settings_are_the_programs_and_are_taken():
    known = {setting.name for setting in SETTINGS} | {f"{name}_FILE" for name in SECRETS}
    assert set(SETTINGS_THERE) <= known and SECRETS.isdisjoint(SETTINGS_THERE)
    keys = {"OPENAI_API_KEY": "an-upstream-key", "ANTHROPIC_API_KEY": "a-client-key", "AUDIT_KEY": "0123456789abcdef" * 2}
    config = load_config(SETTINGS_THERE, read_file=lambda path: keys[path.rpartition("/")[2]])
    assert (config.upstream, config.listen_host, config.audit) == ("openai", "0.0.0.0", "log")


def test_secrets_are_files_of_the_secret():
    (mount,), (volume,) = PROXY["volumeMounts"], POD["volumes"]
    files = {name: path for name, path in SETTINGS_THERE.items() if name.endswith("_KEY_FILE")}
    assert files == {name: f"{mount['mountPath']}/{name[:-len('_FILE')]}" for name in files} and len(files) == 3
    assert mount["readOnly"] and mount["name"] == volume["name"] and volume["secret"]["defaultMode"] == 0o440
    made = re.findall(r"--from-file=(\w+)", (DEPLOY / "kubernetes.yaml").read_text())
    assert sorted(f"{name}_FILE" for name in made) == sorted(files)


def test_probes_ask_what_is_there():
    probes = {name: PROXY[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/health"}
    assert {("GET", probe["path"]) for probe in probes.values()} <= set(ENDPOINTS)
    (port,) = PROXY["ports"]
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert str(port["containerPort"]) == SETTINGS_THERE["LISTEN_PORT"]


def test_the_pod_waits_longer_than_a_drain():
    drain = int(SETTINGS_THERE["DRAIN_DELAY"]) + int(SETTINGS_THERE["DRAIN_TIMEOUT"])
    assert POD["terminationGracePeriodSeconds"] >= drain + 5 and int(SETTINGS_THERE["DRAIN_DELAY"]) > 0


def test_only_the_upstream_and_dns_are_let_out():
    spec = DOCUMENTS["NetworkPolicy"]["spec"]
    assert spec["podSelector"] == DOCUMENTS["Deployment"]["spec"]["selector"]
    assert (spec["policyTypes"], spec["ingress"]) == (["Ingress", "Egress"], [])
    out = [(list(rule["to"][0]), {row["port"] for row in rule["ports"]}) for rule in spec["egress"]]
    assert out == [(["ipBlock"], {443}), (["namespaceSelector", "podSelector"], {53})]
    assert spec["egress"][0]["to"][0]["ipBlock"]["cidr"].endswith("/32")


def test_the_image_has_the_version():
    assert PROXY["image"].endswith(f"/claude-proxy:{VERSION}")


# --- systemd ------------------------------------------------------------------------------------------

UNIT = (DEPLOY / "claude-proxy.service").read_text()
DROP_INS = {path.stem: path.read_text() for path in sorted((DEPLOY / "claude-proxy.service.d").iterdir())}


def test_the_unit_waits_longer_than_a_drain():
    (default,) = [setting.default for setting in SETTINGS if setting.name == "DRAIN_TIMEOUT"]
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.M)[1]) > int(default)


def test_each_credential_is_a_secret_setting():
    named = re.findall(r"^(?:# )?LoadCredential=([A-Z_]+):(\S+)$", DROP_INS["credentials"], re.M)
    assert len(named) >= 4 and {name for name, _ in named} <= SECRETS
    assert all(path == f"/etc/claude-proxy/secrets/{name}" for name, path in named)


def test_the_audit_has_the_only_folder_to_write_to():
    name, path = re.search(r"^Environment=(\w+)=(\S+)$", DROP_INS["audit"], re.M).groups()
    folder = re.search(r"^LogsDirectory=(\S+)$", DROP_INS["audit"], re.M)[1]
    assert (name, path.rpartition("/")[0]) == ("AUDIT_FILE", f"/var/log/{folder}")
    assert "ReadWritePaths" not in UNIT and "ProtectSystem=strict" in UNIT


def test_systemd_takes_the_unit_with_its_drop_ins(tmp_path):
    program = shutil.which("systemd-analyze")
    if not program:
        pytest.skip("systemd-analyze is not here")
    shutil.copy(DEPLOY / "claude-proxy.service", tmp_path)
    shutil.copytree(DEPLOY / "claude-proxy.service.d", tmp_path / "claude-proxy.service.d")
    done = subprocess.run([program, "verify", "./claude-proxy.service"], cwd=tmp_path, capture_output=True, text=True,
                          env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"}, timeout=30)
    complaints = [line for line in done.stderr.splitlines() if "claude-proxy" in line]
    if done.returncode and not complaints:
        pytest.skip(f"systemd-analyze cannot work here: {done.stderr[-200:]}")
    # Another release may lack a key, and where there is no such Python there is no such program.
    assert [line for line in complaints if "Unknown key" not in line and "not executable" not in line] == []


def test_systemd_finds_little_exposed():
    program = shutil.which("systemd-analyze")
    if not program or "--threshold" not in subprocess.run([program, "--help"], capture_output=True, text=True).stdout:
        pytest.skip("no systemd-analyze that judges a file")
    command = [program, "security", "--offline=true", "--threshold=20", str(DEPLOY / "claude-proxy.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "exposure level" in done.stdout, done.stdout[-300:] + done.stderr[-300:]
