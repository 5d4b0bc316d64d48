"""What the openai upstream sends where, as pure functions."""

from __future__ import annotations

import pytest

from claude_proxy.config_load import load_config
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.errors import ProxyError
from claude_proxy.upstreams.openai import (
    answer_room,
    chat_url,
    limit_max_tokens,
    openai_headers,
    rough_input_tokens,
)

OWN = "https://api.openai.com/v1"
AZURE = "https://ward.openai.azure.com"


def config(base=OWN, **environ):
    return load_config({"OPENAI_API_KEY": "the-key", "OPENAI_BASE_URL": base, **environ})


@pytest.mark.parametrize("base,version,url", [
    (OWN, "", OWN + "/chat/completions"),
    ("http://localhost:11434/v1/", "", "http://localhost:11434/v1/chat/completions"),
    ("https://openrouter.ai/api/v1/chat/completions", "", "https://openrouter.ai/api/v1/chat/completions"),
    ("https://webui.example/api", "", "https://webui.example/api/chat/completions"),
    (AZURE, "2024-10-21", AZURE + "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"),
    (AZURE + "/openai", "v", AZURE + "/openai/deployments/gpt-4o/chat/completions?api-version=v"),
    (AZURE + "/openai/deployments/mine", "v", AZURE + "/openai/deployments/mine/chat/completions?api-version=v"),
    (AZURE + "/openai/v1", "v", AZURE + "/openai/v1/chat/completions"),
])
def test_urls(base, version, url):
    environ = {"AZURE_API_VERSION": version} if version else {}
    assert chat_url(config(base, **environ), "gpt-4o") == url


def test_a_deployment_name_cannot_leave_its_place_in_the_url():
    url = chat_url(config(AZURE, AZURE_API_VERSION="v"), "../x?y#z")
    assert "/deployments/..%2Fx%3Fy%23z/chat" in url


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_is_no_deployment_is_refused(name):
    with pytest.raises(ProxyError) as caught:
        chat_url(config(AZURE, AZURE_API_VERSION="v"), name)
    assert caught.value.status == 400


def test_half_a_surrogate_in_a_deployment_is_no_defect():
    assert "/deployments/a%3Fb/" in chat_url(config(AZURE, AZURE_API_VERSION="v"), "a\ud800b")


@pytest.mark.parametrize("wanted,limits,sent", [
    (64000, {}, 64000),
    (64000, {"MAX_TOKENS_LIMIT": "4096"}, 4096),
    (1, {"MAX_TOKENS_LIMIT": "4096", "MIN_TOKENS_LIMIT": "100"}, 1),
    (None, {}, None),
    (None, {"MIN_TOKENS_LIMIT": "100"}, 100),
    (None, {"MIN_TOKENS_LIMIT": "100", "MAX_TOKENS_LIMIT": "100"}, 100),
])
def test_limits(wanted, limits, sent):
    request = {"model": "m"} if wanted is None else {"model": "m", "max_tokens": wanted}
    assert limit_max_tokens(request, config(**limits)).get("max_tokens") == sent


@pytest.mark.parametrize("environ,expected", [
    ({}, {"authorization": "Bearer the-key"}),
    ({"AZURE_API_VERSION": "v"}, {"api-key": "the-key"}),
    ({"CUSTOM_HEADER_AUTHORIZATION": "Basic x"}, {"authorization": "Basic x"}),
    ({"CUSTOM_HEADER_USER_AGENT": "me"}, {"user-agent": "me", "authorization": "Bearer the-key"}),
])
def test_headers(environ, expected):
    headers = openai_headers(config(AZURE, **environ), "the-key")
    assert len({name for name, _ in headers}) == len(headers)
    assert dict(headers).items() >= expected.items()
    assert ("api-key" in dict(headers)) is ("api-key" in expected)


def test_the_first_estimate_is_not_fooled_by_an_image():
    data = "A" * 400_000
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    request = {"messages": [{"role": "user", "content": [image]}]}
    assert rough_input_tokens(request, b'{"url":"data:image/png;base64,' + data.encode()) < 10_000
    assert rough_input_tokens(request, b"x" * 3600) == 1000


@pytest.mark.parametrize("tokens,wanted,window,cuts,room", [
    (5000, 32000, 32768, False, 32768 - 5000),
    (150_000, 32_000, 200_000, False, 0),
    (175_000, 32_000, 200_000, False, 0),  # it may be 130,000
    (175_000, 32_000, 200_000, True, 25_000),
    (199_500, 60_000, 200_000, False, 0),  # too little is left: who refuses can tell how much
    (150_000, 100_000, 200_000, False, 50_000),
    (250_000, 32_000, 200_000, False, 0),
])
def test_the_room_for_an_answer(tokens, wanted, window, cuts, room):
    """What may fit is asked for, for the prompt's length is an estimate."""
    options = ChatOptions(window=window, cuts_silently=cuts)
    assert answer_room(tokens, wanted, options) == room
