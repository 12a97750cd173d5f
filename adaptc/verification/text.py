"""The bundle's tokenizer and chat template beside those that others make of the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaptc.errors import AdaptcError, one_line
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.verification.part import Part, judged, not_compared
from adaptc.verification.probes import CONVERSATIONS, Conversation

TOKENIZER, TEMPLATE = "tokenizer", "chat template"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class AutoText:
    """transformers' tokenizer of a source.

    Attributes:
        tokenizer: As `AutoTokenizer` gives it.
        version: Of transformers.
    """

    tokenizer: Any
    version: str

    @property
    def name(self) -> str:
        """What it is, with its version."""
        return f"AutoTokenizer of {self.version}"

    @property
    def special(self) -> Sequence[str]:
        """Names of the added tokens, by their ids."""
        return sorted(self.tokenizer.get_added_vocab(), key=self.tokenizer.get_added_vocab().get)

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        return bool(self.tokenizer.chat_template)

    def ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """The ids of texts; `special` adds what the model expects around a text."""
        return [list(self.tokenizer(text, add_special_tokens=special)["input_ids"]) for text in texts]

    def render(self, conversation: Conversation) -> str | None:
        """A conversation as a prompt; None if the template refuses it."""
        options: Mapping[str, Any] = {"add_generation_prompt": True, **conversation.options}
        try:
            text: str = self.tokenizer.apply_chat_template(list(conversation.messages), tokenize=False, **options)
        except Exception:  # a template raises what it likes
            return None
        return text


def ids_part(
    tokenizer: Tokenizer,
    name: str,
    probes: Sequence[str],
    special: Sequence[Sequence[int]],
    plain: Sequence[Sequence[int]],
) -> Part:
    """Compare ids, text by text.

    Args:
        tokenizer: The bundle's.
        name: What it is compared with, with its version.
        probes: Texts.
        special: The reference's ids of each, with what the model expects around a text.
        plain: The same without.
    """
    faults: list[str] = []
    for expected, added in ((special, ""), (plain, " without special tokens")):
        found = [_ids(tokenizer, text, not added) for text in probes]
        wrong = [index for index, ids in enumerate(found) if ids != list(expected[index])]
        for index in wrong[:_SHOWN]:
            faults.append(f"{_short(probes[index])}{added} gives {_differing(found[index], expected[index])}")
        if len(wrong) > _SHOWN:
            faults.append(f"so do {len(wrong) - _SHOWN} more of {len(probes)} texts")
    return judged(TOKENIZER, name, faults, {"texts": len(probes)})


def template_part(tokenizer: Tokenizer, reference: AutoText) -> Part:
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


def _difference(found: _Rendered, conversation: Conversation, reference: AutoText) -> str:
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


def _differing(found: Sequence[int] | str, expected: Sequence[int]) -> str:
    """Ids, from the first that is another one."""
    if isinstance(found, str):
        return f"{found}, not {_start(expected)}"
    both = enumerate(zip(found, expected, strict=False))
    place = next((index for index, (ours, theirs) in both if ours != theirs), min(len(found), len(expected)))
    return f"{_start(found[place:])}, not {_start(expected[place:])}{f', after {place} ids' if place else ''}"


def _start(ids: Sequence[int] | str) -> str:
    return ids if isinstance(ids, str) else f"[{', '.join(map(str, ids[:8]))}{', …' if len(ids) > 8 else ''}]"


def _short(text: str) -> str:
    return repr(text if len(text) <= 30 else text[:29] + "…")
