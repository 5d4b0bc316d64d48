"""Run the fake by hand: `python3 -m tests.fake_securechat`. Its model does what the user says.

A last user line `call: NAME {json}` makes it call that tool in text, several lines several; anything
else is answered with a sentence.
"""

from __future__ import annotations

import argparse
import re
import threading
from typing import Any, Dict

from tests.fake_securechat.server import Fake

CALL_LINE = re.compile(r"(?m)^[ \t]*call:[ \t]*(\w+)[ \t]*(\{.*\})?[ \t]*$")


def answer(body: Dict[str, Any]) -> str:
    """What the model says to a request as SecureChatAI passes it on."""
    messages = body.get("messages") or [{"role": "user", "content": body.get("prompt_text", "")}]
    last = str(messages[-1]["content"])
    if "<tool_result" in last:
        return f"The tools answered: {len(last)} characters. That is all I wanted."
    calls = CALL_LINE.findall(last) if "</tool_call>" in str(body.get("system", "")) + str(messages[0]) else []
    if not calls:
        return "This is the fake SecureChatAI. Send a line such as:  call: Bash {\"command\": \"date\"}"
    blocks = [f'{{"name": "{name}", "input": {given or "{}"}}}' for name, given in calls]
    told = [f"<tool_call>\n{block}\n</tool_call>".replace("&", "\\u0026") for block in blocks]
    return "I call what you name.\n\n" + "\n".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m tests.fake_securechat", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=8780)
    parser.add_argument("--token", default="0123456789ABCDEF" * 2)
    parser.add_argument("--era", choices=("2026-06", "2026-01", "2025"), default="2026-06")
    parser.add_argument("--delay", type=float, default=1.0, help="seconds that an answer takes")
    options = parser.parse_args()
    with Fake(token=options.token, era=options.era, port=options.port) as fake:
        fake.vendor.play = lambda body: {"text": answer(body), "delay": options.delay}
        print(f"REDCAP_API_URL={fake.url}\nANTHROPIC_AUTH_TOKEN={options.token}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
