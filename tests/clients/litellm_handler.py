"""A model for LiteLLM's proxy to serve: it calls Bash once and tells what came back.

LiteLLM loads this from beside its configuration; all that goes over the wire is made by LiteLLM.
"""

from litellm import CustomLLM

PIECES = ('{"comm', 'and": "echo from-', 'litellm"}')


def piece(text="", call=None, finish=""):
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14} if finish else None
    return {
        "text": text, "tool_use": call, "is_finished": bool(finish), "finish_reason": finish,
        "usage": usage, "index": 0,
    }


def call_piece(call_id, name, arguments):
    function = {"name": name, "arguments": arguments}
    return piece(call={"id": call_id, "type": "function", "index": 0, "function": function})


class OneCall(CustomLLM):
    async def astreaming(self, *args, **kwargs):
        results = [m["content"] for m in kwargs["messages"] if m["role"] == "tool"]
        if results:
            yield piece(f"The tool said {results[0]}.")
            yield piece(finish="stop")
            return
        yield call_piece("call_1", "Bash", "")
        for text in PIECES:
            yield call_piece(None, None, text)
        yield piece(finish="tool_calls")


one_call = OneCall()
