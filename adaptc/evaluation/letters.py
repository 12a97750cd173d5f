"""Questions with lettered choices, as in MMLU, and the files that hold them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptc.errors import RequestError
from adaptc.evaluation.text import read_records, read_text

LETTERS = "ABCDEFGHIJ"

_ITEM = re.compile(r"Q: (?P<text>.*?)\n?\(A\) (?P<choices>.*?)\nA: .*?The answer is \((?P<answer>[A-J])\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Lettered:
    """A question and what may be answered.

    Attributes:
        text: The question.
        choices: 2 to 10 answers.
        answer: Index of the right one.
    """

    text: str
    choices: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> str:
        """What is read before the letter."""
        listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, self.choices, strict=False))
        return f"{self.text}\n{listed}Answer:"


def read_lettered(path: Path) -> list[Lettered]:
    """Questions of a JSONL file with `question`, `choices` and `answer`, an index; or of lm-eval's MMLU examples.

    The latter is JSON that maps subjects to texts, `tasks/mmlu/flan_cot_fewshot/_cot_prompts.json` of the package.

    Raises:
        RequestError: the file cannot be read, is of another form, or has no question.
    """
    if path.suffix == ".jsonl":
        found = [_lettered(f"{path}:{number}", record) for number, record in read_records(path)]
    else:
        try:
            content = json.loads(read_text(path))
        except ValueError as error:
            raise RequestError(f"{path}: not JSON: {error}") from error
        if not isinstance(content, dict):
            raise RequestError(f"{path}: no mapping; JSON from subjects to texts, or JSONL, is right")
        found = [each for text in content.values() for each in _examples(str(text))]
    if not found:
        raise RequestError(f"{path}: no questions; 'question', 'choices' and 'answer' on each line are right")
    return found


def _lettered(where: str, record: dict[str, Any]) -> Lettered:
    text, choices, answer = (record.get(key) for key in ("question", "choices", "answer"))
    listed = isinstance(choices, list) and 2 <= len(choices) <= len(LETTERS)
    if not isinstance(text, str) or not listed or not isinstance(answer, int) or not 0 <= answer < len(choices or ()):
        raise RequestError(f"{where}: a question, 2 to 10 choices and the index of the right one are needed")
    return Lettered(text, tuple(map(str, choices or ())), answer)


def _examples(text: str) -> list[Lettered]:
    """The examples of a subject; one whose choices are not all there is left out."""
    questions = []
    for match in _ITEM.finditer(text):
        choices = re.split(r"\s*\([B-J]\) ", match["choices"])
        answer = LETTERS.index(match["answer"])
        if 2 <= len(choices) <= len(LETTERS) and answer < len(choices):
            questions.append(Lettered(match["text"].strip(), tuple(choice.strip() for choice in choices), answer))
    return questions
