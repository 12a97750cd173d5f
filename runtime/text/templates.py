"""Chat templates: a conversation as the text a model was trained on, as transformers renders it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptc.runtime.errors import BundleError, EngineError, RequestError
from adaptc.runtime.text.jinja.meter import Meter, weigh
from adaptc.runtime.text.template_files import DEFAULT, TOOL_USE, TemplateText
from adaptc.runtime.validation import shown

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]

_CONTINUED = "\U00100000continued "
"""Marks the end of the message that is continued; its last space tells whether a template trims texts."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that messages give a model's reasoning; templates know the first, and some the second."""

_OWN = ("chat_template", "continue_final_message")
"""Options that are ours to follow; a template does not see them."""

_COMMON = ("tools", "documents", "add_generation_prompt")
"""Variables that every template is given."""

_SCALARS = frozenset({str, int, float, bool, type(None)})

_DEPTH = 100  # lists within lists

_LONGEST = 300  # characters of a template's message that are shown


class ChatTemplate:
    """One template, compiled.

    Attributes:
        source: The template.
        reads: Names that it reads.
        variables: Those that it neither sets nor has from Jinja.
    """

    def __init__(self, source: str, where: str) -> None:
        """Compile a template.

        Args:
            source: The template.
            where: Where it comes from, for messages.

        Raises:
            BundleError: the template is not valid Jinja.
        """
        sandbox = _sandbox()
        try:
            self._template: jinja2.Template = sandbox.compiled(source)
            self.reads, self.variables = sandbox.names_of(source)
        except Exception as error:  # a parser given a stranger's text: recursion, memory, all kinds of errors
            raise BundleError(f"{where}: not a chat template: {_one_line(error)}") from error
        self.source = source

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables: plain data.

        Raises:
            RequestError: the template refuses them, or takes too much.
        """
        try:
            meter = Meter(weigh(variables))
            text = self._template.render({**variables, _sandbox().METER: meter})
            meter.room(len(text))
        except RequestError:
            raise
        except Exception as error:  # a stranger's program may raise anything, and none of it is our bug
            raise RequestError(f"chat: the model's template refuses this: {_one_line(error)}") from error
        return text


class ChatTemplates:
    """The templates of a model, by name."""

    def __init__(self, sources: Mapping[str, TemplateText], tokens: Mapping[str, str]) -> None:
        """Take templates; each is compiled when it is first used.

        Args:
            sources: Templates by name; "default" is for chats without tools.
            tokens: Special tokens by the names templates know, such as "bos_token".
        """
        self.sources = dict(sources)
        self._tokens = dict(tokens)
        self._compiled: dict[str, ChatTemplate] = {}

    def render(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        """The prompt, ready for the model's next message.

        Args:
            messages: Each with "role" and, as a rule, "content": a text or a list of parts.
            options: See `Session.chat`.

        Raises:
            RequestError: the messages are not of this form, or the template refuses them or does not use an option.
            BundleError: the model's template is broken.
        """
        plain = _variables(options)
        chosen = self._chosen(options.get("chat_template"), plain.get("tools"))
        self._check_used(chosen, plain)
        conversation = _conversation(messages)
        field = _continued_field(options.get("continue_final_message"), plain)
        continued = None if field is None else _mark(conversation, field, chosen.source)
        variables = {"tools": None, "documents": None, "add_generation_prompt": field is None, **self._tokens, **plain}
        text = chosen.render(variables | {"messages": conversation})
        return text if continued is None else _cut(text, continued)

    def _chosen(self, wanted: Any, tools: Any) -> ChatTemplate:
        names = ", ".join(sorted(self.sources)) or "none"
        if wanted is None:
            if not self.sources:
                raise RequestError("chat: this model has no chat template; use generate with a prompt")
            name = TOOL_USE if tools is not None and TOOL_USE in self.sources else DEFAULT
            if name not in self.sources:
                raise RequestError(f"chat: this model has no default template; name one: chat_template: {names}")
            return self._named(name)
        if not isinstance(wanted, str):
            raise RequestError(f"chat_template: {type(wanted).__name__}; a name or a Jinja template is needed")
        if wanted in self.sources:
            return self._named(wanted)
        if "{{" not in wanted and "{%" not in wanted:
            raise RequestError(f"chat_template: no template {_short(wanted)!r}; there are: {names}")
        try:
            return ChatTemplate(wanted, "chat_template")
        except BundleError as error:  # it is the request's, not the bundle's
            raise RequestError(str(error)) from error

    def _named(self, name: str) -> ChatTemplate:
        if name not in self._compiled:
            self._compiled[name] = ChatTemplate(self.sources[name].text, self.sources[name].where)
        return self._compiled[name]

    def _check_used(self, template: ChatTemplate, given: Mapping[str, Any]) -> None:
        """Refuse what would be left out in silence."""
        for name, value in given.items():
            if name in template.reads or name == "add_generation_prompt" or value in (None, [], ()):
                continue
            if name in _COMMON:
                others = sorted(title for title in self.sources if name in self._named(title).reads)
                hint = f"; chat_template: {', '.join(others)} does" if others else "; leave them out"
                raise RequestError(f"{name}: this model's chat template does not use {name}{hint}")
            known = sorted(template.variables - {"messages", *self._tokens})
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it uses: {', '.join(known) or 'messages only'}"
            raise RequestError(f"template: this model's chat template does not use {_short(name)!r}; {hint}")


def _sandbox() -> ModuleType:
    try:
        from adaptc.runtime.text.jinja import sandbox
    except ImportError as error:
        raise EngineError("jinja2: not installed; pip install jinja2 installs it") from error
    return sandbox


def _variables(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are variables of a template, as plain data."""
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise RequestError(f"template: {shown(options)}; a mapping from names to values is needed")
    if "messages" in options:
        raise RequestError("template: messages; they are the conversation itself, and no variable beside it")
    plain = {name: _plain(value, name) for name, value in options.items() if name not in _OWN}
    for name in ("tools", "documents"):
        value = plain.get(name)
        if value is not None and not (
            isinstance(value, (list, tuple)) and all(isinstance(each, dict) for each in value)
        ):
            raise RequestError(f"{name}: a list with a mapping for each is needed")
    return plain


def _conversation(messages: Any) -> list[dict[Any, Any]]:
    """The messages as plain data, without empty entries, and with reasoning under the names that templates know."""
    if not isinstance(messages, (list, tuple)):
        raise RequestError(f'messages: {shown(messages)}; a list of {{"role": ..., "content": ...}} is needed')
    if not messages:
        raise RequestError("messages: none; at least one is needed")
    conversation = []
    for index, message in enumerate(messages):
        plain = _plain(message, f"messages[{index}]")
        if not isinstance(plain, dict) or not isinstance(plain.get("role"), str):
            raise RequestError(f'messages[{index}]: {{"role": ..., "content": ...}} is needed')
        if None in plain.values():
            plain = {name: value for name, value in plain.items() if value is not None}
        if not plain.keys().isdisjoint(_REASONING):
            reasoning = next(plain[name] for name in _REASONING if name in plain)
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        conversation.append(plain)
    return conversation


def _plain(value: Any, where: str) -> Any:
    """A copy made of JSON's types: methods of richer objects would be a way out of the sandbox.

    Pictures and sounds, in a part of a message that has a "type", become their kind's name: templates ask only
    whether they are there.
    """
    try:
        return _copied(value, 0, media=False)
    except _NotPlainError as error:
        raise RequestError(
            f"{where}: {error}; plain data is needed: texts, numbers, lists and mappings, not nested too deep"
        ) from error


class _NotPlainError(TypeError):
    """Data that no template is given."""


def _copied(value: Any, depth: int, *, media: bool) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if depth > _DEPTH:
        raise _NotPlainError(f"more than {_DEPTH} lists within lists")
    if kind is dict or isinstance(value, Mapping):
        typed = "type" in value
        return {
            name if type(name) in _SCALARS else _copied(name, depth + 1, media=False): each
            if type(each) in _SCALARS
            else _copied(each, depth + 1, media=typed)
            for name, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        parts = [_copied(each, depth + 1, media=media) for each in value]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, str):  # an enumeration's member, say
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, np.generic):
        return _copied(value.item(), depth + 1, media=media)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _copied(
            {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, depth + 1, media=media
        )
    if callable(getattr(value, "model_dump", None)):
        return _copied(value.model_dump(), depth + 1, media=media)
    if media:
        return f"<{kind.__name__}>"
    raise _NotPlainError(kind.__name__)


def _continued_field(wanted: Any, given: Mapping[str, Any]) -> str | None:
    """The entry of the last message that the model is to continue; None if it begins a message of its own."""
    if wanted is None or wanted is False:
        return None
    if wanted is not True and not isinstance(wanted, str):
        raise RequestError(f"continue_final_message: {type(wanted).__name__}; true or the name of an entry is needed")
    if given.get("add_generation_prompt"):
        raise RequestError("continue_final_message: not with add_generation_prompt, which begins a new message")
    return "content" if wanted is True else wanted


def _mark(conversation: list[dict[Any, Any]], field: str, template: str) -> str:
    """Mark where the last message ends, and give its text."""
    message = conversation[-1]
    final = message.get(field)
    names = [field]
    if field in _REASONING:  # it may stand under several names, and a template reads any of them
        names = [name for name in _REASONING if name in message and message[name] == final]
    if not any(name in template for name in names):
        raise RequestError(f"continue_final_message: the chat template does not use {_short(field)!r}")
    if isinstance(final, (list, tuple)):
        part = next((part for part in reversed(final) if isinstance(part, dict) and "text" in part), {})
        final, part["text"] = part.get("text"), str(part.get("text")) + _CONTINUED
    elif isinstance(final, str):
        message.update(dict.fromkeys(names, final + _CONTINUED))
    if not isinstance(final, str):
        raise RequestError(f"continue_final_message: the last message has no text as {_short(field)!r}")
    return final


def _cut(text: str, final: str) -> str:
    """The text up to the end of the message that is continued."""
    mark = _CONTINUED.strip()
    if final.strip() not in text or mark not in text:
        raise RequestError("continue_final_message: the chat template does not write the last message as it is")
    end = text.rindex(mark)
    # A template that trims texts trims the end of the mark too; without the mark it would have trimmed the message.
    return text[:end] if text.startswith(_CONTINUED, end) else text[:end].rstrip()


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
