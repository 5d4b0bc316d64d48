"""The real Claude Code, the proxy, and an upstream that is one provider in all that it says.

One conversation for each: a turn that thinks, writes and calls a tool; a turn of parallel calls; an
overflow, so that Claude Code compacts; the end. The upstream tells all this in that provider's
shapes (`provider_shapes`) and refuses, in that provider's words, what that provider refuses
(`provider_rules`).
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from tests.clients import provider_rules as rules
from tests.clients import provider_shapes as shapes
from tests.clients.claude_runner import ClaudeRun, claude, claude_succeeded
from tests.clients.lab import Lab, expect, expect_equal
from tests.clients.provider_rules import Asked, Rule
from tests.clients.provider_shapes import THOUGHTS, Refusal, Shape, Turn, told_answer
from tests.clients.upstream import Call, ChatRequest, PlayingUpstream
from tests.support import Step, json_answer

KEY = "scripted-key"
# What a provider refuses may be learned from, but a proxy that knows the provider has no need to.
MOST_REFUSALS = 2
SUMMARY = "THE-SUMMARY: four calls were made."
LAST_WORDS = "Went on after compaction."


class Provider(NamedTuple):
    """A provider as a scripted upstream plays it."""

    profile: str
    model: str
    base: str
    shape: Shape
    rules: Tuple[Rule, ...]
    ids: Tuple[str, str, str, str]
    error: Callable[[Refusal], List[Step]]
    full: Optional[Refusal]  # the context overflow; None if it tells none
    full_error: Optional[Callable[[Refusal], List[Step]]] = None
    asks_at: str = ""  # where requests go, if not {base}/chat/completions
    key_header: Tuple[str, str] = ("authorization", f"Bearer {KEY}")
    cache_marks: Rule = rules.NO_CACHE_MARKS
    thought_back: str = ""  # the member in which its reasoning has to come back as it was
    settings: Tuple[Tuple[str, str], ...] = ()
    aside: Tuple[Tuple[str, Any], ...] = ()  # what else it answers: (end of the path, JSON)

    @property
    def target(self) -> str:
        return self.asks_at or f"{self.base}/chat/completions"


# --- the conversation ---------------------------------------------------------------------------


def conversation(provider: Provider, work: pathlib.Path) -> Tuple[Turn, Turn]:
    """The two turns with calls."""
    a, b, c, d = provider.ids
    look = Call(a, "Bash", {"command": "echo 'the-first-result \u00fc\u20ac \"quoted\"'"})
    three = (
        Call(b, "Bash", {"command": "sleep 0.2; echo the-second-result"}),
        Call(c, "Read", {"file_path": str(work / "read-me.txt")}),
        Call(d, "Bash", {"command": "echo the-fourth-result"}),
    )
    return (
        Turn(1, THOUGHTS[1], "I look around.", (look,)),
        Turn(2, THOUGHTS[2], "", three),
    )


class ProviderUpstream(PlayingUpstream):
    """Plays a provider. `strict`: the first broken rule is answered with its refusal; otherwise all
    broken rules are noted, and the conversation goes on, which shows everything at once."""

    def __init__(self, provider: Provider, work: pathlib.Path, strict: bool = True) -> None:
        super().__init__(self._turn)
        self.chats: List[ChatRequest] = []
        self.broken: List[str] = []
        self.answered = 0
        self.overflowed = False
        self._provider = provider
        self._turns = conversation(provider, work)
        self._strict = strict

    def _script(self, received: Any) -> List[Step]:
        verb, target, _ = received.line.split(" ")
        if verb != "POST" or not target.partition("?")[0].endswith("/chat/completions"):
            return self._aside(target)
        try:
            asked = Asked(target, received.headers, received.json)
            return self._judged(asked) or super()._script(received)
        except Exception as error:
            self.mistakes.append(f"{received.line}: {error!r}")
            return json_answer(500, {"error": {"message": "the judge has no answer to this"}})

    def _aside(self, target: str) -> List[Step]:
        """A question about the server or its models."""
        known = (
            json_answer(200, said) for end, said in self._provider.aside if target.endswith(end)
        )
        return next(known, json_answer(404, {"error": {"message": "not found"}}))

    def _judged(self, asked: Asked) -> List[Step]:
        """The refusal of a request; nothing if it is fine."""
        for rule in (
            *rules.COMMON_RULES,
            self._provider.cache_marks,
            *address_rules(self._provider),
        ):
            complaint = rule.judge(asked)
            if complaint:
                self.mistakes.append(f"{rule.name}: {complaint.words}")
        found = [(rule, rule.judge(asked)) for rule in self._provider.rules]
        broken = [(rule, complaint) for rule, complaint in found if complaint]
        self.broken += [rule.name for rule, _ in (broken[:1] if self._strict else broken)]
        return self._provider.error(broken[0][1]) if broken and self._strict else []

    def _turn(self, chat: ChatRequest) -> List[Step]:
        """What a request is answered with; it alone decides, for a refused one comes again."""
        self.chats.append(chat)
        made, full = len(chat.results), self._provider.full
        if "THE-SUMMARY" in chat.user_text:
            return self._say(Turn(0, "", LAST_WORDS))
        if "detailed summary" in json.dumps(chat.messages[-2:]):
            return self._say(Turn(0, "", f"<summary>{SUMMARY}</summary>"))
        if made in (0, 1):
            return self._say(self._turns[made])
        if not full:
            return self._say(Turn(0, "", LAST_WORDS))
        self.overflowed = True
        return (self._provider.full_error or self._provider.error)(full)

    def _say(self, turn: Turn) -> List[Step]:
        self.answered += 1
        return told_answer(self._provider.shape, turn)


def address_rules(provider: Provider) -> Tuple[Rule, ...]:
    """Where requests go, and the key in its own header alone."""
    name, value = provider.key_header
    keys = ("authorization", "api-key")

    def address(asked: Asked) -> Optional[Refusal]:
        return None if asked.target == provider.target else Refusal(asked.target)

    def key(asked: Asked) -> Optional[Refusal]:
        sent = {header: asked.headers[header] for header in keys if header in asked.headers}
        return None if sent == {name: value} else Refusal(f"in {[*sent]}")

    return (Rule("address", address), Rule("key", key))


@contextlib.contextmanager
def provider_playing(
    lab: Lab, provider: Provider, work: pathlib.Path, strict: bool
) -> Iterator[Tuple[ProviderUpstream, Any]]:
    with ProviderUpstream(provider, work, strict) as upstream:
        environ = {
            "OPENAI_PROFILE": provider.profile,
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream.port}{provider.base}",
            "BIG_MODEL": provider.model,
            "SMALL_MODEL": provider.model,
            "MAX_RETRIES": "0",
            **dict(provider.settings),
        }
        with lab.proxy(**environ) as proxy:
            yield upstream, proxy


# --- what has to come of it ---------------------------------------------------------------------


def check_provider(provider: Provider, lab: Lab, strict: bool = True) -> str:
    work = lab.new_folder("work")
    (work / "read-me.txt").write_text("the-third-result\n")
    with provider_playing(lab, provider, work, strict) as (upstream, proxy):
        run = claude(lab, proxy.url, "Look around", cwd=work)
    refused = counted_words(upstream.broken)
    expect_equal(upstream.mistakes, [], f"mistakes (refused: {refused or 'nothing'})")
    expect(not run.status, f"refused: {refused or 'nothing'}; it said {run.text[:300]!r}")
    claude_succeeded(run)
    expect_conversation(provider, upstream, work)
    expect_shown(provider, run)
    expect_usage(provider, upstream, run)
    expect(len(upstream.broken) <= MOST_REFUSALS, f"refused: {refused}")
    return ", ".join(
        (
            f"{len(upstream.broken)} refusal(s){': ' + refused if refused else ''}",
            f"reasoning back: {' '.join(members_back(upstream)) or 'no'}",
            "compacted" if provider.full else "tells no overflow",
        )
    )


def counted_words(names: List[str]) -> str:
    """Each name once, with how often it is there."""
    return ", ".join(f"{name} x{count}" for name, count in collections.Counter(names).items())


def expect_conversation(provider: Provider, upstream: ProviderUpstream, work: pathlib.Path) -> None:
    """Every call came back as it was made, every result in its place."""
    whole = max(upstream.chats, key=lambda chat: len(chat.results))
    calls = [call for turn in conversation(provider, work) for call in turn.calls]
    made = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in whole.calls]
    expect_equal(made, [(call.name, call.arguments) for call in calls], "the calls that went back")
    ids = [call["id"] for call in whole.calls]
    expect_equal([call_id for call_id, _ in whole.results], ids, "ids of results and calls")
    own = [(sent, call.id) for sent, call in zip(ids, calls) if call.id not in ("", "null")]
    expect_equal(
        [sent for sent, _ in own], [call_id for _, call_id in own], "the provider's own ids"
    )
    words = ('first-result \u00fc\u20ac "quoted"', "second-result", "third-result", "fourth-result")
    for (_, found), word in zip(whole.results, words):
        expect(f"the-{word}" in found, f"the {word} is {found!r}")
    said = [m.get("content") for m in whole.messages if m["role"] == "assistant"][0]
    expect("I look around." in json.dumps(said), f"the first turn's text is {said!r}")
    expect("<think" not in json.dumps(said), f"reasoning in the text that went back: {said!r}")
    if provider.thought_back:
        back = [message.get(provider.thought_back) for message in called_messages(upstream)]
        expect_equal(back, [THOUGHTS[1], THOUGHTS[2]], "the reasoning that went back")


def called_messages(upstream: ProviderUpstream) -> List[Dict[str, Any]]:
    """The messages with calls as they went back, in the longest request."""
    whole = max(upstream.chats, key=lambda chat: len(chat.results))
    return [message for message in whole.messages if message.get("tool_calls")]


def members_back(upstream: ProviderUpstream) -> List[str]:
    """Members in which reasoning went back, of a message or of a call."""
    messages = called_messages(upstream)
    calls = [call for message in messages for call in message["tool_calls"]]
    found = {name for message in messages for name in message if name.startswith("reasoning")}
    return sorted(found | {name for call in calls for name in call if name == "extra_content"})


def expect_shown(provider: Provider, run: ClaudeRun) -> None:
    """What the user sees: the reasoning as such, the text, the compaction, the end."""
    blocks = [b for e in run.events if e["type"] == "assistant" for b in e["message"]["content"]]
    turns = (Turn(1, THOUGHTS[1], ""), Turn(2, THOUGHTS[2], ""))
    visible = [turn.thought for turn in turns if shows(provider.shape, turn)]
    thoughts = [b["thinking"].strip() for b in blocks if b["type"] == "thinking"]
    expect_equal([thought for thought in thoughts if thought], visible, "the reasoning shown")
    texts = [b["text"] for b in blocks if b["type"] == "text"]
    expect_equal([texts[0].strip(), texts[-1]], ["I look around.", LAST_WORDS], "the texts shown")
    expect_equal(run.text, LAST_WORDS, "the answer")
    compacted = any(e.get("subtype") == "compact_boundary" for e in run.events)
    expect_equal(compacted, bool(provider.full), "whether it compacted")


def shows(shape: Shape, turn: Turn) -> bool:
    """Whether a turn's reasoning is told in words at all."""
    return turn.thought[-5:] in json.dumps(shape.thought(turn))


def expect_usage(provider: Provider, upstream: ProviderUpstream, run: ClaudeRun) -> None:
    """Every answer counts with what the provider said of it."""
    names = ("inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens", "outputTokens")
    (model,) = run.result["modelUsage"].values()
    wanted = [upstream.answered * count for count in provider.shape.usage.counted]
    expect_equal([model[name] for name in names], wanted, f"usage of {upstream.answered} answers")


# --- the providers ------------------------------------------------------------------------------

OPENAI_IDS = (
    "call_kX3Yw1u9aQmVtR7sLz0bNcE2",
    "call_0fJd8Ha5pWqZxT4yBvKu6GiM",
    "call_7RrSe2NnLl9CcPpOo1DdFfJj",
    "call_vV5tT6uU8wW0xX2yY3zZ4aAb",
)
PROVIDERS: Dict[str, Provider] = {
    "openai": Provider(
        "openai",
        "gpt-4.1",
        "/v1",
        shapes.OPENAI,
        rules.GPT_4_1_RULES,
        OPENAI_IDS,
        shapes.openai_error,
        Refusal(
            "This model's maximum context length is 1047576 tokens. However, your messages resulted in 1061234 "
            "tokens (1041234 in the messages, 20000 in the functions). Please reduce the length of the messages "
            "or functions.",
            "messages",
            "context_length_exceeded",
        ),
    ),
    "openai-gpt-5": Provider(
        "openai",
        "gpt-5",
        "/v1",
        shapes.OPENAI._replace(calls=shapes.calls_mixed),
        rules.GPT_5_RULES,
        OPENAI_IDS,
        shapes.openai_error,
        Refusal(
            "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 281404 tokens. "
            "Please reduce the length of the messages.",
            "messages",
            "context_length_exceeded",
        ),
    ),
    "openai-gpt-5.4": Provider(
        "openai",
        "gpt-5.4",
        "/v1",
        shapes.OPENAI,
        rules.GPT_5_4_RULES,
        OPENAI_IDS,
        shapes.openai_error,
        Refusal(
            "Your input exceeds the context window of this model. Please adjust your input and try again.",
            "messages",
            "context_length_exceeded",
        ),
    ),
    "openai-gpt-5.6": Provider(
        "openai",
        "gpt-5.6",
        "/v1",
        shapes.OPENAI,
        rules.GPT_5_6_RULES,
        OPENAI_IDS,
        shapes.openai_error,
        Refusal(
            "Input tokens exceed the configured limit of 922000 tokens. Your messages resulted in 930014 tokens. "
            "Please reduce the length of the messages.",
            "messages",
            "context_length_exceeded",
        ),
    ),
    "openai-o4-mini": Provider(
        "openai",
        "o4-mini",
        "/v1",
        shapes.OPENAI,
        rules.O4_MINI_RULES,
        OPENAI_IDS,
        shapes.openai_error,
        Refusal(
            "This model's maximum context length is 200000 tokens. However, your messages resulted in 204308 "
            "tokens. Please reduce the length of the messages.",
            "messages",
            "context_length_exceeded",
        ),
    ),
    "azure": Provider(
        "azure",
        "team-chat",
        "",
        shapes.AZURE,
        rules.AZURE_RULES,
        OPENAI_IDS,
        shapes.openai_error,
        Refusal(
            "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 281404 tokens. "
            "Please reduce the length of the messages.",
            "messages",
            "context_length_exceeded",
        ),
        asks_at="/openai/deployments/team-chat/chat/completions?api-version=2024-10-21",
        key_header=("api-key", KEY),
        settings=(("AZURE_API_VERSION", "2024-10-21"),),
    ),
    "openrouter": Provider(
        "openrouter",
        "anthropic/claude-sonnet-4.5",
        "/api/v1",
        shapes.OPENROUTER,
        rules.OPENROUTER_RULES,
        ("toolu_01A", "toolu_01B", "toolu_01C", "toolu_01D"),
        shapes.openrouter_error,
        Refusal(
            "This endpoint's maximum context length is 200000 tokens. However, you requested about 268000 tokens "
            "(184000 of text input, 20000 of tool input, 64000 in the output). Please reduce the length of either "
            'one, or use the "middle-out" transform to compress your prompt automatically.'
        ),
        shapes.openrouter_own_error,
        cache_marks=rules.CACHE_MARKS_ON_PARTS,
    ),
    "deepseek": Provider(
        "deepseek",
        "deepseek-chat",
        "",
        shapes.DEEPSEEK,
        rules.DEEPSEEK_RULES,
        ("call_00_a1", "call_00_b2", "call_01_c3", "call_02_d4"),
        shapes.openai_error,
        Refusal(
            "This model's maximum context length is 131072 tokens. However, you requested 141072 tokens (132880 in "
            "the messages, 8192 in the completion). Please reduce the length of the messages or completion.",
            None,
            "invalid_request_error",
        ),
    ),
    "deepseek-thinking": Provider(
        "deepseek",
        "deepseek-reasoner",
        "/v1",
        shapes.DEEPSEEK_THINKING,
        rules.DEEPSEEK_THINKING_RULES,
        ("call_00_a1", "call_00_b2", "call_01_c3", "call_02_d4"),
        shapes.openai_error,
        Refusal(
            "This model's maximum context length is 131072 tokens. However, you requested 196072 tokens (132072 in "
            "the messages, 64000 in the completion). Please reduce the length of the messages or completion.",
            None,
            "invalid_request_error",
        ),
        thought_back="reasoning_content",
    ),
    "xai": Provider(
        "xai",
        "grok-code-fast-1",
        "/v1",
        shapes.XAI,
        rules.XAI_RULES,
        ("call_51873962", "call_10472938", "call_77120934", "call_90817263"),
        shapes.xai_error,
        Refusal(
            "This model's maximum prompt length is 256000 but the request contains 256917 tokens."
        ),
    ),
    "gemini": Provider(
        "gemini",
        "gemini-3-pro-preview",
        "/v1beta/openai",
        shapes.GEMINI,
        rules.GEMINI_RULES,
        ("jm4owj31", "", "", ""),
        shapes.gemini_error,
        Refusal(
            "The input token count (1050321) exceeds the maximum number of tokens allowed (1048576)."
        ),
    ),
    "mistral": Provider(
        # Not every deployment makes ids: those say "null", and take only proper ones back.
        "mistral",
        "magistral-medium-latest",
        "/v1",
        shapes.MISTRAL,
        rules.MISTRAL_RULES,
        ("D681PevKs", "aB3dE6gH9", "null", "null"),
        shapes.mistral_error,
        Refusal(
            "Prompt contains 133217 tokens and 0 draft tokens, too large for model with 131072 maximum context "
            "length",
            None,
            "3051",
        ),
    ),
    "groq": Provider(
        "groq",
        "qwen/qwen3-32b",
        "/openai/v1",
        shapes.GROQ,
        rules.GROQ_RULES,
        ("fzb3tqz7j", "8kq1v0m2n", "p5w9x4c6d", "s7h2r8t3y"),
        shapes.groq_error,
        Refusal(
            "Please reduce the length of the messages or completion.",
            "messages",
            "context_length_exceeded",
        ),
    ),
    "together": Provider(
        "together",
        "Qwen/Qwen3-235B-A22B-Thinking-2507",
        "/v1",
        shapes.TOGETHER,
        rules.TOGETHER_RULES,
        OPENAI_IDS,
        shapes.together_error,
        Refusal(
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 262145. Given: 270011 `inputs` "
            "tokens and 64000 `max_new_tokens`",
            status=422,
        ),
    ),
    "vllm": Provider(
        "vllm",
        "Qwen/Qwen3-Coder-30B-A3B-Instruct",
        "/v1",
        shapes.VLLM,
        rules.VLLM_RULES,
        tuple(f"chatcmpl-tool-{letter * 32}" for letter in "abcd"),
        shapes.vllm_error,
        Refusal(
            "'max_tokens' or 'max_completion_tokens' is too large: 64000. This model's maximum context length is "
            "131072 tokens and your request has 132904 input tokens (64000 > 131072 - 132904). None"
        ),
    ),
    "llamacpp": Provider(
        "llamacpp",
        "gpt-oss-20b",
        "/v1",
        shapes.LLAMACPP,
        rules.LLAMACPP_RULES,
        tuple(letter * 32 for letter in "WXYZ"),
        shapes.llamacpp_error,
        Refusal(
            "request (41500 tokens) exceeds the available context size (40960 tokens), try increasing it"
        ),
        shapes.llamacpp_overflow,
        aside=(("/props", {"default_generation_settings": {"n_ctx": 131072}, "total_slots": 1}),),
    ),
    "ollama": Provider(
        # It cuts the front of a prompt that is too long, and says nothing of it.
        "ollama",
        "qwen3:14b",
        "/v1",
        shapes.OLLAMA,
        rules.OLLAMA_RULES,
        ("call_7qd2r0xk", "call_h1m5u8ze", "call_p9w3b6ty", "call_c4n7v2sa"),
        shapes.openai_error,
        None,
        aside=(
            (
                "/api/ps",
                {"models": [{"name": "qwen3:14b", "model": "qwen3:14b", "context_length": 131072}]},
            ),
            (
                "/api/show",
                {
                    "capabilities": ["completion", "tools", "thinking"],
                    "model_info": {"qwen3.context_length": 131072},
                },
            ),
        ),
    ),
    "lmstudio": Provider(
        "lmstudio",
        "qwen3-30b-a3b",
        "/v1",
        shapes.LMSTUDIO,
        rules.LMSTUDIO_RULES,
        ("388110531", "907263514", "120394857", "665544332"),
        shapes.lmstudio_error,
        Refusal(
            "Trying to keep the first 41500 tokens when context the overflows. However, the model is loaded with "
            "context length of only 40960 tokens, which is not enough. Try to load the model with a larger context "
            "length, or provide a shorter input"
        ),
        shapes.lmstudio_late_error,
        aside=(
            (
                "/api/v0/models",
                {
                    "object": "list",
                    "data": [
                        {
                            "id": "qwen3-30b-a3b",
                            "max_context_length": 131072,
                            "loaded_context_length": 131072,
                        }
                    ],
                },
            ),
        ),
    ),
    "openwebui": Provider(
        "openwebui",
        "qwen3:14b",
        "/api",
        shapes.OPENWEBUI,
        rules.OPENWEBUI_RULES,
        tuple(f"call_{letter * 8}-0000-4000-8000-{letter * 12}" for letter in "abcd"),
        shapes.webui_error,
        Refusal(
            "This model's maximum context length is 40960 tokens. However, you requested 105500 tokens (41500 in "
            "the messages, 64000 in the completion). Please reduce the length of the messages or completion."
        ),
    ),
}

PROVIDER_CHECKS: Dict[str, Callable[[Lab], str]] = {
    f"provider-{name}": functools.partial(check_provider, provider)
    for name, provider in PROVIDERS.items()
}
