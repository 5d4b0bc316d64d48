"""What SecureChatAI, REDCap and what stands before it answer, and what a client is told of it."""

from __future__ import annotations

import json

import pytest

from claude_proxy.errors import ProxyError
from claude_proxy.upstreams.redcap_reply import RedcapReply, read_redcap_reply

A8 = "I apologize, but I'm experiencing network difficulties. Please wait a moment and try again."
A10 = "I apologize, but I wasn't able to complete that request properly. Could you try rephrasing?"
NO_RIGHTS = "You do not have permissions to use the API"
TOKEN = "0123456789abcdef0123456789abcdef"


def messages(text="hello", tokens=(10, 5), **more):
    return {"id": "msg_6b0107acf1713", "type": "message", "role": "assistant",
            "content": [{"type": "text", "text": text}], "model": "m", "stop_reason": "end_turn",
            "usage": {"input_tokens": tokens[0], "output_tokens": tokens[1]}, **more}


def call_ai(content="hello", tokens=(10, 5)):
    return {"status": "success", "model": "m", "content": content,
            "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}}


CALL = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {}}

REPLIES = [
    ("messages", messages(), RedcapReply("hello", 10, 5)),
    ("an apology that a model wrote", messages(A8), RedcapReply(A8, 10, 5)),
    ("words of a ban that a model wrote", messages("He has been banned due to suspected abuse."),
     RedcapReply("He has been banned due to suspected abuse.", 10, 5)),
    ("callAI", call_ai(), RedcapReply("hello", 10, 5)),
    ("callAI, an object for text", call_ai({"a": [1]}), RedcapReply('{"a":[1]}', 10, 5)),
    ("callAI, {} as PHP has it", call_ai([]), RedcapReply("[]", 10, 5)),
    ("a module that passes calls on", messages(content=[{"type": "text", "text": "I read"}, CALL]),
     RedcapReply("I read", 10, 5, (CALL,))),
    ("a call alone", messages(content=[CALL]), RedcapReply("", 10, 5, (CALL,))),
    ("only input counted", messages(tokens=(3, 0)), RedcapReply("hello", 3, 0)),
]


@pytest.mark.parametrize("name,data,expected", REPLIES, ids=[row[0] for row in REPLIES])
@pytest.mark.parametrize("before", ["", "\ufeff\n", "<br />\n<b>Warning</b>: foreach() {string} in <b>/x.php</b>\n"])
def test_replies(name, data, expected, before):
    body = (before.lstrip("\ufeff") + json.dumps(data).replace("/", "\\/")).encode()
    assert read_redcap_reply(200, body, "m") == expected


LOGIN = b"<!DOCTYPE html><html><head><title>REDCap</title></head><body>Log In</body></html>"
GATEWAY = b"<html><head><title>504 Gateway Time-out</title></head></html>"
WAF = b"<html><body>The requested URL was rejected. Your support ID is: 123</body></html>"
XML = f'<?xml version="1.0" encoding="UTF-8" ?><hash><error>{NO_RIGHTS}</error></hash>'.encode()
NO_FIELD = {"type": "error", "error": {"type": "invalid_request_error",
                                       "message": "Missing or invalid 'messages' field"}}


def as_json(data):
    return json.dumps(data).encode()


# (name, status, body, the client's status, words that it is told)
FAILURES = [
    ("apology without tokens", 200, as_json(messages(A8, (0, 0))), 502, "no tokens"),
    ("another sentence without tokens", 200, as_json(messages("Welcome!", (0, 0))), 502, "no tokens"),
    ("no usage", 200, as_json({**messages(), "usage": None}), 502, "no tokens"),
    ("callAI without tokens", 200, as_json(call_ai(A8, (0, 0))), 502, "the model m"),
    ("empty text", 200, as_json(messages("")), 502, "nothing that SecureChatAI could pass on"),
    ("blank text", 200, as_json(messages(" \n")), 502, "nothing that SecureChatAI could pass on"),
    ("text false", 200, as_json(messages(False)), 502, "nothing that SecureChatAI could pass on"),
    ("no blocks", 200, as_json(messages(content=[])), 502, "nothing that SecureChatAI could pass on"),
    ("the apology for a rewritten answer", 200, as_json(messages(A10)), 502, "could pass on"),
    ("error in a 200", 200, as_json({"error": "Module is off"}), 502, "Module is off"),
    ("login page", 200, LOGIN, 502, "REDCAP_API_URL does not point at REDCap's API"),
    ("crash page", 200, b"<html>REDCap crashed due to an unexpected PHP fatal error!</html>", 502, "error log"),
    ("database trouble", 200, b"Could not connect to the MySQL server", 502, "plain text"),
    ("zero bytes", 200, b"", 502, "an empty answer"),
    ("JSON list", 200, b"[1, 2]", 502, "plain text"),
    ("another object", 200, b'{"a": 1}', 502, "JSON of another kind"),
    ("banned", 200, b"Your IP address has been banned due to suspected abuse.", 429, "banned"),
    ("bad token, JSON", 403, as_json({"error": NO_RIGHTS}), 401, NO_RIGHTS),
    ("bad token, XML", 403, XML, 401, NO_RIGHTS),
    ("bad token, CSV", 403, f"ERROR: {NO_RIGHTS}".encode(), 401, NO_RIGHTS),
    ("missing token", 401, as_json({"error": NO_RIGHTS}), 401, NO_RIGHTS),
    ("firewall", 403, WAF, 403, "likely a firewall"),
    ("firewall without a word", 403, b"", 403, "likely a firewall"),
    ("module's 400", 400, as_json(NO_FIELD), 400, "Missing or invalid 'messages' field"),
    ("400 within an error", 400, as_json({"error": json.dumps(NO_FIELD)}), 400, "Missing or invalid 'messages'"),
    ("callAI's 400", 400, as_json({"error": json.dumps({"error": "Missing prompt"})}), 400, "Missing prompt"),
    ("unsupported format", 406, b"", 400, "without a reason"),
    ("GET only", 501, b"<hash><error>The requested method is not implemented.</error></hash>", 502, "not implemented"),
    ("redirect", 301, b"", 502, "it redirects (status 301)"),
    ("redirect to a login", 302, LOGIN, 502, "it redirects"),
    ("not found", 404, LOGIN, 502, "does not point at"),
    ("method", 405, b"", 502, "does not point at"),
    ("too large for the server", 413, b"<html></html>", 413, "too large"),
    ("too many", 429, b"slow down", 429, "no more requests"),
    ("empty 500", 500, b"", 502, "status 500"),
    ("out of memory", 500, b"ERROR: REDCap ran out of memory!", 502, "status 500"),
    ("gateway", 504, GATEWAY, 529, "gateway"),
    ("proxy down", 502, GATEWAY, 529, "gateway"),
    ("maintenance", 503, b"", 529, "gateway"),
    ("teapot", 418, b"", 502, "status 418"),
]


@pytest.mark.parametrize("name,status,body,expected,words", FAILURES, ids=[row[0] for row in FAILURES])
def test_failures(name, status, body, expected, words):
    with pytest.raises(ProxyError) as caught:
        read_redcap_reply(status, body, "m", 300)
    error = caught.value
    assert error.status == expected and words in error.message and error.upstream_status == status
    # Each call costs up to three of a model, and a client would repeat it ten times.
    assert ("x-should-retry", "false") in error.headers
    # Claude Code compacts at these words.
    assert "prompt is too long" not in error.message


@pytest.mark.parametrize("status", [200, 400, 403])
def test_no_token_and_no_long_text_in_errors(status):
    body = as_json({"error": f"bad token {TOKEN} " + "x" * 5000})
    with pytest.raises(ProxyError) as caught:
        read_redcap_reply(status, body, "m")
    assert TOKEN not in caught.value.message and len(caught.value.message) < 1000
