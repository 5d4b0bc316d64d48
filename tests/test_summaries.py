"""Summaries that are asked for once: hits, failures, the oldest going, several threads at a time."""

from __future__ import annotations

import threading

import pytest

from claude_proxy.compression import compress_request
from claude_proxy.errors import ProxyError
from claude_proxy.exchange import client_gone
from claude_proxy.summaries import (
    FAILED_SUMMARY_SECONDS,
    MOST_SUMMARIES,
    Summaries,
    summary_request,
)
from claude_proxy.tokens import text_tokens
from tests.support import wait_until

TEXT = "Say in a few plain words what was done, and what comes next. " * 20
SHORT = "Say what was done."
DOWN = ProxyError(503, "the upstream is down")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Model:
    """Gives its answers one after the other, and then the last one for ever."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, text, tokens):
        self.asked.append((text, tokens))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


class SlowModel(Model):
    """Answers when it is let go."""

    def __init__(self, *answers):
        super().__init__(*answers)
        self.go = threading.Event()

    def __call__(self, text, tokens):
        self.asked.append((text, tokens))
        assert self.go.wait(5)
        self.asked.pop()
        return super().__call__(text, tokens)


def test_a_text_is_asked_for_once():
    summaries, model = Summaries(Clock()), Model(f"  {SHORT}\n")
    assert [summaries.summary(TEXT, 64, model) for _ in range(3)] == [SHORT] * 3
    assert model.asked == [(TEXT, 64)]


@pytest.mark.parametrize("text,tokens", [(TEXT + "a", 64), (TEXT, 65), ("\ud800" + TEXT, 64)])
def test_another_text_or_size_is_another_summary(text, tokens):
    summaries, model = Summaries(Clock()), Model(SHORT, "another")
    assert summaries.summary(TEXT, 64, model) == SHORT
    assert summaries.summary(text, tokens, model) == "another"
    assert summaries.summary(TEXT, 64, model) == SHORT and len(model.asked) == 2


@pytest.mark.parametrize("failure", [DOWN, "", "  \n", None, TEXT, TEXT + "!"], ids=repr)
def test_a_failure_is_remembered_for_a_while(failure):
    clock = Clock()
    summaries, model = Summaries(clock), Model(failure, SHORT)
    assert summaries.summary(TEXT, 64, model) is None
    clock.now += FAILED_SUMMARY_SECONDS - 1
    assert summaries.summary(TEXT, 64, model) is None and len(model.asked) == 1
    clock.now += 1
    assert summaries.summary(TEXT, 64, model) == SHORT and len(model.asked) == 2


def test_a_summary_is_remembered_for_ever():
    clock = Clock()
    summaries, model = Summaries(clock), Model(SHORT)
    summaries.summary(TEXT, 64, model)
    clock.now += 10**9
    assert summaries.summary(TEXT, 64, model) == SHORT and len(model.asked) == 1


def test_the_one_that_was_used_longest_ago_goes_first():
    summaries, model = Summaries(Clock(), most=2), Model(SHORT)
    for text in ("a", "b", "a", "c"):  # b goes
        summaries.summary(text + TEXT, 64, model)
    model.asked.clear()
    for text in ("a", "c", "b"):
        summaries.summary(text + TEXT, 64, model)
    assert [text[0] for text, _ in model.asked] == ["b"]


def test_only_so_many_are_kept():
    summaries, model = Summaries(Clock()), Model(SHORT)
    for number in range(MOST_SUMMARIES + 1):
        summaries.summary(f"{number} {TEXT}", 64, model)
    summaries.summary(f"{MOST_SUMMARIES} {TEXT}", 64, model)
    assert len(model.asked) == MOST_SUMMARIES + 1
    summaries.summary(f"0 {TEXT}", 64, model)
    assert len(model.asked) == MOST_SUMMARIES + 2


# --- several threads ---------------------------------------------------------------------------


class Asker(threading.Thread):
    def __init__(self, summaries, model, text=TEXT):
        super().__init__(daemon=True)
        self.args = summaries, model, text
        self.summary = self.error = None
        self.start()

    def run(self):
        summaries, model, text = self.args
        try:
            self.summary = summaries.summary(text, 64, model)
        except BaseException as error:
            self.error = error

    def result(self):
        self.join(5)
        return self.error or self.summary


@pytest.mark.parametrize("answer,told", [(SHORT, SHORT), (DOWN, None)], ids=["summary", "failure"])
def test_one_thread_asks_and_the_others_wait_for_its_answer(answer, told):
    summaries, model = Summaries(Clock()), SlowModel(answer)
    askers = [Asker(summaries, model) for _ in range(6)]
    wait_until(lambda: model.asked)
    model.go.set()
    assert [asker.result() for asker in askers] == [told] * 6 and len(model.asked) == 1


def test_another_text_does_not_wait():
    summaries, slow = Summaries(Clock()), SlowModel(SHORT)
    first = Asker(summaries, slow)
    wait_until(lambda: slow.asked)
    assert summaries.summary("a" + TEXT, 64, Model("another")) == "another"
    slow.go.set()
    assert first.result() == SHORT


def test_nobody_waits_for_longer_than_allowed():
    summaries, slow = Summaries(Clock(), wait_seconds=0.01), SlowModel(SHORT)
    first = Asker(summaries, slow)
    wait_until(lambda: slow.asked)
    model = Model("another")
    assert summaries.summary(TEXT, 64, model) is None and model.asked == []
    slow.go.set()
    assert first.result() == SHORT
    assert summaries.summary(TEXT, 64, model) == SHORT and model.asked == []


@pytest.mark.parametrize("error", [client_gone(), KeyError("a fault")], ids=["gone", "fault"])
def test_where_the_one_who_asks_goes_away_the_next_asks(error):
    summaries, slow, model = Summaries(Clock()), SlowModel(error), Model(SHORT)
    first = Asker(summaries, slow)
    wait_until(lambda: slow.asked)
    second = Asker(summaries, model)
    slow.go.set()
    assert first.result() is error and second.result() == SHORT
    assert summaries.summary(TEXT, 64, model) == SHORT and len(model.asked) == 1


# --- the request, and both together ------------------------------------------------------------


def test_the_request_for_a_summary():
    request = summary_request(TEXT, 512)
    assert request["messages"] == [{"role": "user", "content": TEXT}]
    assert "512 tokens" in request["system"] and "{" not in request["system"]
    assert 512 < request["max_tokens"] < 4096 and set(request) == {
        "system",
        "messages",
        "max_tokens",
    }
    assert text_tokens(request["system"]) < 256


def test_a_text_with_braces_is_material_alone():
    assert summary_request("{tokens} {0}", 300)["messages"][0]["content"] == "{tokens} {0}"


def test_every_turn_gets_the_same_prompt():
    summaries, model = Summaries(Clock()), Model(SHORT, "another")
    request = {"system": f"You are A.\n\n# Other\n{TEXT}\n\n# Environment\nb\n"}
    turns = [compress_request({**request, "messages": [n]}, 100, lambda text, tokens: summaries.summary(text, tokens, model))
             for n in range(3)]  # fmt: skip
    assert [turn["system"] for turn, _ in turns] == [
        f"You are A.\n\n\n{SHORT}\n\n# Environment\nb\n"
    ] * 3
    assert len(model.asked) == 1 and [turn["messages"] for turn, _ in turns] == [[0], [1], [2]]
