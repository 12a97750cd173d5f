"""The schemas of bodies: what is checked, and what the OpenAPI document publishes.

A field that is null counts as left out, so the types of fields that may be left out have null among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.runtime.server.protocol.checking import Schema

STRING: Schema = {"type": "string"}
ANY_OBJECT: Schema = {"type": "object"}
MOST_ID = (1 << 32) - 1


def maybe(kind: str, **limits: Any) -> Schema:
    """A field that may be left out, or null."""
    return {"type": [kind, "null"], **limits}


def obj(fields: Mapping[str, Schema], *required: str) -> Schema:
    """An object with these fields and no others."""
    return {"type": "object", "properties": dict(fields), "required": list(required), "additionalProperties": False}


def array(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    """A list."""
    return {"type": "array", "items": items, "minItems": least} | ({} if most is None else {"maxItems": most})


def one_of(*schemas: Schema) -> Schema:
    """A value of one of several forms."""
    return {"anyOf": list(schemas)}


IDS = array({"type": "integer", "minimum": 0, "maximum": MOST_ID}, 1)
PROMPT = one_of(
    {"type": "string", "needed": "a text"},
    {**IDS, "needed": "a list of token ids"},
    {**array(STRING, 1), "needed": "a list of texts"},
    {**array(IDS, 1), "needed": "a list of lists of token ids"},
)

CONTROLS = obj(
    {
        "budget": maybe("number", minimum=0, maximum=1),
        "max_loss": maybe("number", minimum=0, maximum=100),
        "min_budget": maybe("number", minimum=0, maximum=1),
        "route": maybe("string"),
        "adapter": maybe("string"),
        "speculate": maybe("string"),
        "modalities": maybe("array", items=STRING, maxItems=16),
        "deadline_ms": maybe("number", exclusiveMinimum=0, maximum=1e9),
        "accuracy": maybe("number", minimum=0, maximum=1),
        "skips": maybe("boolean"),
    }
)
"""How much of a model answers a request."""

SAMPLING: Mapping[str, Schema] = {
    "temperature": maybe("number", minimum=0, maximum=100),
    "top_p": maybe("number", exclusiveMinimum=0, maximum=1),
    "top_k": maybe("integer", minimum=-1, maximum=MOST_ID),
    "min_p": maybe("number", minimum=0, maximum=1),
    "presence_penalty": maybe("number", minimum=-2, maximum=2),
    "frequency_penalty": maybe("number", minimum=-2, maximum=2),
    "repetition_penalty": maybe("number", minimum=0.001, maximum=100),
    "logit_bias": maybe(
        "object", additionalProperties={"type": "number", "minimum": -100, "maximum": 100}, maxProperties=1024
    ),
    "stop": one_of(
        maybe("string", minLength=1, maxLength=1000, needed="a text of at least one character"),
        {**array({"type": "string", "minLength": 1, "maxLength": 1000}, 0, 64), "needed": "a list of texts"},
    ),
    "stop_token_ids": maybe("array", items={"type": "integer", "minimum": 0, "maximum": MOST_ID}, maxItems=1024),
    "min_tokens": maybe("integer", minimum=0),
    "priority": maybe("integer", minimum=-1000, maximum=1000),
    "seed": maybe("integer", minimum=-(1 << 63), maximum=(1 << 64) - 1),
    "n": maybe("integer", minimum=1, maximum=1 << 31),
    "stream": maybe("boolean"),
    "stream_options": {**obj({"include_usage": maybe("boolean")}), "type": ["object", "null"]},
    "structured_outputs": {
        **obj(
            {
                "json": one_of(ANY_OBJECT, STRING, maybe("boolean")),
                "regex": maybe("string", maxLength=10000),
                "choice": maybe("array", items=STRING, minItems=1, maxItems=1000),
                "grammar": maybe("string", maxLength=100000),
            }
        ),
        "type": ["object", "null"],
    },
    "adaptc": {**CONTROLS, "type": ["object", "null"]},
}

WITHOUT_EFFECT: Mapping[str, Schema] = {
    "user": maybe("string"),
    "metadata": maybe("object"),
    "store": maybe("boolean"),
    "safety_identifier": maybe("string"),
    "prompt_cache_key": maybe("string"),
    "service_tier": maybe("string"),
}
"""What OpenAI's clients may send and no answer depends on: notes for the provider's own books."""

PART = one_of(
    obj({"type": {"type": "string", "enum": ["text"]}, "text": STRING}, "type", "text"),
    obj(
        {
            "type": {"type": "string", "enum": ["image_url"]},
            "image_url": obj({"url": STRING, "detail": maybe("string")}, "url"),
        },
        "type",
        "image_url",
    ),
)
CONTENT = one_of(
    {"type": ["string", "null"], "needed": "a text"}, {**array(PART, 0, 1024), "needed": "a list of parts"}
)
TOOL_CALL = obj(
    {
        "id": maybe("string"),
        "type": maybe("string"),
        "index": maybe("integer"),
        "function": obj({"name": STRING, "arguments": one_of(maybe("string"), ANY_OBJECT)}, "name"),
    },
    "function",
)
MESSAGE = obj(
    {
        "role": {"type": "string", "minLength": 1, "maxLength": 64},
        "content": CONTENT,
        "name": maybe("string"),
        "tool_calls": maybe("array", items=TOOL_CALL, maxItems=256),
        "tool_call_id": maybe("string"),
        "reasoning_content": maybe("string"),
        "refusal": maybe("string"),
        "audio": {"type": "null"},
        "function_call": {"type": "null"},
        "annotations": maybe("array"),
    },
    "role",
)
TOOL = obj(
    {
        "type": {"type": "string", "enum": ["function"]},
        "function": obj(
            {
                "name": {"type": "string", "minLength": 1, "maxLength": 256},
                "description": maybe("string"),
                "parameters": maybe("object"),
                "strict": maybe("boolean"),
            },
            "name",
        ),
    },
    "type",
    "function",
)
RESPONSE_FORMAT: Schema = {
    **obj(
        {
            "type": {"type": "string", "enum": ["text", "json_object", "json_schema"]},
            "json_schema": {
                **obj(
                    {
                        "name": maybe("string"),
                        "description": maybe("string"),
                        "schema": maybe("object"),
                        "strict": maybe("boolean"),
                    }
                ),
                "type": ["object", "null"],
            },
        },
        "type",
    ),
    "type": ["object", "null"],
}

CHAT = obj(
    {
        "model": maybe("string"),
        "messages": array(MESSAGE, 1, 10000),
        "max_completion_tokens": maybe("integer", minimum=1),
        "max_tokens": maybe("integer", minimum=1),
        **SAMPLING,
        "logprobs": maybe("boolean"),
        "top_logprobs": maybe("integer", minimum=0, maximum=20),
        "tools": maybe("array", items=TOOL, maxItems=256),
        "tool_choice": one_of(
            {"type": ["string", "null"], "enum": ["none", "auto", "required", None]},
            obj(
                {"type": {"type": "string", "enum": ["function"]}, "function": obj({"name": STRING}, "name")},
                "type",
                "function",
            ),
        ),
        "parallel_tool_calls": maybe("boolean"),
        "response_format": RESPONSE_FORMAT,
        "chat_template": maybe("string"),
        "chat_template_kwargs": maybe("object"),
        "add_generation_prompt": maybe("boolean"),
        "continue_final_message": maybe("boolean"),
        **WITHOUT_EFFECT,
    },
    "messages",
)

COMPLETION = obj(
    {
        "model": maybe("string"),
        "prompt": PROMPT,
        "max_tokens": maybe("integer", minimum=0),
        **SAMPLING,
        "logprobs": maybe("integer", minimum=0, maximum=20),
        "echo": maybe("boolean"),
        "best_of": maybe("integer", minimum=1),
        "suffix": maybe("string"),
        **WITHOUT_EFFECT,
    },
    "prompt",
)

TOKENIZE = obj(
    {
        "model": maybe("string"),
        "prompt": maybe("string", needed="a text"),
        "messages": maybe("array", items=MESSAGE, minItems=1, maxItems=10000),
        "add_special_tokens": maybe("boolean"),
        "add_generation_prompt": maybe("boolean"),
        "tools": maybe("array", items=TOOL, maxItems=256),
        "chat_template_kwargs": maybe("object"),
        "return_token_strs": maybe("boolean"),
    }
)

DETOKENIZE = obj({"model": maybe("string"), "tokens": {**IDS, "minItems": 0}}, "tokens")

ROUTE = obj(
    {
        "model": maybe("string"),
        "prompt": one_of(maybe("string", needed="a text"), {**IDS, "needed": "a list of token ids"}),
        "messages": maybe("array", items=MESSAGE, minItems=1, maxItems=10000),
        "adaptc": {**obj({"budget": maybe("number", minimum=0, maximum=1)}), "type": ["object", "null"]},
    }
)

ARRAY = obj(
    {"data": STRING, "shape": array({"type": "integer", "minimum": 0, "maximum": 1 << 32}, 0, 16)}, "data", "shape"
)
INPUTS = {
    "type": "object",
    "additionalProperties": one_of(
        {"type": ["string", "number", "boolean", "null"], "needed": "a text, a number"},
        {"type": "array", "needed": "a list"},
        {**ARRAY, "needed": "{data: base64, shape: [...]}"},
    ),
    "maxProperties": 256,
}
INFER = obj(
    {
        "model": maybe("string"),
        "inputs": INPUTS,
        "accuracy": maybe("number", minimum=0, maximum=1),
        "deadline_ms": maybe("number", exclusiveMinimum=0, maximum=1e9),
        "modalities": maybe("array", items=STRING, minItems=1, maxItems=16),
    },
    "inputs",
)
EMBEDDINGS = obj(
    {
        "model": maybe("string"),
        "input": one_of(
            {"type": "string", "needed": "a text"},
            {**IDS, "needed": "a list of token ids"},
            {**array(STRING, 1, 2048), "needed": "a list of texts"},
            {**array(IDS, 1, 2048), "needed": "a list of lists of token ids"},
        ),
        "encoding_format": {"type": ["string", "null"], "enum": ["float", "base64", None]},
        "dimensions": maybe("integer", minimum=1),
        "user": maybe("string"),
        "adaptc": obj({"prompt": maybe("string"), "truncate": maybe("boolean")}),
    },
    "input",
)
JOB = obj(
    {
        "model": maybe("string"),
        "inputs": INPUTS,
        "accuracy": maybe("number", minimum=0, maximum=1),
        "deadline_ms": maybe("number", exclusiveMinimum=0, maximum=1e9),
    },
    "inputs",
)
