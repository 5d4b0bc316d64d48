"""Where a request goes for what it is: each rule alone, their order, and what is tried afterwards."""

from __future__ import annotations

import pytest

from claude_proxy.agents import AgentFound
from claude_proxy.config_load import load_config
from claude_proxy.routes import (
    LONGEST_NAME_KEPT,
    MOST_NAMES_KEPT,
    Planner,
    RouteFacts,
    background_kind,
    explained_routes,
    first_route,
    has_image,
    plan_routes,
)

OPENAI = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
          "BIG_MODEL": "big", "MIDDLE_MODEL": "mid", "SMALL_MODEL": "small"}
RELAY = {"UPSTREAM": "anthropic", "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
ALL = {"SUBAGENT_MAPPINGS": "reviewer:openai:for-reviews", "BACKGROUND_MODEL": "openai:for-background",
       "VISION_MODEL": "openai:for-images", "LONG_CONTEXT_MODEL": "openai:for-long",
       "MODEL_WINDOWS": "mid=1000,for-reviews=1000,claude-*=1000,for-background=1000,for-images=1000"}

PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
REVIEWER = AgentFound("reviewer", "agent call")


def said(content="hi", **more):
    return {"model": "claude-sonnet-5", "max_tokens": 100, "messages": [{"role": "user", "content": content}], **more}


def blocks(*content):
    return said(list(content))


TITLE = said("<session>fix it</session>", tools=[], output_config={"format": {"type": "json_schema", "schema": {}}},
             stream=True)
PAGE = said("Web page content: ...", tools=[], system=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
COUNTING = {"model": "claude-sonnet-5", "max_tokens": 1, "messages": [{"role": "user", "content": "count"}]}


def route(environ, request=None, agent=None, tokens=0, window=0):
    facts = RouteFacts(request or said(), agent, lambda: tokens, lambda route: window)
    return first_route(load_config(environ), facts)


# --- each rule ------------------------------------------------------------------------------------

ROWS = [
    # (name, environ, request, agent, tokens, upstream:model, reason)
    ("plain", OPENAI, said(), None, 0, "openai:mid", "family"),
    ("nothing is set", OPENAI, blocks(PNG), REVIEWER, 10**7, "openai:mid", "family"),
    ("nothing is set, background", OPENAI, TITLE, None, 0, "openai:mid", "family"),
    ("relay", RELAY, said(), None, 0, "anthropic:claude-sonnet-5", "as named"),
    ("relay, all set, a plain request", {**RELAY, **ALL}, said(), None, 0, "anthropic:claude-sonnet-5", "as named"),
    ("no model", OPENAI, {"messages": []}, None, 0, "openai:big", "no model named"),
    ("an odd model", OPENAI, {"model": 5, "messages": 5}, None, 0, "openai:5", "as named"),

    ("agent", {**RELAY, **ALL}, said(), REVIEWER, 0, "openai:for-reviews", "agent reviewer by agent call"),
    ("another agent", {**RELAY, **ALL}, said(), AgentFound("tester", "agent call"), 0,
     "anthropic:claude-sonnet-5", "as named"),
    ("agent to another Claude", {**RELAY, "SUBAGENT_MAPPINGS": "reviewer:claude-haiku-9"}, said(), REVIEWER, 0,
     "anthropic:claude-haiku-9", "agent reviewer by agent call"),
    ("agent to a bare model elsewhere", {**RELAY, "SUBAGENT_MAPPINGS": "reviewer:gpt-4.1"}, said(), REVIEWER, 0,
     "openai:gpt-4.1", "agent reviewer by agent call"),
    ("agent before background", {**RELAY, **ALL}, TITLE, REVIEWER, 0, "openai:for-reviews",
     "agent reviewer by agent call"),
    ("agent before MODEL_MAP", {**RELAY, **ALL, "MODEL_MAP": "claude-*=openai:mapped"}, said(), REVIEWER, 0,
     "openai:for-reviews", "agent reviewer by agent call"),

    ("title", {**RELAY, **ALL}, TITLE, None, 0, "openai:for-background", "background title"),
    ("page", {**RELAY, **ALL}, PAGE, None, 0, "openai:for-background", "background page summary"),
    ("counting", {**RELAY, **ALL}, COUNTING, None, 0, "openai:for-background", "background counting"),
    ("background before MODEL_MAP", {**RELAY, **ALL, "MODEL_MAP": "claude-*=openai:mapped"}, TITLE, None, 0,
     "openai:for-background", "background title"),

    ("image", {**OPENAI, **ALL}, blocks(PNG), None, 0, "openai:for-images", "family, images"),
    ("image, Claude sees", {**RELAY, **ALL}, blocks(PNG), None, 0, "anthropic:claude-sonnet-5", "as named"),
    ("image of an agent", {**RELAY, **ALL}, blocks(PNG), REVIEWER, 0, "openai:for-images",
     "agent reviewer by agent call, images"),
    ("image in the background", {**RELAY, **ALL}, {**PAGE, "messages": blocks(PNG)["messages"]}, None, 0,
     "openai:for-images", "background page summary, images"),

    ("fits", {**OPENAI, **ALL}, said(), None, 900, "openai:mid", "family"),
    ("does not fit", {**OPENAI, **ALL}, said(), None, 901, "openai:for-long", "family, over 1000 tokens"),
    ("long, on the relay", {**RELAY, **ALL}, said(), None, 901, "openai:for-long", "as named, over 1000 tokens"),
    ("long, an agent", {**RELAY, **ALL}, said(), REVIEWER, 901, "openai:for-long",
     "agent reviewer by agent call, over 1000 tokens"),
    ("long, with an image", {**OPENAI, **ALL}, blocks(PNG), None, 901, "openai:for-long",
     "family, images, over 1000 tokens"),

    ("named", {**OPENAI, **ALL}, said(model="openai:mid"), None, 0, "openai:mid", "named upstream"),
    ("named, agent", {**RELAY, **ALL}, said(model="openai:mid"), REVIEWER, 0, "openai:mid", "named upstream"),
    ("named, background", {**RELAY, **ALL}, {**TITLE, "model": "anthropic:claude-x"}, None, 0,
     "anthropic:claude-x", "named upstream"),
    ("named, counting", {**OPENAI, **ALL}, {**COUNTING, "model": "openai:mid"}, None, 0, "openai:mid", "named upstream"),
    ("named, image and long", {**OPENAI, **ALL}, {**blocks(PNG), "model": "openai:mid"}, None, 10**6,
     "openai:mid", "named upstream"),
]


@pytest.mark.parametrize("name,environ,request_,agent,tokens,place,reason", ROWS, ids=[row[0] for row in ROWS])
def test_where_a_request_goes(name, environ, request_, agent, tokens, place, reason):
    found = route(environ, request_, agent, tokens)
    assert (f"{found.upstream}:{found.model}", found.reason) == (place, reason)


# --- images ---------------------------------------------------------------------------------------


def result(*content):
    return {"type": "tool_result", "tool_use_id": "t", "content": list(content)}


IMAGES = [
    (PNG, True),
    ({"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}, True),
    ({"type": "image", "source": {"type": "file", "file_id": "f"}}, True),
    (result(PNG), True),
    (result({"type": "text", "text": "a"}, PNG), True),
    (result(result(result(PNG))), True),
    ({"type": "document", "source": {"type": "content", "content": [PNG]}}, True),
    (result({"type": "document", "source": {"type": "content", "content": [PNG]}}), True),
    ({"type": "search_result", "content": [{"type": "text", "text": "t"}, PNG]}, True),
    ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}}, False),
    ({"type": "text", "text": '{"type": "image"}'}, False),
    ({"type": "tool_use", "id": "t", "name": "Read", "input": {"content": {"type": "image"}}}, False),
    (result("text"), False),
    ({"type": "tool_result", "content": "text"}, False),
    ({"type": "thinking", "thinking": "an image"}, False),
    (None, False), ("image", False), (5, False), ({}, False),
]


@pytest.mark.parametrize("block,seen", IMAGES, ids=range(len(IMAGES)))
def test_images_at_any_depth(block, seen):
    first = {"role": "user", "content": [{"type": "text", "text": "look"}, block]}
    later = {"role": "user", "content": "and now?"}
    assert has_image([first, {"role": "assistant", "content": "ok"}, later]) is seen
    found = route({**OPENAI, "VISION_MODEL": "sees"}, said(messages=[first, later]))
    assert found.model == ("sees" if seen else "mid")


def test_nesting_has_no_bottom():
    block = PNG
    for _ in range(50_000):
        block = {"type": "tool_result", "content": [block]}
    assert has_image(block)


# --- size -----------------------------------------------------------------------------------------

WINDOWS = [
    # (MODEL_WINDOWS, the upstream's own, tokens, max_tokens, moved)
    ("", 0, 10**7, 100, False),
    ("mid=1000", 0, 900, 100, False),
    ("mid=1000", 0, 900, 101, True),
    ("mid=1000", 0, 1001, None, True),
    ("mid=1000", 0, 1000, None, False),
    ("mid=1000", 0, 900, "many", False),
    ("mid=1000", 0, 900, True, False),
    ("m*=1000", 0, 900, 101, True),
    ("openai:mid=1000", 0, 900, 101, True),
    ("openai:m*=1000,*=5000", 0, 900, 101, True),
    ("other=1000", 0, 900, 101, False),
    ("mid=2000,*=1000", 0, 900, 101, False),
    ("", 1000, 900, 101, True),
    ("", 1000, 900, 100, False),
    ("mid=5000", 1000, 900, 101, False),
    ("other=5000", 1000, 900, 101, True),
]


@pytest.mark.parametrize("windows,own,tokens,wanted,moved", WINDOWS, ids=range(len(WINDOWS)))
def test_what_does_not_fit_goes_to_the_larger_one(windows, own, tokens, wanted, moved):
    config = load_config({**OPENAI, "LONG_CONTEXT_MODEL": "long", "MODEL_WINDOWS": windows})
    facts = RouteFacts(said(max_tokens=wanted), None, lambda: tokens, lambda route: own if route.model == "mid" else 0)
    assert first_route(config, facts).model == ("long" if moved else "mid")


@pytest.mark.parametrize("window,moved", [(0, True), (1001, True), (1000, False), (500, False)])
def test_the_larger_one_has_to_be_larger_as_far_as_is_known(window, moved):
    config = load_config({**OPENAI, "LONG_CONTEXT_MODEL": "long"})
    facts = RouteFacts(said(), None, lambda: 5000, lambda route: 1000 if route.model == "mid" else window)
    assert first_route(config, facts).model == ("long" if moved else "mid")


def test_tokens_are_counted_only_where_a_window_is_known():
    def count():
        raise AssertionError("counted")

    for environ in (OPENAI, {**OPENAI, "LONG_CONTEXT_MODEL": "long"}, {**OPENAI, "MODEL_WINDOWS": "mid=100"}):
        assert first_route(load_config(environ), RouteFacts(said(), None, count)).model == "mid"


def test_images_are_looked_for_only_where_a_setting_asks():
    class Unread(list):
        def __iter__(self):
            raise AssertionError("read")

    assert route(OPENAI, said(messages=Unread([1]))).model == "mid"


# --- background -----------------------------------------------------------------------------------

FORMAT = {"format": {"type": "json_schema", "schema": {}}}
KINDS = [
    (TITLE, "title"), (PAGE, "page summary"), (COUNTING, "counting"),
    ({**TITLE, "messages": [{"role": "user", "content": [{"type": "text", "text": "<session>a</session>"}]}]}, "title"),
    (said(), ""),
    (said("<session>", output_config=FORMAT), ""),  # no tools at all is another client's
    (said("<session>", output_config=FORMAT, tools=[{"name": "Bash"}]), ""),
    (said("give me JSON", output_config=FORMAT, tools=[]), ""),
    (said("<session>", output_config={"effort": "low"}, tools=[]), ""),
    (said("<session>", output_config="x", tools=[]), ""),
    (said(tools=[], system="one"), ""),
    (said(tools=[], system=[{"type": "text", "text": "one"}] * 3), ""),
    (said(tools=[{"name": "web_search"}], system=[{}, {}]), ""),
    ({**COUNTING, "stream": True}, ""), ({**COUNTING, "stream": False}, "counting"),
    ({**COUNTING, "system": "s"}, ""), ({**COUNTING, "max_tokens": 2}, ""),
    ({}, ""), ({"messages": None, "tools": [], "output_config": FORMAT}, ""),
    ({"messages": ["x"], "tools": [], "output_config": FORMAT}, ""),
]


@pytest.mark.parametrize("request_,kind", KINDS, ids=range(len(KINDS)))
def test_calls_beside_the_conversation(request_, kind):
    assert background_kind(request_) == kind


# --- fallback -------------------------------------------------------------------------------------

PLANS = [
    (OPENAI, "claude-sonnet-5", ["openai:mid"]),
    ({**OPENAI, "FALLBACK_MODELS": "a,demo:b,openai:c"}, "claude-sonnet-5",
     ["openai:mid", "openai:a", "demo:b", "openai:c"]),
    ({**OPENAI, "FALLBACK_MODELS": "openai:a,a,openai:mid,b,a"}, "claude-sonnet-5", ["openai:mid", "openai:a", "openai:b"]),
    ({**OPENAI, "FALLBACK_MODELS": "a"}, "openai:x", ["openai:x", "openai:a"]),
    ({**OPENAI, "FALLBACK_MODELS": "a"}, "a", ["openai:a"]),
    ({**RELAY, "FALLBACK_MODELS": "claude-opus-9,gpt-4.1"}, "claude-sonnet-5",
     ["anthropic:claude-sonnet-5", "anthropic:claude-opus-9", "openai:gpt-4.1"]),
]


@pytest.mark.parametrize("environ,model,expected", PLANS, ids=range(len(PLANS)))
def test_what_is_tried_in_which_order(environ, model, expected):
    routes = plan_routes(load_config(environ), RouteFacts(said(model=model)))
    assert [f"{found.upstream}:{found.model}" for found in routes] == expected
    assert [found.reason for found in routes[1:]] == ["FALLBACK_MODELS"] * (len(routes) - 1)


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name,environ,request_,agent,tokens,expected,reason", ROWS, ids=[row[0] for row in ROWS])
def test_a_plan_is_the_same_however_often_it_is_asked_for(name, environ, request_, agent, tokens, expected, reason):
    config = load_config({**environ, "FALLBACK_MODELS": "demo:b"})
    planner, facts = Planner(config), RouteFacts(request_, agent, lambda: tokens, lambda route: 0)
    plain = {"model": request_["model"]} if "model" in request_ else {}
    for _ in range(2):
        assert list(planner.plan(request_, lambda: facts)) == plan_routes(config, facts)
        assert list(planner.plan(plain, lambda: RouteFacts(plain))) == plan_routes(config, RouteFacts(plain))


def test_no_facts_are_asked_for_where_no_setting_wants_them():
    def facts():
        raise AssertionError("asked for")

    planner = Planner(load_config({**OPENAI, "FALLBACK_MODELS": "a", "MODEL_MAP": "x=y"}))
    assert [found.model for found in planner.plan({"model": "x"}, facts)] == ["y", "a"]
    for name in ("SUBAGENT_MAPPINGS", "BACKGROUND_MODEL", "VISION_MODEL", "LONG_CONTEXT_MODEL"):
        with pytest.raises(AssertionError):
            Planner(load_config({**OPENAI, name: ALL[name]})).plan({"model": "x"}, facts)


def test_names_are_kept_within_bounds():
    planner = Planner(load_config(OPENAI))
    for name in ("x" * (LONGEST_NAME_KEPT + 1), *(f"m{n}" for n in range(MOST_NAMES_KEPT + 9))):
        assert planner.plan({"model": name}, lambda: RouteFacts({}))[0].model == name
        assert planner._kept.cache_info().currsize <= MOST_NAMES_KEPT
    assert planner._kept.cache_info().misses == MOST_NAMES_KEPT + 9  # the long one is not there


# --- explained ------------------------------------------------------------------------------------


def test_explained():
    config = load_config({**OPENAI, **ALL, "FALLBACK_MODELS": "demo:b"})
    facts = RouteFacts(blocks(PNG), REVIEWER, lambda: 950, lambda route: 0)
    assert list(explained_routes(config, facts)) == [
        "model asked for: claude-sonnet-5",
        "agent: reviewer, recognised by its agent call",
        "images: yes",
        "input tokens, estimated: 950",
        "goes to openai:for-long (agent reviewer by agent call, images, over 1000 tokens)",
        "then to demo:b (FALLBACK_MODELS)",
    ]


def test_explained_without_anything():
    config = load_config({"UPSTREAM": "anthropic"})
    assert list(explained_routes(config, RouteFacts({}))) == [
        "model asked for: (none)", "images: no", "input tokens, estimated: 0",
        "goes to anthropic:(as asked) (no model named)",
    ]


def test_explained_background():
    lines = list(explained_routes(load_config({**RELAY, **ALL}), RouteFacts(TITLE)))
    assert "background call: title" in lines
    assert lines[-1] == "goes to openai:for-background (background title)"


# --- settings -------------------------------------------------------------------------------------

MISSING = [
    ({"FALLBACK_MODELS": "a,redcap:b"}, "FALLBACK_MODELS: names the upstream redcap"),
    ({"SUBAGENT_MAPPINGS": "x:anthropic:claude"}, "SUBAGENT_MAPPINGS: names the upstream anthropic"),
    ({"BACKGROUND_MODEL": "redcap:b"}, "BACKGROUND_MODEL: names the upstream redcap"),
    ({"VISION_MODEL": "anthropic:b"}, "VISION_MODEL: names the upstream anthropic"),
    ({"LONG_CONTEXT_MODEL": "anthropic:b"}, "LONG_CONTEXT_MODEL: names the upstream anthropic"),
    ({"SUBAGENT_FOLDERS": "no-such-folder"}, "SUBAGENT_FOLDERS: nothing is there"),
]


@pytest.mark.parametrize("environ,problem", MISSING, ids=range(len(MISSING)))
def test_a_route_to_nowhere_is_a_mistake_in_the_settings(environ, problem):
    with pytest.raises(Exception, match=problem):
        load_config({**OPENAI, **environ})


@pytest.mark.parametrize("environ", [
    {"FALLBACK_MODELS": "openai:a,demo:b,c:d"},
    {"FALLBACK_MODELS": "redcap:b", "REDCAP_API_URL": "https://redcap.example.edu/api/", "UPSTREAM": "openai"},
    {"VISION_MODEL": "anthropic:b", "ANTHROPIC_UPSTREAM_KEY": "k"},
    {"VISION_MODEL": "anthropic:b", "ANTHROPIC_FORWARD_URL": "http://127.0.0.1:1"},
    {"VISION_MODEL": "anthropic:b", "UPSTREAM": "anthropic"},
])
def test_routes_to_what_is_configured(environ):
    load_config({**OPENAI, **environ})
