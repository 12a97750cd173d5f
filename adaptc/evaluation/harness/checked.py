"""Prompts in the manner of IFEval (arXiv:2311.07911), judged by its own checkers as lm-evaluation-harness brings them.

IFEval's prompts are a data set on a hub; these are written by a program: a request for a text about a topic, and one or
two of IFEval's instructions in IFEval's words. Instructions about sentences and words in capitals are left out: their
checkers need a tokenizer of NLTK's that is downloaded. Those about languages are, too.
"""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

PROMPTS = 120

_REQUESTS = (
    "Describe {} in a few sentences.",
    "Explain {} to a child, briefly.",
    "Write a short note to a friend about {}.",
    "Give short advice to somebody who is new to {}.",
    "Write a very short story about {}.",
    "Say in a few sentences why {} matters.",
    "Write a short product review about {}.",
)
_TOPICS = (
    *(
        "gardening",
        "the sea",
        "riding a bicycle",
        "a small library",
        "baking bread",
        "the night sky",
        "learning to swim",
    ),
    *(
        "an old lighthouse",
        "a chess club",
        "growing tomatoes",
        "train journeys",
        "winter in the mountains",
        "a lost key",
    ),
    *("recycling", "a street market", "sleep", "keeping bees", "playing the piano", "maps", "a rainy afternoon"),
)
_WORDS = (
    "river",
    "candle",
    "window",
    "summer",
    "friend",
    "morning",
    "paper",
    "garden",
    "music",
    "light",
    "travel",
    "tea",
)

Draw = Callable[[random.Random], dict[str, Any]]

_DRAWS: dict[str, Draw] = {
    "keywords:existence": lambda rng: {"keywords": sorted(rng.sample(_WORDS, 2))},
    "keywords:frequency": lambda rng: {
        "keyword": rng.choice(_WORDS),
        "frequency": rng.randint(1, 3),
        "relation": "at least",
    },
    "keywords:forbidden_words": lambda rng: {"forbidden_words": sorted(rng.sample(_WORDS, 3))},
    "keywords:letter_frequency": lambda rng: {
        "letter": rng.choice("abdgmpw"),
        "let_frequency": rng.randint(4, 8),
        "let_relation": "at least",
    },
    "length_constraints:number_paragraphs": lambda rng: {"num_paragraphs": rng.randint(2, 3)},
    "length_constraints:number_words": lambda rng: rng.choice(
        [{"num_words": n, "relation": "less than"} for n in (30, 40, 60)]
        + [{"num_words": n, "relation": "at least"} for n in (30, 50, 80)]
    ),
    "detectable_content:number_placeholders": lambda rng: {"num_placeholders": rng.randint(1, 3)},
    "detectable_content:postscript": lambda rng: {"postscript_marker": rng.choice(("P.S.", "P.P.S"))},
    "detectable_format:number_bullet_lists": lambda rng: {"num_bullets": rng.randint(2, 5)},
    "detectable_format:constrained_response": lambda _rng: {},
    "detectable_format:number_highlighted_sections": lambda rng: {"num_highlights": rng.randint(1, 3)},
    "detectable_format:multiple_sections": lambda rng: {
        "section_spliter": rng.choice(("Section", "SECTION")),
        "num_sections": rng.randint(2, 3),
    },
    "detectable_format:json_format": lambda _rng: {},
    "detectable_format:title": lambda _rng: {},
    "startend:end_checker": lambda rng: {
        "end_phrase": rng.choice(("That is all.", "Any other questions?", "Good luck!"))
    },
    "startend:quotation": lambda _rng: {},
    "change_case:english_capital": lambda _rng: {},
    "change_case:english_lowercase": lambda _rng: {},
    "punctuation:no_comma": lambda _rng: {},
}
"""How the values of an instruction are drawn, by IFEval's name of it."""

_ALONE = ("detectable_format:constrained_response", "detectable_format:json_format")
"""Instructions that others would contradict."""

_WHOLE = (
    *("startend:quotation", "change_case:english_capital", "change_case:english_lowercase"),
    *("startend:end_checker", "detectable_content:postscript", "detectable_format:multiple_sections"),
    *("length_constraints:number_paragraphs", "detectable_format:title"),
)
"""Instructions about a whole text's form or its ends, of which a prompt has one at most."""


def checkers() -> Any:
    """lm-evaluation-harness's module of IFEval's judgement, which judges the same text always in the same way."""
    # Importing it downloads a tokenizer of NLTK's that no instruction here needs, and prints so.
    with mock.patch("nltk.download"), contextlib.redirect_stdout(io.StringIO()):
        import langdetect
        from lm_eval.tasks.ifeval import utils

    langdetect.DetectorFactory.seed = 0  # it draws numbers, and short texts are now English and now not
    return utils


def requests() -> list[str]:
    """Everything that a prompt may ask for, without its instructions: what no training text may hold."""
    return [asked.format(topic) for asked in _REQUESTS for topic in _TOPICS]


def checked_prompts(seed: int, count: int = PROMPTS) -> list[dict[str, Any]]:
    """Prompts with what judges them, as rows of IFEval's data set: `key`, `prompt`, `instruction_id_list`, `kwargs`.

    Every instruction comes once before any comes again; every fourth prompt has a second one that does not contradict
    it.

    Args:
        seed: Decides every draw.
        count: How many.
    """
    known = checkers().instructions_registry.INSTRUCTION_DICT
    rng = random.Random(seed)
    rows, order = list[dict[str, Any]](), list[str]()
    while len(rows) < count:
        order = order or rng.sample(sorted(_DRAWS), len(_DRAWS))
        names = [order.pop()]
        if len(rows) % 4 == 3 and names[0] not in _ALONE:
            barred = {*_ALONE, names[0], *(_WHOLE if names[0] in _WHOLE else ())}
            kind = names[0].partition(":")[0]
            others = [each for each in sorted(_DRAWS) if each not in barred and each.partition(":")[0] != kind]
            names.append(rng.choice(others))
        values = [_DRAWS[name](rng) for name in names]
        told = [known[name](name).build_description(**value) for name, value in zip(names, values, strict=True)]
        prompt = " ".join((_asked(rng, names[0]), *told))
        while any(row["prompt"] == prompt for row in rows):
            prompt = " ".join((_asked(rng, names[0]), *told))
        rows.append({"key": len(rows), "prompt": prompt, "instruction_id_list": names, "kwargs": values})
    return rows


def _asked(rng: random.Random, name: str) -> str:
    """What a text is asked for, beside an instruction of this name."""
    asked = rng.choice(_REQUESTS).format(rng.choice(_TOPICS))
    if name == "detectable_format:constrained_response":
        return f"Is {rng.choice(_TOPICS)} something that most people like?"
    return asked
