"""The bundle's tokenizer and chat template beside those that others make of the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from adaptc.errors import AdaptcError, one_line
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.verification.part import Part, judged, not_compared
from adaptc.verification.probes import CONVERSATIONS, Conversation, texts

TOKENIZER, TEMPLATE = "tokenizer", "chat template"
_SHOWN = 3


class TextReference(Protocol):
    """A tokenizer that a bundle's is compared with."""

    @property
    def name(self) -> str:
        """What it is, with its version."""

    @property
    def special(self) -> Sequence[str]:
        """Names of the added tokens."""

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""

    def ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """The ids of texts; `special` adds what the model expects around a text."""

    def render(self, conversation: Conversation) -> str | None:
        """A conversation as a prompt; None if the template refuses it."""


@dataclass(frozen=True, slots=True)
class AutoText:
    """transformers' tokenizer of a source; see `TextReference`."""

    tokenizer: Any
    version: str

    @property
    def name(self) -> str:
        """See `TextReference`."""
        return f"AutoTokenizer of {self.version}"

    @property
    def special(self) -> Sequence[str]:
        """See `TextReference`."""
        return sorted(self.tokenizer.get_added_vocab(), key=self.tokenizer.get_added_vocab().get)

    @property
    def has_template(self) -> bool:
        """See `TextReference`."""
        return bool(self.tokenizer.chat_template)

    def ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """See `TextReference`."""
        return [list(self.tokenizer(text, add_special_tokens=special)["input_ids"]) for text in texts]

    def render(self, conversation: Conversation) -> str | None:
        """See `TextReference`."""
        options: Mapping[str, Any] = {"add_generation_prompt": True, **conversation.options}
        try:
            text: str = self.tokenizer.apply_chat_template(list(conversation.messages), tokenize=False, **options)
        except Exception:  # a template raises what it likes
            return None
        return text


def tokenizer_part(tokenizer: Tokenizer, reference: TextReference) -> Part:
    """Compare ids, text by text, with and without what is added around a text.

    Args:
        tokenizer: The bundle's.
        reference: What it should be.
    """
    probes = list(texts(reference.special))
    faults: list[str] = []
    for special in (True, False):
        expected = reference.ids(probes, special=special)
        found = [_ids(tokenizer, text, special) for text in probes]
        wrong = [index for index, ids in enumerate(found) if ids != expected[index]]
        for index in wrong[:_SHOWN]:
            added = "" if special else " without special tokens"
            faults.append(f"{_short(probes[index])}{added} gives {_start(found[index])}, not {_start(expected[index])}")
        if len(wrong) > _SHOWN:
            faults.append(f"so do {len(wrong) - _SHOWN} more of {len(probes)} texts")
    return judged(TOKENIZER, reference.name, faults, {"texts": len(probes), "added_tokens": len(reference.special)})


def template_part(tokenizer: Tokenizer, reference: TextReference) -> Part:
    """Compare what the chat templates render."""
    rendered = {each.name: _render(tokenizer, each) for each in CONVERSATIONS}
    ours = not any("no chat template" in each.refusal for each in rendered.values())
    if not reference.has_template:
        if ours:
            return judged(TEMPLATE, reference.name, ["the bundle has a chat template, the source has none"])
        return not_compared(TEMPLATE, "the source has no chat template", reference.name)
    if not ours:
        return judged(TEMPLATE, reference.name, ["the source has a chat template, the bundle has none"])
    faults = [
        f"a conversation {each.name}: {fault}"
        for each in CONVERSATIONS
        if (fault := _difference(rendered[each.name], each, reference))
    ]
    return judged(TEMPLATE, reference.name, faults, {"conversations": len(CONVERSATIONS)})


@dataclass(frozen=True, slots=True)
class _Rendered:
    """What a bundle makes of a conversation.

    Attributes:
        text: The prompt.
        refusal: Why there is none; "" if there is one.
    """

    text: str
    refusal: str = ""


def _render(tokenizer: Tokenizer, conversation: Conversation) -> _Rendered:
    try:
        return _Rendered(tokenizer.render(conversation.messages, conversation.options))
    except AdaptcError as error:
        return _Rendered("", one_line(error))


def _difference(found: _Rendered, conversation: Conversation, reference: TextReference) -> str:
    """How a rendering differs from the reference's; "" if it does not."""
    expected = reference.render(conversation)
    if found.refusal:
        without = reference.render(replace(conversation, options={}))
        if expected is None or (conversation.options and expected == without):
            return ""  # what a template ignores may be refused, as it would be lost in silence
        return f"refused: {found.refusal}"
    if expected is None:
        return "the reference refuses it, the bundle renders it"
    if found.text == expected:
        return ""
    both = zip(found.text, expected, strict=False)
    end = min(len(found.text), len(expected))
    place = next((index for index, (ours, theirs) in enumerate(both) if ours != theirs), end)
    return f"{_short(found.text[place:])} at character {place}, not {_short(expected[place:])}"


def _ids(tokenizer: Tokenizer, text: str, special: bool) -> list[int] | str:
    try:
        return tokenizer.encode(text, special)
    except AdaptcError as error:
        return one_line(error)


def _start(ids: Sequence[int] | str) -> str:
    return ids if isinstance(ids, str) else f"[{', '.join(map(str, ids[:8]))}{', …' if len(ids) > 8 else ''}]"


def _short(text: str) -> str:
    return repr(text if len(text) <= 30 else text[:29] + "…")
