"""Tasks of lm-evaluation-harness, asked of a bundle by route and under budgets."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import lm_eval
from lm_eval.tasks import TaskManager

from adaptc.errors import RequestError
from adaptc.evaluation.answers import has_chat
from adaptc.evaluation.figures import Figure, figure_of
from adaptc.evaluation.harness.model import BundleLM
from adaptc.runtime.progress import SILENT, Progress

T = TypeVar("T")

TASKS = Path(__file__).with_name("tasks")
"""Definitions of our tasks; `--include_path` of lm-evaluation-harness takes the folder."""

OURS = tuple(sorted(path.stem for path in TASKS.glob("[a-z]*.yaml")))
"""Names of tasks that need no download."""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What is asked.

    Attributes:
        tasks: Names of ours, or of lm-evaluation-harness's, which may download their data.
        limit: Only so many documents of each, from the first; None for all.
        files: By name of a task, a file that its documents are read from.
        chat: Whether prompts go through the model's chat template; None for what each of our tasks says, of a model
            that has one.
        run_code: Whether code that the model writes may be run.
    """

    tasks: Sequence[str]
    limit: int | None = None
    files: Mapping[str, Path] | None = None
    chat: bool | None = None
    run_code: bool = False


def measure(model: BundleLM, asked: TaskOptions, progress: Progress = SILENT) -> dict[str, Figure]:
    """Ask a model's tasks; the first metric of each, of its first filter.

    Args:
        model: By one route, under one budget.
        asked: What is asked.
        progress: Told of stages; the model tells its own of steps.

    Raises:
        RequestError: there is no such task, it needs code to be run, or a chat template where there is none.
    """
    manager = _manager(asked)
    figures: dict[str, Figure] = {}
    for task in asked.tasks:
        progress.stage(" ".join(filter(None, (model.route, _of_budget(model.budget), task))))
        figures[task] = _measured(model, task, manager, asked)
    return figures


def _of_budget(budget: float | None) -> str:
    return "" if budget is None else f"budget {budget:g}"


def _manager(asked: TaskOptions) -> TaskManager:
    """What finds tasks; lm-evaluation-harness's own thousands are looked through only if one of them is asked."""
    # The library has a handler of its own, and warns of what is meant here.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    files = {name: str(path) for name, path in (asked.files or {}).items()}
    foreign = any(name not in OURS for name in asked.tasks)
    manager = TaskManager(include_path=str(TASKS), include_defaults=foreign, metadata={"files": files})
    for name in asked.tasks:
        if name not in manager.all_tasks:
            raise RequestError(
                f"tasks: no task {name!r}; there are: {', '.join(OURS)}, and lm-evaluation-harness's own"
            )
    for name in files:
        if name not in asked.tasks:
            raise RequestError(f"file: {name!r} is none of the tasks that are asked")
    return manager


def _measured(model: BundleLM, task: str, manager: TaskManager, asked: TaskOptions) -> Figure:
    loaded = manager.load([task])
    configs = {name: each.dump_config() for name, each in loaded["tasks"].items()}
    if any(config.get("unsafe_code") for config in configs.values()) and not asked.run_code:
        raise RequestError(f"{task}: runs code that the model writes; --allow-code-execution is needed")
    wants_chat = all((config.get("metadata") or {}).get("chat", task not in OURS) for config in configs.values())
    chat = wants_chat and has_chat(model.bundle) if asked.chat is None else asked.chat
    if chat and not has_chat(model.bundle):
        raise RequestError(f"{model.bundle.path}: no chat template; --no-chat asks without one")
    # We have a progress of our own, and where a user works is no business of a record.
    with mock.patch("lm_eval.api.task.tqdm", _no_bar), mock.patch("lm_eval.evaluator.get_git_commit_hash"):
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=manager,
            limit=asked.limit,
            apply_chat_template=chat,
            bootstrap_iters=1000,
            confirm_run_unsafe_code=asked.run_code,
        )
    return _figure(task, found)


def _no_bar(items: Iterable[T], **_: Any) -> Iterable[T]:
    return items


def _figure(task: str, found: Mapping[str, Any]) -> Figure:
    """The first metric of a task's results."""
    results = found["results"][task]
    names = [name for name in results if "," in name and not name.partition(",")[0].endswith("_stderr")]
    metric, _, filtered = names[0].partition(",")
    error = results.get(f"{metric}_stderr,{filtered}")
    samples = [each for each in found["samples"].get(task, ()) if each["filter"] == filtered]
    values = [float(each[metric]) for each in samples if isinstance(each.get(metric), (int, float))]
    return figure_of(metric, float(results[names[0]]), error if isinstance(error, float) else None, values)
