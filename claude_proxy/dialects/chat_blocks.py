"""Content blocks of a Messages request as what Chat Completions can hold: text and parts. Pure.

A block that has no counterpart becomes text that says what it was, and a word in `notes`; a block
that we do not know becomes the text in it. None is a reason to refuse.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.errors import ProxyError
from claude_proxy.names import plain_word
from claude_proxy.sse import encode_json

Block = Dict[str, Any]



def as_list(value: Any) -> List[Any]:
    return value if isinstance(value, list) else []


def is_block_list(content: Any) -> bool:
    """Whether content is what it mostly is: a list of objects and nothing else."""
    if type(content) is not list:
        return False
    for block in content:
        if type(block) is not dict:
            return False
    return True


def content_blocks(content: Any, place: str) -> List[Block]:
    """Content as a list of blocks, only to be read; a string is one text block."""
    if is_block_list(content):
        return content
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, dict):
        return [content]
    if not isinstance(content, list):
        raise ProxyError(400, f"{place}: must be a string or a list of blocks")
    for index, block in enumerate(content):
        if not isinstance(block, (dict, str)):
            raise ProxyError(400, f"{place}.{index}: must be an object")
    return [b if isinstance(b, dict) else {"type": "text", "text": b} for b in content]


def note_word(value: Any) -> str:
    """A type's name for a note: one that only says what it is, never what somebody wrote."""
    return plain_word(value) or "block"


def text_part(text: str) -> Dict[str, Any]:
    return {"type": "text", "text": text}


def joined_parts(parts: List[Dict[str, Any]]) -> Any:
    """A string if there is only text: many models and servers take nothing else."""
    if len(parts) == 1 and parts[0]["type"] == "text" and len(parts[0]) == 2:
        return parts[0]["text"]
    full = [p for p in parts if p["type"] != "text" or p["text"].strip()] or parts[:1]
    if all(part["type"] == "text" and len(part) == 2 for part in full):
        return "\n\n".join(part["text"] for part in full)
    return full


def user_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    """A block of a user message as parts."""
    handler = PART_MAKERS.get(str(block.get("type")), other_parts)
    return handler(block, options, notes)


def text_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    text = block.get("text")
    if not text:
        return []
    part: Dict[str, Any] = {"type": "text", "text": str(text)}
    if options.cache_control and isinstance(block.get("cache_control"), dict):
        part["cache_control"] = block["cache_control"]
    return [part]


def image_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    """An image as a part where the model sees it, else as a note. No URL is ever fetched here."""
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    if not options.images or options.flat:
        notes.append("image=dropped")
        return [text_part("[an image, which this model cannot see]")]
    if isinstance(source.get("data"), str):
        url = f"data:{image_type(source)};base64,{source['data']}"
        return [{"type": "image_url", "image_url": {"url": url}}]
    if isinstance(source.get("url"), str) and options.image_urls:
        return [{"type": "image_url", "image_url": {"url": source["url"]}}]
    notes.append("image=unavailable")
    name = source.get("url") or source.get("file_id") or ""
    return [text_part(f"[image {name} is not available here]")]


# What the first bytes of an image look like in base64.
IMAGE_BEGINNINGS = (
    ("iVBORw0KGgo", "image/png"), ("/9j/", "image/jpeg"), ("R0lGOD", "image/gif"),
    ("UklGR", "image/webp"),
)  # fmt: skip


def image_type(source: Dict[str, Any]) -> str:
    """What an image is by its first bytes, for clients name it wrongly; else as it is named."""
    begins = source["data"][:16]
    found = next((kind for mark, kind in IMAGE_BEGINNINGS if begins.startswith(mark)), "")
    named = str(source.get("media_type") or "image/png")
    return found or named.replace("image/jpg", "image/jpeg")


def document_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    """A document as text where it is text, as a file where files are taken, else as a note."""
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    title = str(block.get("title") or "document")
    kind, data = source.get("type"), source.get("data")
    head = f'<document title="{title}">'
    if isinstance(block.get("context"), str) and block["context"]:
        head += f"\n[{block['context']}]"
    if kind == "text":
        return [text_part(f"{head}\n{data or ''}\n</document>")]
    if kind == "content":
        inner = content_blocks(source.get("content"), "document")
        parts = [p for b in inner for p in user_parts(b, options, notes)]
        return [text_part(head), *parts, text_part("</document>")]
    if kind == "base64" and options.files and not options.flat and isinstance(data, str):
        url = f"data:{source.get('media_type') or 'application/pdf'};base64,{data}"
        return [{"type": "file", "file": {"filename": f"{title}.pdf", "file_data": url}}]
    notes.append("document=unreadable")
    title = str(block.get("title") or source.get("file_id") or "document")
    size = f", {len(data) * 3 // 4} bytes" if isinstance(data, str) else ""
    where = f" at {source['url']}" if isinstance(source.get("url"), str) else ""
    return [text_part(f'[document "{title}"{where}{size}: this model cannot read it]')]


def search_result_parts(
    block: Block, options: ChatOptions, notes: List[str]
) -> List[Dict[str, Any]]:
    inner = content_blocks(block.get("content"), "search_result")
    text = "\n".join(str(b.get("text") or "") for b in inner)
    head = f'<search_result source="{block.get("source", "")}" title="{block.get("title", "")}">'
    return [text_part(f"{head}\n{text}\n</search_result>")]


def compaction_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    """The summary that stands for what was said before."""
    text = block_text(block)
    if not text:
        notes.append("compaction=dropped")
    return [text_part(f"[summary of the earlier conversation]\n{text}")] if text else []


def upload_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    notes.append("container_upload=dropped")
    return [text_part(f"[file {block.get('file_id', '')} is not available here]")]


def silent_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    return []


def other_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    """A block that we do not know: the text in it, if there is one; else a note."""
    text = block_text(block)
    if not text:
        notes.append(f"{note_word(block.get('type'))}=dropped")
    return [text_part(text)] if text else []


PartMaker = Callable[[Block, ChatOptions, List[str]], List[Dict[str, Any]]]

PART_MAKERS: Dict[str, PartMaker] = {
    "text": text_parts,
    "image": image_parts,
    "document": document_parts,
    "search_result": search_result_parts,
    "thinking": silent_parts,
    "redacted_thinking": silent_parts,
    "fallback": silent_parts,
    "tool_addition": silent_parts,
    "tool_removal": silent_parts,
    "compaction": compaction_parts,
    "container_upload": upload_parts,
}


def block_text(block: Any) -> str:
    """The readable text anywhere in a block: its `text`, or that of its `content`."""
    if isinstance(block, str):
        return block
    if isinstance(block, list):
        return "\n".join(t for t in map(block_text, block) if t)
    if not isinstance(block, dict):
        return ""
    if isinstance(block.get("text"), str):
        return block["text"]
    hit = [str(block[k]) for k in ("title", "url") if isinstance(block.get(k), str)]
    inner = block_text(block.get("content")) or source_text(block.get("source"))
    own = [
        str(block[k])
        for k in ("stdout", "stderr", "error_code", "tool_name")
        if isinstance(block.get(k), str) and block[k]
    ]
    if block.get("return_code"):
        own.append(f"[return code {block['return_code']}]")
    return "\n".join(filter(None, [" ".join(hit), inner, *own]))


def source_text(source: Any) -> str:
    """The text of a document's source, if it is text."""
    source = source if isinstance(source, dict) else {}
    if source.get("type") == "text" and isinstance(source.get("data"), str):
        return source["data"]
    return block_text(source.get("content"))


def answer_texts(blocks: List[Block], notes: List[str]) -> str:
    """What an assistant's blocks say. Citations cut a sentence into blocks: it becomes whole."""
    told, cited = "", False
    for block in blocks:
        text, had = assistant_text(block, notes), cited
        cited = bool(block.get("citations"))
        if text:
            told += ("" if not told or had or cited else "\n\n") + text
    return told


# What an assistant's block that is neither text nor call says to the next model.
SILENT_IN_ANSWERS = (
    "thinking", "redacted_thinking", "fallback", "tool_addition", "tool_removal",
)  # fmt: skip
LONGEST_FETCHED_TEXT = 20_000


def assistant_text(block: Block, notes: List[str]) -> str:
    """A block of an assistant (or system) message as text; server tools' work is told in words."""
    kind, text = str(block.get("type")), block.get("text")
    if kind == "text" and type(text) is str:
        return "" if text.isspace() else text
    if kind in SILENT_IN_ANSWERS:
        return ""
    if kind in ("server_tool_use", "mcp_tool_use"):
        server = f"mcp {block['server_name']}." if block.get("server_name") else ""
        return f"[{server}{block.get('name', 'tool')} {encode_json(block.get('input') or {})}]"
    if kind == "compaction":
        return "".join(p["text"] for p in compaction_parts(block, ChatOptions(), notes))
    text = block_text(block)
    if kind == "web_fetch_tool_result":
        text = text[:LONGEST_FETCHED_TEXT]
    if not text and kind != "text":
        notes.append(f"{note_word(kind)}=dropped")
    return text if text.strip() else ""


def tool_result_content(
    block: Block, options: ChatOptions, notes: List[str]
) -> Tuple[str, List[Dict[str, Any]]]:
    """(text for the tool message, parts that it cannot hold) of a tool_result block."""
    content = block.get("content")
    text, moved = (content, []) if type(content) is str else result_parts(block, options, notes)
    if not text and not moved:
        text = options.empty_result
    if block.get("is_error") and not text.startswith(("<tool_use_error>", "Error")):
        text = f"[tool error]\n{text}"
    return text, moved


def result_parts(
    block: Block, options: ChatOptions, notes: List[str]
) -> Tuple[str, List[Dict[str, Any]]]:
    """The same of the parts in a tool_result block."""
    call_id = block.get("tool_use_id", "")
    texts: List[str] = []
    moved: List[Dict[str, Any]] = []
    for inner in content_blocks(block.get("content"), f"tool_result {call_id}.content"):
        if inner.get("type") == "tool_reference":
            texts.append(f"[tool available: {inner.get('tool_name', '')}]")
            continue
        parts = user_parts(inner, options, notes)
        texts += [p["text"] for p in parts if p["type"] == "text"]
        moved += [p for p in parts if p["type"] != "text"]
    if moved:
        texts.append(f"[{len(moved)} attachment(s): see the next user message]")
        moved.insert(0, text_part(f"[from tool result {call_id}]"))
    return "\n".join(texts), moved
