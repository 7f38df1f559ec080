"""Writes ../fixtures/chat.json: conversations, and what the templates in ../fixtures/chat make of them.

Run with transformers 5.23 and jinja2: python make_chat_fixture.py
The templates are ours, written with the constructs of published ones. `expected` is what transformers' renderer gives,
with the date fixed; `refused` is the message of `raise_exception` instead.
"""

import datetime
import json
import pathlib
from unittest import mock

import jinja2
from transformers.utils import chat_template_utils

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
NOW = datetime.datetime(2026, 11, 5, 12, 30, 45, tzinfo=datetime.timezone.utc)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def message(role, *content):
    return {"role": role, "content": list(content)}


TALK = [message("system", "Be brief. "), message("user", " Hi "), message("assistant", "Yes?"), message("user", "Why\n\né😀?")]
LOOK = [message("user", None, "What is it?"), message("assistant", "A cat."), message("user", "Compare: ", None, None)]
THINK = [message("user", "2+2?"), message("assistant", "<think>\nadd\n</think>\n\n4"), message("user", "and 3+3?"),
         message("assistant", "<think>\nadd again\n</think>\n\n6")]
TOOL_USE = [message("user", "weather?"), message("tool", "sunny"), message("tool", "dry"), message("user", "thanks")]
TOOLS = [{"function": {"description": "The weather <now> in °C", "name": "weather", "parameters": {
    "properties": {"city": {"enum": ["Rome", "Köln"], "type": "string"}}, "required": ["city"], "type": "object"}},
    "type": "function"}]

CASES = [
    ("vision", LOOK, {}), ("vision", TALK, {}), ("vision", TALK[:2], {"add_generation_prompt": False}),
    ("vision", [message("user", None)], {}),
    ("headers", TALK, {}), ("headers", TALK[1:], {}), ("headers", TALK, {"tools": TOOLS}),
    ("headers", TALK, {"tools": TOOLS, "tools_in_user_message": False}), ("headers", TALK, {"date_string": "1 May 2025"}),
    ("headers", TALK[:1], {"tools": TOOLS}),
    ("chatml", TALK, {}), ("chatml", TALK[1:], {"tools": TOOLS}), ("chatml", TOOL_USE, {}),
    ("chatml", TALK, {"tools": TOOLS, "add_generation_prompt": False}),
    ("thinking", THINK, {}), ("thinking", THINK[:3], {"enable_thinking": False}), ("thinking", TALK, {"enable_thinking": True}),
    ("opened", THINK, {}), ("opened", THINK[:3], {}), ("opened", TALK, {"add_generation_prompt": False}),
    ("both", LOOK, {}), ("both", LOOK, {"add_vision_id": True}), ("both", TALK, {}),
    ("alternating", TALK[1:], {}), ("alternating", TALK, {}), ("alternating", TALK[1:2] * 2, {}),
    ("constructs", TALK, {}),
]


def parts(content):
    return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in content]


def main():
    cases = []
    for name, messages, variables in CASES:
        template = (FIXTURES / "chat" / f"{name}.jinja").read_text()
        form = "parts" if name in ("vision", "both") else "text"
        chat = [{"role": m["role"], "content": parts(m["content"]) if form == "parts" else "".join(m["content"])}
                for m in messages]
        case = {"template": name, "form": form, "messages": messages, "variables": variables}
        options = {"add_generation_prompt": True, **TOKENS, **variables}
        with mock.patch.object(chat_template_utils, "datetime") as clock:
            clock.now.return_value = NOW
            try:
                rendered, _ = chat_template_utils.render_jinja_template([chat], chat_template=template, **options)
                case["expected"] = rendered[0]
            except jinja2.exceptions.TemplateError as error:
                case["refused"] = str(error)
        cases.append(case)
    fixture = {"now": int(NOW.timestamp()), "tokens": TOKENS, "cases": cases}
    (FIXTURES / "chat.json").write_text(json.dumps(fixture, indent=1, ensure_ascii=False) + "\n")


main()
