"""A sentencepiece vocabulary, as Llama 2 and Gemma have it, in the parts of a tokenizer.json.

llama.cpp joins the two neighbours whose joint text has the best score, wherever the file's merges come from. A
tokenizer.json joins by a list of pairs, so that list is made from the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

from adaptc.errors import LoadError
from adaptc.sources.gguf.file import GgufFile
from adaptc.sources.gguf.kinds import MATCHED_WHOLE, Kind
from adaptc.sources.gguf.vocabulary import Vocabulary, scores_of

_SPACE = "▁"
_MAX_EQUAL = 1000  # pairs of one score, beyond which there is a circle among them for sure

Pair = tuple[str, str]


def sentencepiece(file: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the model, the normalizer and the decoder of a sentencepiece vocabulary.

    Raises:
        LoadError: many tokens share a score, so which pair is joined depends on where it stands.
    """
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if vocabulary.space_prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
        "pre_tokenizer": None,
        # An answer's text begins with its first token's space, as llama.cpp gives it.
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": vocabulary.text(vocabulary.unknown),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: token for token, text in enumerate(vocabulary.tokens)},
            "merges": _merges(file, vocabulary),
        },
    }


def _merges(file: GgufFile, vocabulary: Vocabulary) -> list[Pair]:
    """The pairs that make a token, best score first."""
    scores = scores_of(file, len(vocabulary.tokens))
    parts = {text for text, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind is not Kind.BYTE}
    scored = [
        (-score, [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in parts and text[at:] in parts])
        for text, kind, score in zip(vocabulary.tokens, vocabulary.kinds, scores, strict=True)
        if _can_be_joined(text, kind)
    ]
    scored.sort(key=itemgetter(0))
    groups = (list(chain.from_iterable(pairs for _, pairs in equal)) for _, equal in groupby(scored, itemgetter(0)))
    return list(chain.from_iterable(_ordered(file, pairs) for pairs in groups))


def _can_be_joined(text: str, kind: Kind) -> bool:
    """Whether a token may come of its pieces; one that is found by its text cannot, unless spaces are in it."""
    return len(text) > 1 and (kind not in MATCHED_WHOLE or _SPACE in text)


def _ordered(file: GgufFile, pairs: Sequence[Pair]) -> Iterator[Pair]:
    """Order pairs of one score so that of two that share a piece of text the left one is joined.

    A pair must come before every pair that begins with what it ends with. Pairs that make repetitions of one text
    ("==", "====") go in a circle; of these the one with the longer left part stands further left, as pieces are
    joined from there.
    """
    import networkx as nx

    if not {second for _, second in pairs} & {first for first, _ in pairs}:
        yield from pairs
        return
    by_start: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_start.setdefault(pair[0], []).append(pair)
    graph = nx.DiGraph()
    if len(pairs) <= _MAX_EQUAL:
        graph.add_nodes_from(pairs)
        graph.add_edges_from((pair, other) for pair in pairs for other in by_start.get(pair[1], ()))
    condensed = nx.condensation(graph)
    circles = [condensed.nodes[each]["members"] for each in nx.topological_sort(condensed)]
    if len(pairs) > _MAX_EQUAL or any(len({_root(*pair) for pair in circle}) > 1 for circle in circles):
        raise LoadError(
            f"{file.path}: tokenizer.ggml.scores gives one score to tokens that overlap, so that their places in a "
            "text decide; such a vocabulary cannot be rebuilt exactly, give its Hugging Face folder instead"
        )
    for circle in circles:
        yield from sorted(circle, key=lambda pair: -len(pair[0]))


def _root(first: str, second: str) -> str:
    """The shortest text that, repeated, is both texts together."""
    text = first + second
    return text[: (text + text).index(text, 1)]
