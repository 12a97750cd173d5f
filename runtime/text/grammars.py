"""Answers that follow a grammar: JSON, a JSON schema, a choice, a regular expression, or a grammar in Lark's notation.

llguidance (optional) computes which tokens may come next; everything else is never chosen.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from adaptc.runtime.errors import EngineError, RequestError
from adaptc.runtime.text.sampling import Logits
from adaptc.runtime.validation import shown

if TYPE_CHECKING:
    import llguidance

KINDS = ("json", "choice", "regex", "grammar")
JSON_FORM = MappingProxyType({"whitespace_pattern": r"[ \n\t]{0,24}", "coerce_one_of": True})
"""llguidance's options for JSON: some models would write white space for ever if they might."""


class Grammars:
    """Makes rules that keep to a grammar, for one tokenizer."""

    def __init__(self, tokenizer: bytes, vocab: int, ends: Sequence[int]) -> None:
        """Read nothing yet.

        Args:
            tokenizer: The content of tokenizer.json; empty if the bundle has none.
            vocab: Width of the logits.
            ends: The model's end tokens.
        """
        self._content, self._vocab, self._ends = tokenizer, vocab, list(ends)
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()

    def rule(self, kind: str, text: str) -> GrammarRule:
        """A `TokenRule` of one sequence.

        Args:
            kind: One of `KINDS`.
            text: A JSON schema, a JSON list of texts, a regular expression, or a grammar in Lark's notation.

        Raises:
            RequestError: the grammar is wrong, or the model has no tokenizer.
            EngineError: llguidance is not installed.
        """
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise RequestError(
                "grammar: llguidance is not installed here; pip install llguidance installs it"
            ) from error
        tokenizer = self._known()
        if kind == "json":
            grammar = LLMatcher.grammar_from_json_schema(_json(text), defaults=cast("Any", dict(JSON_FORM)))
        elif kind == "regex":
            grammar = LLMatcher.grammar_from_regex(text)
        elif kind == "choice":
            grammar = "start: " + " | ".join(json.dumps(each) for each in json.loads(text))
        else:
            grammar = text
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise RequestError(f"grammar: {shown(' '.join(matcher.get_error().split()))}; a valid {kind} is needed")
        return GrammarRule(matcher)

    def _known(self) -> llguidance.LLTokenizer:
        """Llguidance's own form of the tokenizer, made once: it takes about half a second."""
        from llguidance import LLTokenizer

        with self._lock:
            if self._tokenizer is None:
                if not self._content:
                    raise RequestError("grammar: this bundle has no tokenizer, so that tokens have no text")
                if not self._ends:
                    raise RequestError("grammar: this model has no end token, so that no answer could end")
                try:
                    self._tokenizer = LLTokenizer(self._content.decode(), n_vocab=self._vocab, eos_token=self._ends)
                except Exception as error:  # it raises what its parser of the tokenizer says, as several types
                    raise EngineError(f"llguidance: cannot read the tokenizer: {shown(str(error))}") from error
            return self._tokenizer


class GrammarRule:
    """A `TokenRule`: only tokens that the grammar admits are chosen."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        """Begin with nothing written; made by `Grammars`."""
        self._matcher = matcher

    def before(self, logits: Logits) -> None:
        """See `TokenRule.before`."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        self._check()
        admitted = np.zeros(len(logits), np.bool_)
        size = min(len(bits), len(logits))
        admitted[:size] = bits[:size]
        if not admitted.any():
            raise RequestError("grammar: no token of this model can follow it here; another grammar is needed")
        logits[~admitted] = -np.inf

    def after(self, token: int) -> None:
        """See `TokenRule.after`."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(
                f"grammar: {shown(' '.join(self._matcher.get_error().split()))}; a simpler one is needed"
            )


def _json(text: str) -> str:
    """A JSON schema that is JSON: the library takes text as it is."""
    try:
        return json.dumps(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"grammar: not JSON: {shown(str(error))}; a JSON schema is needed") from error
