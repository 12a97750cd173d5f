"""Questions with known answers: reading them, putting them after examples, and judging what is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adaptc.errors import RequestError
from adaptc.evaluation.text import read_records, read_text

SHOTS = 4
"""Questions with their answers before each question that is asked."""

ANSWER_TOKENS = 12
"""Tokens in which an answer must come."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question and every answer that is right."""

    text: str
    answers: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """Questions with answers: JSONL with `question` and `answers`, or YAML that maps questions to lists of answers.

    Raises:
        RequestError: it cannot be read, is of another form, or has too few questions.
    """
    if path.suffix == ".jsonl":
        found = [_question(f"{path}:{number}", r.get("question"), r.get("answers")) for number, r in read_records(path)]
    else:
        try:
            # BaseLoader, or the symbol of nobelium would be the truth value "no".
            content = yaml.load(read_text(path), yaml.BaseLoader)
        except yaml.YAMLError as error:
            raise RequestError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error
        if not isinstance(content, dict):
            raise RequestError(f"{path}: no mapping; questions with lists of answers are right")
        found = [_question(str(path), key, value) for key, value in content.items() if isinstance(value, list)]
    if len(found) <= SHOTS:
        raise RequestError(f"{path}: {len(found)} questions; more than {SHOTS} are needed, which are the examples")
    return found


def _question(where: str, text: Any, answers: Any) -> Question:
    if not isinstance(text, str) or not isinstance(answers, list) or not answers:
        raise RequestError(f"{where}: {text!r}: a question with a list of answers is right")
    return Question(text, tuple(map(str, answers)))


def asked_after_examples(questions: Sequence[Question]) -> list[tuple[str, Question]]:
    """The questions after the first four, each with its prompt: those four with their answers, then itself."""
    examples = "".join(f"Question: {q.text}\nAnswer: {q.answers[0]}\n\n" for q in questions[:SHOTS])
    return [(f"{examples}Question: {q.text}\nAnswer:", q) for q in questions[SHOTS:]]


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether the first line of a text begins with one of the answers, case and leading articles aside."""
    lines = text.strip().splitlines() or [""]
    answer_line = f"{_plain(lines[0])} "
    return any(answer_line.startswith(f"{_plain(answer)} ") for answer in answers)


def _plain(text: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return " ".join(words[1:] if words[:1] in (["the"], ["a"], ["an"]) and len(words) > 1 else words)
