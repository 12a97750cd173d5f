"""The chat templates of a GGUF file, and the BOS that llama.cpp puts before what they write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress

from adaptc.errors import AdaptcError
from adaptc.runtime.text.template_files import DEFAULT, TOOL_USE, TemplateText
from adaptc.runtime.text.templates import ChatTemplates
from adaptc.sources.gguf.file import GgufFile
from adaptc.sources.gguf.vocabulary import Vocabulary

_KEY = "tokenizer.chat_template"
_NAMED = re.compile(r"tokenizer\.chat_template\.([\w-]+)")
# The comment ends its line, so that what follows stands at the start of one, as it did before.
_WITH_BOS = "{{ bos_token }}{# llama.cpp puts BOS before every chat #}\n"
_USER, _SYSTEM = {"role": "user", "content": "a"}, {"role": "system", "content": "b"}
_PROBES = ([_USER], [_SYSTEM, _USER], [_USER, {"role": "assistant", "content": "c"}, _USER])


def chat_templates(file: GgufFile, vocabulary: Vocabulary) -> dict[str, str]:
    """Return the chat templates by name.

    llama.cpp puts BOS before a chat as before any text, if the file has it put there, and takes away the one that a
    template writes. A template that writes none is given one here, since a chat's text is encoded as it is.

    Args:
        file: The header.
        vocabulary: Its tokens.

    Raises:
        LoadError: a template is not a text.
    """
    named = {match[1]: file.get(name, str) for name in file.metadata if (match := _NAMED.fullmatch(name))}
    texts = {DEFAULT: file.get(_KEY, str) or named.get(TOOL_USE), **named}
    return {name: _with_bos(text, vocabulary) for name, text in texts.items() if text}


def _with_bos(text: str, vocabulary: Vocabulary) -> str:
    bos, eos = vocabulary.text(vocabulary.bos), vocabulary.text(vocabulary.eos)
    if not vocabulary.add_bos or bos is None:
        return text
    chats = _rendered(text, {"bos_token": bos, "eos_token": eos or ""})
    return text if not chats or any(chat.startswith(bos) for chat in chats) else _WITH_BOS + text


def _rendered(text: str, tokens: Mapping[str, str]) -> list[str]:
    """What a template makes of the probes that it takes; whoever uses it is told why it takes none."""
    templates = ChatTemplates({DEFAULT: TemplateText(text, _KEY)}, tokens)
    found = []
    for messages in _PROBES:
        with suppress(AdaptcError):
            found.append(templates.render(messages, {}))
    return found
