"""A table of quality: what a bundle can do, by each of its routes, side by side with its cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from adaptc.errors import RequestError
from adaptc.evaluation.answers import has_chat
from adaptc.evaluation.instructions import INSTRUCTIONS, Instruction
from adaptc.evaluation.letters import Lettered, likeliest
from adaptc.evaluation.perplexity import WINDOW, bundle_perplexity
from adaptc.evaluation.questions import ANSWER_TOKENS, Question, asked_after_examples, is_right
from adaptc.evaluation.routes import has_router, route_bytes, routes_of
from adaptc.evaluation.text import Ids
from adaptc.runtime import Session
from adaptc.runtime.backends.backend import DecoderOptions
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.loading import load_decoder, tokenizer_of
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.progress import SILENT, Progress, counted
from adaptc.runtime.text.templates import Message
from adaptc.runtime.text.tokenizer import Tokenizer

T = TypeVar("T")

INSTRUCTION_TOKENS = 256
"""Most tokens of an answer to an instruction."""


@dataclass(frozen=True, slots=True, eq=False)
class Tasks:
    """What is measured; what is empty is left out.

    Attributes:
        ids: A text as token ids, for perplexity.
        window: Tokens of it that are seen at once.
        lettered: Questions with lettered choices, put without examples.
        questions: Questions with known answers, the first four of them examples.
        instructions: Instructions that a program can check, put as messages.
    """

    ids: Ids | None = None
    window: int = WINDOW
    lettered: Sequence[Lettered] = ()
    questions: Sequence[Question] = ()
    instructions: Sequence[Instruction] = INSTRUCTIONS


def quality(
    bundle: Bundle,
    tasks: Tasks,
    routes: Sequence[str] = (),
    threads: int | None = None,
    progress: Progress = SILENT,
) -> dict[str, dict[str, Any]]:
    """Measure a bundle, greedily, one question at a time.

    Args:
        bundle: An opened bundle with a tokenizer.
        tasks: What is asked.
        routes: Routes of a stitched bundle; by default all, and what its router picks.
        threads: Threads of the engine.
        progress: Told of stages and steps.

    Returns:
        By route, "router" for the router's choices and "" for a bundle without routes: `bytes_per_token`, of the router
        left out; `perplexity` with `tokens`; and of each other task the share that is right and how many were asked,
        `letters` and `letters_asked`, `trivia` and `trivia_asked`, `instructions` and `instructions_asked`.

    Raises:
        RequestError: there is no such route, no tokenizer, or instructions are put to a model without a chat template.
    """
    chosen = routes_of(bundle, routes)
    measured_routes: list[str | None] = [*chosen] or [None]
    if chosen and not routes and has_router(bundle):
        measured_routes.append(None)
    tokenizer = tokenizer_of(bundle)
    if tokenizer is None:
        raise RequestError(f"{bundle.path}: no tokenizer; nothing can be asked")
    if tasks.instructions and not has_chat(bundle):
        raise RequestError(
            f"{bundle.path}: no chat template, so instructions cannot be put; --no-instructions leaves them out"
        )
    _check_instructions_fit(bundle, tokenizer, tasks.instructions)
    costs = route_bytes(bundle)
    results: dict[str, dict[str, Any]] = {}
    for named_route in measured_routes:
        name = named_route or ("router" if chosen else "")
        cost = costs.get(named_route or "") if chosen else bundle.manifest.bytes_per_token
        results[name] = {"bytes_per_token": cost} if cost is not None else {}
        of = f"{name}: " if name else ""
        if tasks.ids is not None:
            progress.stage(f"{of}perplexity")
            options: dict[str, Any] = {"route": named_route, "threads": threads, "progress": progress}
            measured = bundle_perplexity(bundle, tasks.ids, tasks.window, **options)
            results[name] |= {"perplexity": measured.perplexity, "tokens": measured.tokens}
        results[name] |= _answered(bundle, tasks, named_route, threads, progress, of)
    return results


def _check_instructions_fit(bundle: Bundle, tokenizer: Tokenizer, instructions: Sequence[Instruction]) -> None:
    """Refuse a bundle that cannot hold the instructions' prompts and a token of their answers.

    Raises:
        RequestError: it is such a bundle.
    """
    decoder = bundle.manifest.graphs[bundle.manifest.reader].decoder
    if decoder is None or not instructions:
        return
    texts = (tokenizer.render([{"role": "user", "content": each.prompt}]) for each in instructions)
    longest = max(tokenizer.count(text, special=False) for text in texts)
    if longest >= decoder.max_tokens:
        raise RequestError(
            f"{bundle.path}: holds {decoder.max_tokens} tokens, and an instruction has {longest}; "
            "--no-instructions leaves them out"
        )


def _answered(
    bundle: Bundle, tasks: Tasks, route: str | None, threads: int | None, progress: Progress, of: str
) -> dict[str, float | int]:
    """Shares of right answers by one route, and how many were asked."""
    tokenizer = tokenizer_of(bundle)
    assert tokenizer is not None
    decoder = load_decoder(bundle, DecoderOptions(threads=threads))
    right: dict[str, list[bool]] = {}
    with Session(decoder, tokenizer) as session:
        right["letters"] = [
            likeliest(decoder, tokenizer, each, RequestOptions(route=route)) == each.answer
            for each in _asked(tasks.lettered, progress, f"{of}letters")
        ]
        right["trivia"] = []
        for prompt, question in _asked(asked_after_examples(tasks.questions), progress, f"{of}questions"):
            said = session.generate(prompt, max_new_tokens=ANSWER_TOKENS, route=route).text
            right["trivia"].append(is_right(said, question.answers))
        right["instructions"] = []
        for instruction in _asked(tasks.instructions, progress, f"{of}instructions"):
            message: list[Message] = [{"role": "user", "content": instruction.prompt}]
            said = session.chat(message, max_new_tokens=INSTRUCTION_TOKENS, route=route).text
            right["instructions"].append(instruction.kept(said.strip()))
    shares: dict[str, float | int] = {}
    for name, each in right.items():
        if each:
            shares |= {name: sum(each) / len(each), f"{name}_asked": len(each)}
    return shares


def _asked(tasks: Sequence[T], progress: Progress, stage: str) -> Iterator[T]:
    """Each task, told as a step of a stage; no stage if there is none."""
    if tasks:
        progress.stage(stage)
        yield from counted(tasks, progress)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures in Markdown, a row for each route; shares with one standard error of their count."""
    columns = [
        name for name in ("perplexity", "letters", "trivia", "instructions") if any(name in r for r in results.values())
    ]
    most = max((row.get("bytes_per_token") or 0 for row in results.values()), default=0)
    lines = [f"| route | bytes a token | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 2)}"]
    for route, row in results.items():
        cost = row.get("bytes_per_token")
        cells = [f"{cost / 1e6:.0f} MB, {cost / most:.1%}" if cost else ""]
        for column in columns:
            value, asked = row.get(column), row.get(f"{column}_asked")
            if value is None:
                cells.append("")
            elif asked is None:
                cells.append(f"{value:.3f}")
            else:
                cells.append(f"{value:.1%} ± {(value * (1 - value) / asked) ** 0.5:.1%}")
        lines.append(f"| {route} | {' | '.join(cells)} |")
    return "\n".join(lines)
