"""Turns and a tool, as records of messages have them."""

ADD = {"type": "function", "function": {"name": "add"}}

CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
}

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
