"""Instructions whose keeping a program can check, in the manner of IFEval (arXiv:2311.07911): small, and our own.

Each prompt asks for one form; an answer keeps it or does not. What it says is not judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

Check = Callable[[str], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """A prompt and what its answer must be.

    Attributes:
        prompt: Put as a message of the user.
        kept: Whether an answer, without spaces around it, keeps the instruction.
    """

    prompt: str
    kept: Check


def words(least: int, most: int) -> Check:
    """From `least` to `most` words."""
    return lambda text: least <= len(text.split()) <= most


def has(*parts: str) -> Check:
    """All of these are in it, whatever their case."""
    return lambda text: all(part.casefold() in text.casefold() for part in parts)


def lacks(*parts: str) -> Check:
    """None of these is in it, whatever their case; and it is not empty."""
    return lambda text: bool(text) and not any(part.casefold() in text.casefold() for part in parts)


def lines(pattern: str, count: int) -> Check:
    """So many of its lines match a pattern from their start."""
    return lambda text: sum(re.match(pattern, line) is not None for line in text.splitlines()) == count


def paragraphs(count: int, between: str) -> Check:
    """So many parts, none of them empty, with this between them."""
    return lambda text: len(parts := text.split(between)) == count and all(part.strip() for part in parts)


def one_of(*answers: str) -> Check:
    """It is one of these and nothing else, but for a full stop."""
    return lambda text: text.rstrip(".").casefold() in [answer.casefold() for answer in answers]


def json_with(*keys: str) -> Check:
    """A JSON object, in a code block or not, with exactly these keys."""

    def kept(text: str) -> bool:
        inside = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL)
        try:
            found = json.loads(inside[1] if inside else text)
        except ValueError:
            return False
        return isinstance(found, dict) and set(found) == set(keys)

    return kept


def all_of(*checks: Check) -> Check:
    """All of them hold."""
    return lambda text: all(check(text) for check in checks)


def quoted(text: str) -> bool:
    """In double quotation marks from its start to its end."""
    return len(text) > 2 and text[0] == text[-1] == '"'


def matches(pattern: str) -> Check:
    """All of it matches a pattern, whose dot matches line ends too."""
    return lambda text: re.fullmatch(pattern, text, re.DOTALL) is not None


BULLET, NUMBER = r"\s*[-*•] ", r"\s*\d+[.)] "

INSTRUCTIONS = (
    Instruction("Describe the sea in exactly three words.", words(3, 3)),
    Instruction("Name the color of snow. Answer with exactly one word.", words(1, 1)),
    Instruction("Explain what a compiler is in at most 20 words.", words(1, 20)),
    Instruction("Why is sleep important? Answer with at most 15 words.", words(1, 15)),
    Instruction("Write a story about a lighthouse with at least 100 words.", words(100, 10_000)),
    Instruction("Tell me about horses. Use at least 80 words.", words(80, 10_000)),
    Instruction("Say why reading is useful. Your entire answer must be in capital letters.", str.isupper),
    Instruction("WHAT IS THE CAPITAL OF ITALY? ANSWER IN ALL UPPERCASE LETTERS.", str.isupper),
    Instruction("Tell me about rain. Write only in lowercase letters, no capital letter anywhere.", str.islower),
    Instruction("Greet a friend. Use lowercase letters only.", str.islower),
    Instruction(
        'Give a JSON object with the keys "name" and "age" for a person. Output JSON only.', json_with("name", "age")
    ),
    Instruction(
        'Describe a book as JSON with exactly the keys "title" and "author", and nothing else.',
        json_with("title", "author"),
    ),
    Instruction('Output only a JSON object with the single key "answer" whose value is 2 + 2.', json_with("answer")),
    Instruction("List exactly 3 fruits as bullet points, each line beginning with '- '.", lines(BULLET, 3)),
    Instruction("Give 4 tips for better sleep as a bulleted list with exactly 4 bullets.", lines(BULLET, 4)),
    Instruction("List 5 animals as a numbered list from 1 to 5.", lines(NUMBER, 5)),
    Instruction("Give the steps to make tea as a numbered list with exactly 3 steps.", lines(NUMBER, 3)),
    Instruction(
        "Write two sentences about winter that contain the words 'river' and 'candle'.", has("river", "candle")
    ),
    Instruction("Write a sentence with the words 'piano', 'storm' and 'garden'.", has("piano", "storm", "garden")),
    Instruction("Describe a cat without using the word 'cat'.", lacks("cat")),
    Instruction("Describe the sun. Do not use the words 'sun' or 'star'.", lacks("sun", "star")),
    Instruction("Write a sentence about music without any comma.", lacks(",")),
    Instruction("Tell me about bread in three sentences, and use no commas.", lacks(",")),
    Instruction("Is water wet? Answer only with 'yes', 'no' or 'maybe'.", one_of("yes", "no", "maybe")),
    Instruction("Is 17 a prime number? Answer only 'true' or 'false'.", one_of("true", "false")),
    Instruction(
        "Describe a tree. Finish your answer with the exact phrase 'That is all.'", matches(r".*That is all\.")
    ),
    Instruction("Wish me luck. End with exactly: Good bye!", matches(r".*Good bye!")),
    Instruction("Explain gravity. Begin your answer with 'Dear reader,'.", matches(r"Dear reader,.+")),
    Instruction("Say something about Paris. Put your whole answer in double quotation marks.", quoted),
    Instruction(
        "Give a title for a poem about autumn, in double angular brackets, such as <<title>>.",
        matches(r".*<<[^<>]+>>.*"),
    ),
    Instruction("Write 2 paragraphs about trains, separated by a line with only ***.", paragraphs(2, "\n***\n")),
    Instruction(
        "Write a letter template with at least 3 placeholders in square brackets, such as [name].",
        lambda text: len(re.findall(r"\[[^\[\]]+\]", text)) >= 3,
    ),
)
"""What is asked, in order."""
