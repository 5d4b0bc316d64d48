"""From settings to an App: upstreams, their transport, limits, audit and telemetry."""

from __future__ import annotations

import os
import time
from typing import Callable, Dict, Optional, Tuple

from claude_proxy.agents import AgentCalls, read_agent_file
from claude_proxy.app import App
from claude_proxy.asking import Answerer
from claude_proxy.audit import make_audit
from claude_proxy.circuit import make_circuits, upstream_targets
from claude_proxy.config import ConfigError
from claude_proxy.inflight import Inflight
from claude_proxy.listen_tls import listening_context
from claude_proxy.log import Log
from claude_proxy.metrics import Metrics
from claude_proxy.otlp_export import Telemetry
from claude_proxy.otlp_send import ExportWay, read_plan
from claude_proxy.pool import ClientCertificate, make_ssl_context
from claude_proxy.proxies import check_no_socks, read_proxies
from claude_proxy.rate_limits import Gate
from claude_proxy.routes import Planner
from claude_proxy.settings import Config
from claude_proxy.summaries import Summaries
from claude_proxy.transport import Timeouts, Transport
from claude_proxy.upstreams.anthropic import AnthropicUpstream
from claude_proxy.upstreams.demo import DemoUpstream
from claude_proxy.upstreams.openai import OpenAIUpstream
from claude_proxy.upstreams.redcap import RedcapUpstream
from claude_proxy.upstreams.upstream import Upstream


def build_app(config: Config, log: Log, inflight: Inflight) -> App:
    """Make an App of settings. Reads certificate files; OSError or ConfigError names a bad one."""
    # Reading all of the system's roots takes time and memory: only where somebody needs them.
    roots = (config.ca_file, config.ca_dir)
    client = ClientCertificate(
        config.client_cert_file, config.client_key_file, config.client_key_passphrase
    )
    plan = read_plan(config)
    urls = (config.openai_base_url, config.redcap_api_url, config.anthropic_forward_url, *roots,
            config.https_proxy, config.http_proxy, config.all_proxy, client.cert_file,
            plan.metrics_url, plan.traces_url)  # fmt: skip
    secure = any(url for url in urls if not url.startswith("http:"))
    context = make_ssl_context(config.ssl_verify, *roots, client) if secure else None
    proxies = read_proxies(
        config.https_proxy, config.http_proxy, config.no_proxy, config.all_proxy
    )
    check_no_socks(upstream_targets(config).values(), proxies)
    timeouts = Timeouts(config.connect_timeout, config.request_timeout, config.stream_idle_timeout)
    circuits = make_circuits(config, log)
    transport = Transport(timeouts, config.max_retries, context, proxies=proxies, circuits=circuits)
    made = {name: make(config, transport) for name, make in UPSTREAMS.items()}
    upstreams = {name: upstream for name, upstream in made.items() if upstream is not None}
    try:
        prompts = read_agent_prompts(config.subagent_folders)
    except OSError as error:
        raise ConfigError([f"SUBAGENT_FOLDERS: {error.filename}: {error.strerror}"]) from None
    summaries = Summaries(time.monotonic)
    answerer = Answerer(config, upstreams, AgentCalls(), prompts, summaries, Planner(config))
    metrics = Metrics(time.time())
    gate = Gate(config)
    audit = make_audit(config, log)
    connect = min(config.connect_timeout, plan.timeout)
    sender = Transport(Timeouts(connect, 0, 0), 0, context, proxies=proxies)
    telemetry = Telemetry(ExportWay(plan, sender, log, circuits.states), metrics, inflight)
    return App(
        config, log, upstreams, transport, inflight, answerer, metrics, gate, audit, telemetry,
        circuits, listening_context(config),
    )


def read_agent_prompts(folders: Tuple[str, ...]) -> Dict[str, str]:
    """Name -> prompt of the agents whose files are in these folders. OSError names one that is not
    there."""
    found: Dict[str, str] = {}
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            if name.endswith(".md"):
                with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                    agent = read_agent_file(file.read())
                found.update([agent] if agent else [])
    return found


def make_demo(config: Config, transport: Transport) -> Upstream:
    return DemoUpstream()


def make_openai(config: Config, transport: Transport) -> Optional[Upstream]:
    return OpenAIUpstream(config, transport) if config.openai_base_url else None


def make_redcap(config: Config, transport: Transport) -> Optional[Upstream]:
    return RedcapUpstream(config, transport) if config.redcap_api_url else None


def make_anthropic(config: Config, transport: Transport) -> Optional[Upstream]:
    return AnthropicUpstream(config, transport) if config.anthropic_forward_url else None


# Name in settings and models -> what makes the upstream, or None where it is not configured.
UPSTREAMS: Dict[str, Callable[[Config, Transport], Optional[Upstream]]] = {
    "demo": make_demo,
    "openai": make_openai,
    "redcap": make_redcap,
    "anthropic": make_anthropic,
}
