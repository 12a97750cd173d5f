"""What is asked for: kinds of tasks, each with ways to come by a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from adaptc.writing.topics import CODE_LANGUAGES, LANGUAGES, PROGRAMS, TOPICS

T = TypeVar("T")
SHORT, MIDDLE, LONG = 160, 448, 640
"""Most tokens of an answer."""

LACK = 50
"""Requests that are looked ahead: with more, kinds are drawn more evenly, with fewer their shares are met sooner."""


@dataclass(frozen=True, slots=True)
class RequestSeed:
    """One way to come by requests.

    Attributes:
        kind: Of the task.
        ask: What the model is asked, as a user's message, so that it writes requests, or a part of one; None where the
            request is `wrap` itself.
        wrap: The request; what was written goes to the place of {}.
        listed: Whether a numbered list was asked for, each entry of which is a request.
        most: Most tokens of an answer.
    """

    kind: str
    ask: str | None
    wrap: str = "{}"
    listed: bool = False
    most: int = MIDDLE


class Draws:
    """Draws from lists, by one generator of random numbers."""

    def __init__(self, random: np.random.Generator) -> None:
        """Draw by this generator."""
        self.random = random

    def of(self, among: tuple[T, ...] | list[T]) -> T:
        """Return one of them."""
        return among[int(self.random.integers(len(among)))]

    def some(self, among: tuple[T, ...], count: int) -> list[T]:
        """Return several, none of them twice."""
        return [among[int(at)] for at in self.random.choice(len(among), count, replace=False)]

    def number(self, least: int, most: int) -> int:
        """Return a whole number from `least` to `most`."""
        return int(self.random.integers(least, most + 1))

    def chance(self, share: float) -> bool:
        """Return True in so many of all cases."""
        return bool(self.random.random() < share)


def draw_seed(draws: Draws, asked: Mapping[str, int] = MappingProxyType({})) -> RequestSeed:
    """Draw one seed; kinds are drawn by what they lack of their shares.

    Args:
        draws: What is drawn by.
        asked: Requests so far, by kind: a seed of one kind gives a list of them, of another a single one.
    """
    shares = np.array([share for _, share in KINDS.values()])
    made = np.array([asked.get(name, 0) for name in KINDS])
    lacking = np.maximum(shares / shares.sum() * (made.sum() + LACK) - made, 1e-3)
    name = list(KINDS)[int(draws.random.choice(len(shares), p=lacking / lacking.sum()))]
    return KINDS[name][0](draws)


def _listed(kind: str, what: str, draws: Draws, wrap: str = "{}", most: int = MIDDLE) -> RequestSeed:
    count = draws.number(3, 6)
    ask = f"Write {count} different {what}. Write them as a numbered list, one on each line, and write nothing else."
    return RequestSeed(kind, ask, wrap, True, most)


_KEYS: tuple[str, ...] = (
    "name",
    "year",
    "place",
    "reason",
    "summary",
    "steps",
    "price",
    "colour",
    "size",
    "tags",
    "level",
    "source",
)
_WORDS: tuple[str, ...] = (
    "bright",
    "window",
    "never",
    "small",
    "morning",
    "because",
    "green",
    "water",
    "often",
    "road",
    "simple",
    "old",
)
_BEGINS: tuple[str, ...] = (
    "In short:",
    "Of course.",
    "Let us see.",
    "My answer:",
    "First of all,",
    "To whom it may concern:",
)
_ENDS: tuple[str, ...] = ("And that is it.", "I hope this helps!", "The end.", "Any questions?", "Over and out.")

FORMS: tuple[Callable[[Draws], str], ...] = (
    lambda d: f"Use exactly {d.number(4, 40)} words.",
    lambda d: f"Use at most {d.of((10, 12, 25, 30, 40, 60))} words.",
    lambda d: f"Answer with at least {d.of((60, 90, 120, 150))} words.",
    lambda d: f"Answer in exactly {d.of(('one sentence', 'two sentences', 'four sentences', 'five sentences'))}.",
    lambda _: "Write everything in capital letters.",
    lambda _: "Write everything in lower case.",
    lambda d: f"Give exactly {d.number(3, 8)} bullet points.",
    lambda d: f"Give a numbered list with exactly {d.number(3, 9)} entries.",
    lambda d: "Answer with a JSON object that has the keys {} and no others.".format(
        ", ".join(f'"{each}"' for each in d.some(_KEYS, d.number(2, 4)))
    ),
    lambda _: "Answer with a JSON list of strings and nothing else.",
    lambda d: "Use each of these words: {}.".format(", ".join(d.some(_WORDS, d.number(2, 3)))),
    lambda d: "Do not use the words {} and {}.".format(*d.some(_WORDS, 2)),
    lambda d: f"Do not use any {d.of(('commas', 'question marks', 'digits', 'exclamation marks'))}.",
    lambda d: f'Begin your answer with "{d.of(_BEGINS)}".',
    lambda d: f'End your answer with "{d.of(_ENDS)}".',
    lambda d: f"Write {d.number(2, 4)} paragraphs, and put {d.of(('---', '###', '* * *'))} between them.",
    lambda d: f"Answer in {d.of(LANGUAGES)}.",
    lambda _: "Write a table in Markdown.",
    lambda d: f"Put a title in {d.of(('square brackets', 'bold', 'capital letters'))} first.",
    lambda d: f'Use the word "{d.of(_WORDS)}" at least {d.number(2, 4)} times.',
    lambda _: "Put the whole answer in quotation marks.",
    lambda d: (
        f"Write in the style of {d.of(('a news report', 'a diary', 'a fairy tale', 'a user manual', 'a speech'))}."
    ),
)
"""Forms that an answer may be asked to keep; a program could check nearly all of them."""

_SUBJECTS = (
    "Describe {}.",
    "Explain something interesting about {}.",
    "Give advice to somebody who wants to know more about {}.",
    "Write a short text about {}.",
    "Why do people care about {}?",
    "Tell me about {}.",
    "What should a beginner know about {}?",
    "Write a story in which {} plays a part.",
)
_BRIEF = ("", "", "", " Be brief.", " Answer in a few sentences.", " Keep it short.", " In one paragraph, please.")


def _form(d: Draws) -> RequestSeed:
    forms = " ".join(each(d) for each in d.some(FORMS, d.of((1, 1, 1, 2))))
    if d.chance(0.4):
        what = f"short requests to a writing assistant about {d.of(TOPICS)}, each of one sentence"
        return _listed("form", what, d, "{} " + forms)
    return RequestSeed("form", None, f"{d.of(_SUBJECTS).format(d.of(TOPICS))} {forms}")


def _fact(d: Draws) -> RequestSeed:
    of = d.of(
        (
            f"short factual questions about {d.of(TOPICS)} that have one short answer",
            f"quiz questions about the geography of {d.of(_REGIONS)}",
            f"quiz questions on chemical elements and their properties, for {d.of(_LEVELS)}",
            f"quiz questions on when things happened in the history of {d.of(TOPICS)}",
            f"quiz questions on who invented, wrote or discovered something to do with {d.of(TOPICS)}",
            f"short questions on numbers and units to do with {d.of(TOPICS)}",
        )
    )
    return _listed("fact", of, d, d.of(("{}", "{}", "{} Answer with a word or two.", "Question: {}\nAnswer:")), SHORT)


_REGIONS = (
    "Europe",
    "Africa",
    "Asia",
    "South America",
    "North America",
    "Oceania",
    "your favourite country",
    "the sea",
)
_LEVELS = ("pupils", "students", "experts", "a pub quiz", "a textbook")


def _explanation(d: Draws) -> RequestSeed:
    what = f"questions about {d.of(TOPICS)} whose answers need an explanation, for {d.of(_LEVELS)}"
    return _listed("explanation", what, d, "{}" + d.of(_BRIEF), LONG)


def _rewriting(d: Draws) -> RequestSeed:
    kind = d.of(
        ("a paragraph", "a news item", "a product review", "a short story", "a note full of mistakes", "a speech")
    )
    wrap = d.of(
        (
            "Summarize this text in one sentence:\n\n{}",
            "{}\n\nSummarize the text above in at most 30 words.",
            "Rewrite the following text in simpler words.\n\n{}",
            "Correct the spelling and the grammar of this text:\n\n{}",
            "Rewrite the following in a formal tone:\n\n{}",
            "Give a title to this text:\n\n{}",
            "List the names and numbers that this text mentions, as JSON:\n\n{}",
            "Text: {}\n\nIs the text positive, negative or neutral? Answer with one word.",
            "What are the three main points of the following text?\n\n{}",
        )
    )
    return RequestSeed("rewriting", f"Write {kind} of {d.number(40, 120)} words about {d.of(TOPICS)}.", wrap)


def _arithmetic(d: Draws) -> RequestSeed:
    wrap = d.of(
        (
            "{}",
            "{} Think step by step.",
            "{}\n\nSolve it step by step, and write the result on the last line as: Result: NUMBER",
            "Problem: {}\nShow your work.",
        )
    )
    if d.chance(0.2):
        a, b, c = (d.number(2, 999) for _ in range(3))
        form = d.of((f"{a} + {b} * {c}", f"{a} * {b} - {c}", f"({a} + {b}) * {c % 12 + 2}", f"{a * c} / {c} + {b}"))
        return RequestSeed(
            "arithmetic", None, f"What is {form}?" + d.of(("", " Think step by step.", " Just the number."))
        )
    what = f"word problems about {d.of(TOPICS)} that take {d.number(2, 4)} steps of arithmetic"
    return _listed("arithmetic", what, d, wrap)


def _code(d: Draws) -> RequestSeed:
    language, about = d.of(CODE_LANGUAGES), d.of(PROGRAMS)
    if d.chance(0.5):
        ask = (
            f"Write the signature of one {language} function to do with {about}, with a documentation comment that "
            "says what it does and gives two examples. Leave out its body. Write code only."
        )
        wrap = d.of(
            (
                "Complete this function:\n\n{}",
                "Write the body of the following function. Answer with the whole function in one code block.\n\n{}",
                "{}",
                f"Implement this in {language} and explain it in a sentence:\n\n{{}}",
            )
        )
        return RequestSeed("code", ask, wrap, False, LONG)
    if d.chance(0.5):
        what = f"programming exercises in {language} on {about}, each of one or two sentences"
        return _listed("code", what, d, d.of(("{}", "{} Answer with code only.", "{} Add a short test.")), LONG)
    task = d.of(("Write a {} function for {}.", "Show {1} in {0}.", "How is {1} done in {0}? Give code."))
    return RequestSeed("code", None, task.format(language, about), False, LONG)


def _code_question(d: Draws) -> RequestSeed:
    language, about = d.of(CODE_LANGUAGES), d.of(PROGRAMS)
    if d.chance(0.5):
        ask = (
            f"Write a short piece of {language} code on {about}{d.of(('', ', with a mistake in it'))}. Write code only."
        )
        wrap = d.of(
            (
                "What does this code do?\n\n{}",
                "Find the mistake in this code, if there is one:\n\n{}",
                "{}\n\nRewrite this code so that it is easier to read.",
                "Write tests for this code:\n\n{}",
            )
        )
        return RequestSeed("code question", ask, wrap, False, LONG)
    return _listed("code question", f"questions that a programmer may have on {about} in {language}", d, most=LONG)


def _letter(d: Draws) -> RequestSeed:
    kinds = ("emails", "letters", "short messages", "invitations", "complaints", "thank-you notes", "announcements")
    what = f"requests to write {d.of(kinds)} to do with {d.of(TOPICS)}, each with the names and facts that it needs"
    return _listed("letter", what, d, "{}" + d.of(_BRIEF))


def _choice(d: Draws) -> RequestSeed:
    ask = (
        f"Write one multiple choice question about {d.of(TOPICS)}, for {d.of(_LEVELS)}, with four options on lines "
        "that begin with A., B., C. and D. Do not say which one is right."
    )
    wrap = d.of(
        (
            "{}",
            "{}\n\nAnswer with the letter only.",
            "{}\nAnswer:",
            "{}\n\nWhich one is right, and why?",
            "Choose the right option, and write its letter first.\n\n{}",
        )
    )
    return RequestSeed("choice", ask, wrap, False, SHORT)


def _translation(d: Draws) -> RequestSeed:
    into, source = d.some(LANGUAGES, 2)
    source = d.of(("English", "English", source))
    into = d.of((into, into, "English")) if source != "English" else into
    wrap = d.of((f"Translate into {into}:\n\n{{}}", f"How do you say this in {into}?\n{{}}", f"{into}, please: {{}}"))
    length = d.of(("one sentence", "two sentences", "a short dialogue", "a short paragraph"))
    return RequestSeed("translation", f"Write {length} in {source} about {d.of(TOPICS)}. Write nothing else.", wrap)


def _foreign(d: Draws) -> RequestSeed:
    language = d.of(LANGUAGES)
    what = d.of(
        ("questions", "everyday requests to an assistant", "questions with short answers", "small writing tasks")
    )
    return _listed("language", f"{what} in {language} about {d.of(TOPICS)}, written in {language}", d)


def _open(d: Draws) -> RequestSeed:
    what = d.of(
        (
            f"things that somebody might ask an assistant about {d.of(TOPICS)}",
            f"creative writing tasks about {d.of(TOPICS)}: poems, stories, dialogues, slogans",
            f"requests to compare or to weigh two things to do with {d.of(TOPICS)}",
            f"requests for plans, recipes, lists or advice about {d.of(TOPICS)}",
            f"logical puzzles and riddles to do with {d.of(TOPICS)}",
        )
    )
    return _listed("open", what, d, "{}" + d.of(_BRIEF), LONG)


KINDS: dict[str, tuple[Callable[[Draws], RequestSeed], float]] = {
    "form": (_form, 18),
    "fact": (_fact, 12),
    "explanation": (_explanation, 9),
    "rewriting": (_rewriting, 8),
    "arithmetic": (_arithmetic, 10),
    "code": (_code, 14),
    "code question": (_code_question, 5),
    "letter": (_letter, 5),
    "choice": (_choice, 8),
    "translation": (_translation, 4),
    "language": (_foreign, 5),
    "open": (_open, 10),
}
"""Kinds of tasks, each with what draws a seed and its share."""
