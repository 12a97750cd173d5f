"""Tokens that llama.cpp knows by their texts, whatever the file says of them: ends of answers, parts of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from adaptc.sources.gguf.kinds import Kind


def _texts(*lines: str) -> tuple[str, ...]:
    return tuple(text for line in lines for text in line.split())


_ENDS = _texts(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|>",
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~[",
    "<｜end▁of▁sentence｜>",
)
# What a prompt is made of in whose middle the model writes; an answer ends at the last three.
_FILL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fim_pre": _texts(
            "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>"
        ),
        "fim_suf": _texts(
            "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>"
        ),
        "fim_mid": _texts(
            "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>"
        ),
        "fim_pad": _texts("<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]"),
        "fim_rep": _texts("<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>"),
        "fim_sep": _texts("<|file_sep|>"),
    }
)
_ENDING_FILL = ("fim_pad", "fim_rep", "fim_sep")
_OLD_NAMES: Mapping[str, str] = MappingProxyType({"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"})
# Always shown in a text.
_SHOWN = _texts("<|channel|> <|message|> <|start|> <|constrain|>")
# A text that is no end where all of another set are ends, and what it is there: `<|end|>` closes a part of an answer.
_NO_END = (
    ("<|end|>", Kind.USER_DEFINED, {"<|return|>", "<|call|>"}),
    ("<|end|>", Kind.USER_DEFINED, {"<|return|>", "<|calls|>"}),
    ("<|end|>", Kind.USER_DEFINED, {"<|call|>", "<|flush|>"}),
    ("<|end|>", Kind.USER_DEFINED, {"<|calls|>", "<|flush|>"}),
    ("</s>", Kind.NORMAL, {"<|tool_response>"}),
    ("</s>", Kind.NORMAL, {"<|plamo:eos|>"}),
)


def kinds_and_ends(
    tokens: Sequence[str], stated_kinds: Iterable[Kind], stated: Callable[[str], int | None], eos: int | None
) -> tuple[tuple[Kind, ...], tuple[int, ...]]:
    """Return the kind of each token, and the tokens that end an answer.

    Args:
        tokens: Texts by id.
        stated_kinds: Kinds by id, as the file states them.
        stated: Takes a name ("eot", "fim_pad") and returns the token that the file states under it, or None.
        eos: The token that ends a text, or None.

    Returns:
        Kinds by id, and the ends: `eos` first, the others by id.
    """
    ids = {text: token for token, text in enumerate(tokens)}
    ends = {ids[text] for text in _ENDS if text in ids}
    control = set(ends)
    for name, texts in _FILL.items():
        token = stated(name) if name not in _OLD_NAMES else _first(stated(name), stated(_OLD_NAMES[name]))
        if token is None and (token := next((ids[text] for text in texts if text in ids), None)) is not None:
            control.add(token)
        if token is not None and name in _ENDING_FILL:
            ends.add(token)
    ends |= {token for token in (eos, stated("eot"), stated("eom")) if token is not None}
    kinds = [Kind.CONTROL if token in control else kind for token, kind in enumerate(stated_kinds)]
    for text in _SHOWN:
        if text in ids:
            kinds[ids[text]] = Kind.USER_DEFINED
    ending = {tokens[token] for token in ends}
    for text, kind, others in _NO_END:
        if text in ending and others <= ending:
            ends.discard(ids[text])
            kinds[ids[text]] = kind
    return tuple(kinds), tuple(sorted(ends, key=lambda token: (token != eos, token)))


def _first(*tokens: int | None) -> int | None:
    return next((token for token in tokens if token is not None), None)
