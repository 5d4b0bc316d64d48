"""What an upstream says of its models: window, longest answer, parameters. Read in the background.

    GET .../models (and what a local server has besides) --read_limits--> model -> ModelLimits

No request waits for it: the first one of a process starts a thread that asks once and ends; until
it has answered, nothing is known. Providers name the figures differently, so they are looked for
under every usual name.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

from claude_proxy.dialects.chat_options import ChatOptions

REFRESH_SECONDS = 3600.0
RETRY_SECONDS = 300.0
# A window of fewer tokens than this is some other figure.
LEAST_WINDOW = 256

WINDOW_NAMES = (
    "loaded_context_length", "n_ctx", "context_length", "context_window", "max_model_len",
    "max_context_length", "max_input_tokens",
)  # fmt: skip
OUTPUT_NAMES = ("max_completion_tokens", "max_output_tokens", "max_output_length")
# Members in which some hide their figures.
INNER_MEMBERS = ("top_provider", "limits", "model_info", "default_generation_settings")

# Profile -> paths to ask besides the list of models; they begin at the host's root.
LIMIT_PATHS: Dict[str, Tuple[str, ...]] = {
    "llamacpp": ("/props",),
    "ollama": ("/api/ps",),
    "lmstudio": ("/api/v0/models",),
}
# Parameter that a model does not have -> what becomes of the options.
MISSING_PARAMETERS: Tuple[Tuple[str, Dict[str, Any]], ...] = (
    ("tools", {"tools": False}),
    ("reasoning", {"thinking": ""}),
    ("structured_outputs", {"answer_format": "json_object"}),
    ("response_format", {"answer_format": "text"}),
)
SPARE_PARAMETERS = ("temperature", "top_p", "top_k", "stop")


class ModelLimits(NamedTuple):
    """Tokens, 0 where nothing is said; `parameters` is None where no list of them is given."""

    window: int = 0
    output: int = 0
    parameters: Optional[Tuple[str, ...]] = None


def read_limits(answer: Any) -> Dict[str, ModelLimits]:
    """Model -> its limits; "" is the key of what a server says of its only model."""
    found: Dict[str, ModelLimits] = {}
    for row in limit_rows(answer):
        limits = ModelLimits(
            first_figure(row, WINDOW_NAMES), first_figure(row, OUTPUT_NAMES), listed_names(row)
        )
        if limits != ModelLimits():
            names = (row.get(key) for key in ("id", "name", "model"))
            found.update((name, limits) for name in names if isinstance(name, str))
            if not any(isinstance(row.get(key), str) for key in ("id", "name", "model")):
                found[""] = limits
    return found


def limit_rows(answer: Any) -> Iterator[Dict[str, Any]]:
    """The objects that tell of one model each."""
    if isinstance(answer, dict):
        listed = next((answer[k] for k in ("data", "models") if isinstance(answer.get(k), list)), 0)
        answer = listed or [answer]
    yield from (row for row in answer if isinstance(row, dict)) if type(answer) is list else ()


def first_figure(row: Mapping[str, Any], names: Tuple[str, ...]) -> int:
    """The first of these members, here or one level in, that is a usable number."""
    inner = [row[key] for key in INNER_MEMBERS if isinstance(row.get(key), dict)]
    figures = (place.get(name) for name in names for place in (*inner, row))
    return next((n for n in figures if type(n) is int and n >= LEAST_WINDOW), 0)


def listed_names(row: Mapping[str, Any]) -> Optional[Tuple[str, ...]]:
    listed = row.get("supported_parameters")
    return tuple(n for n in listed if isinstance(n, str)) if isinstance(listed, list) else None


def limited_options(options: ChatOptions, limits: ModelLimits) -> ChatOptions:
    """The options within what the model is said to have; what a refusal taught goes before."""
    members: Dict[str, Any] = {}
    if limits.window:
        members["window"] = limits.window
    if limits.output and not 0 < options.max_output < limits.output:
        members["max_output"] = limits.output
    if limits.parameters:
        for name, change in MISSING_PARAMETERS:
            members.update(change if name not in limits.parameters else {})
        if options.answer_format == "text":
            members["answer_format"] = "text"
        missing = (name for name in SPARE_PARAMETERS if name not in limits.parameters)
        members["drop"] = options.drop.union(missing)
    return options._replace(**members)


class ModelCatalog:
    """The limits of an upstream's models. `fetch` asks for them; it may take its time, and fail."""

    def __init__(
        self, fetch: Callable[[], Dict[str, ModelLimits]], clock: Callable[[], float]
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._limits: Dict[str, ModelLimits] = {}
        self._next_time = clock()
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None

    def look_up(self, model: str) -> ModelLimits:
        """What is known now; asks anew in the background when it is time to."""
        if self._clock() >= self._next_time:
            self._refresh()
        known = self._limits
        return known.get(model) or known.get("") or ModelLimits()

    def _refresh(self) -> None:
        with self._lock:
            if self._clock() < self._next_time:
                return
            self._next_time = self._clock() + RETRY_SECONDS
            self._thread = threading.Thread(target=self._run, name="model-limits", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        found = self._fetch()
        if found:
            self._limits = found
            self._next_time = self._clock() + REFRESH_SECONDS

    def wait(self, seconds: float) -> None:
        """Until what has been begun is done; for tests and for the end of the process."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)


def decode_limits(body: bytes) -> Dict[str, ModelLimits]:
    try:
        return read_limits(json.loads(body))
    except (ValueError, RecursionError):
        return {}
