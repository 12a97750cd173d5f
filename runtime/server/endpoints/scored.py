"""Tokens with their log-probabilities as `/v1/completions` shows them: of a prompt, and of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptc.runtime.server.endpoints.writing import LEAST_LOGPROB, token_text
from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.server.serving.models import TextModel
from adaptc.runtime.text.logprobs import TokenLogprob


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """Some tokens in a row.

    Attributes:
        tokens: Their texts.
        logprobs: Of each; None for the first of a prompt, which nothing is before.
        tops: The most likely tokens in each place.
    """

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    tops: tuple[dict[str, float] | None, ...]

    @classmethod
    def of(cls, model: TextModel, tokens: Sequence[TokenLogprob]) -> TokenTexts:
        """Tokens that were written."""
        tokenizer = model.session.tokenizer
        return cls(
            tuple(token_text(tokenizer, each.token) for each in tokens),
            tuple(max(each.logprob, LEAST_LOGPROB) for each in tokens),
            tuple(
                {
                    token_text(tokenizer, one): max(value, LEAST_LOGPROB)
                    for one, value in (*each.top, (each.token, each.logprob))
                }
                for each in tokens
            ),
        )

    def __add__(self, other: TokenTexts) -> TokenTexts:
        """One after the other."""
        return TokenTexts(self.tokens + other.tokens, self.logprobs + other.logprobs, self.tops + other.tops)

    @property
    def length(self) -> int:
        """Characters of all texts."""
        return sum(map(len, self.tokens))

    def body(self, offset: int) -> dict[str, Any]:
        """As the API has it; the first text begins at `offset`."""
        offsets = []
        for token in self.tokens:
            offsets.append(offset)
            offset += len(token)
        return {
            "tokens": list(self.tokens),
            "token_logprobs": list(self.logprobs),
            "top_logprobs": list(self.tops),
            "text_offset": offsets,
        }


def prompt_scores(
    model: TextModel,
    prompt: Sequence[int],
    top: int,
    *,
    budget: float | None,
    route: str | None,
    adapter: str | None = None,
) -> TokenTexts:
    """How probable the tokens of a prompt are, each after those before it.

    Args:
        model: Reads it.
        prompt: Its ids.
        top: The number of likely tokens to show beside each: 0, or 1.
        budget: Of the request.
        route: Of the request.
        adapter: Of the request.

    Raises:
        ApiError: more likely tokens are asked for.
        AdaptcError: the prompt is not valid, or the engine failed.
    """
    if top > 1:
        raise ApiError(400, f"logprobs: {top}; with echo at most 1 is right", param="logprobs")
    scores = model.session.score(list(prompt), budget=budget, route=route, adapter=adapter)
    tokenizer = model.session.tokenizer
    tokens = tuple(token_text(tokenizer, each) for each in prompt)
    values = [max(float(each), LEAST_LOGPROB) for each in scores.values]
    tops: list[dict[str, float]] = []
    for place, (token, best) in enumerate(zip(scores.best_ids, scores.best, strict=True)):
        likely = {token_text(tokenizer, int(token)): float(best)} if top else {}
        tops.append({**likely, tokens[place + 1]: values[place]})
    return TokenTexts(tokens, (None, *values)[: len(tokens)], (None, *tops)[: len(tokens)])
