"""Run the fake by hand: `python3 -m tests.fake_securechat`. Its model does what the user says.

A line `call: NAME {json}` makes it call that tool, in text and several of them if there are several
lines; when the results are there it ends the turn. Anything else gets a sentence.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from typing import Any, Dict, List, Tuple

from tests.fake_securechat.module import ERAS, NEWEST
from tests.fake_securechat.server import Fake

TOKEN = "0123456789ABCDEF" * 2
PORT = 8780
GREETING = 'This is the fake SecureChatAI. Write a line such as  call: Bash {"command": "date"}'
CALL_LINE = re.compile(r"^[ \t]*call:[ \t]*(\w[\w-]*)[ \t]*(\{.*\})?[ \t]*$", re.MULTILINE)
CALL = "<tool_call>\n{}\n</tool_call>"
# How a prompt with a tool section shows the model what to write, and how results are told.
TOOLS_MARK, RESULT_MARK = "</tool_call>", "<tool_result"


def played(body: Dict[str, Any]) -> str:
    """What the model says to a body that the module sent."""
    instructions, last = prompt_of(body)
    # The instructions show a result too; one that is behind the user's line is real.
    calls, result = list(CALL_LINE.finditer(last)), last.rfind(RESULT_MARK)
    if result > (calls[-1].start() if calls else -1):
        return f"The result has {len(last) - result} characters. That was all."
    if not calls or TOOLS_MARK not in instructions:
        return GREETING
    return "I call what you name.\n\n" + "\n".join(call_text(*call.groups()) for call in calls)


def call_text(name: str, given: str) -> str:
    try:
        found = json.loads(given or "{}")
    except ValueError as error:
        return f"I cannot read the input of {name}: {error}"
    call = json.dumps({"name": name, "input": found}, ensure_ascii=False)
    return CALL.format(call.replace("&", "\\u0026"))


def prompt_of(body: Dict[str, Any]) -> Tuple[str, str]:
    """(instructions, the last turn) of any of the module's bodies."""
    if "prompt_text" in body:
        return split_prompt(str(body["prompt_text"]))
    if "contents" in body:
        turns = [turn["parts"][0]["text"] for turn in body["contents"]]
        return turns[0], turns[-1]
    messages: List[Dict[str, Any]] = body["messages"]
    system = [body.get("system"), *(m["content"] for m in messages if m["role"] == "system")]
    last = content_text(messages[-1]["content"])
    flat = len(messages) == 1 and not any(system)
    return split_prompt(last) if flat else ("\n".join(map(content_text, filter(None, system))), last)


def split_prompt(prompt: str) -> Tuple[str, str]:
    """A conversation in one text: its last turn begins with the last `User:`."""
    before, mark, last = prompt.rpartition("\n\nUser: ")
    return (before, last) if mark else (prompt, prompt)


def content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.fake_securechat", description="A fake REDCap with SecureChatAI."
    )
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--token", default=TOKEN, help="32 hexadecimal digits")
    parser.add_argument("--era", choices=sorted(ERAS), default=NEWEST, help="age of the module")
    parser.add_argument("--delay", type=float, default=1.0, help="seconds that an answer takes")
    return parser.parse_args()


def main() -> None:
    given = options()
    with Fake(token=given.token, era=given.era, port=given.port) as fake:
        fake.vendor.play = lambda body: {"text": played(body), "delay": given.delay}
        print(f"REDCAP_API_URL={fake.url}\nANTHROPIC_AUTH_TOKEN={given.token}", flush=True)
        seen = 0
        try:
            while True:
                time.sleep(0.2)
                for record in fake.requests[seen:]:
                    told = [record.fields.get(name, "-") for name in ("action", "model")]
                    print(record.method, record.path, *told, flush=True)
                    seen += 1
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
