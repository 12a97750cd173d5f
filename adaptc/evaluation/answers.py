"""What a budget does to answers: whether long ones collapse into repetition, and whether short ones stay right.

Each is asked of the dense model and under a budget, side by side, greedily, one prompt at a time: in a batch a block
runs if any row wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptc.errors import RequestError
from adaptc.evaluation.questions import ANSWER_TOKENS, Question, asked_after_examples, is_right
from adaptc.evaluation.routes import route_bytes
from adaptc.evaluation.text import read_records
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.generation.session import Session
from adaptc.runtime.loading import tokenizer_of
from adaptc.runtime.model.budget import threshold_of
from adaptc.runtime.progress import SILENT, Progress, counted
from adaptc.runtime.text.templates import Message

GRAM = 4


def read_prompts(path: Path) -> list[str]:
    """Prompts of a JSONL file: of each line `prompt`, or the first of `turns` (MT-Bench).

    Raises:
        RequestError: it cannot be read, or a line has neither.
    """
    prompts = []
    for number, record in read_records(path):
        turns = record.get("turns")
        prompt = record.get("prompt", turns[0] if isinstance(turns, list) and turns else None)
        if not isinstance(prompt, str) or not prompt:
            raise RequestError(f"{path}:{number}: no prompt; a key 'prompt', or 'turns' with a list, is right")
        prompts.append(prompt)
    return prompts


def repetition(ids: Sequence[int], gram: int = GRAM) -> tuple[int, int]:
    """How many of a text's runs of `gram` tokens stood in it before, and how many runs there are."""
    runs = [tuple(ids[at : at + gram]) for at in range(len(ids) - gram + 1)]
    return len(runs) - len(set(runs)), len(runs)


def collapse(
    session: Session,
    prompts: Sequence[str],
    budget: float,
    new_tokens: int,
    *,
    chat: bool = False,
    progress: Progress = SILENT,
) -> dict[str, dict[str, float]]:
    """Answer every prompt, dense and under a budget.

    Args:
        session: A session of batch 1.
        prompts: Each is answered by itself.
        budget: 0 to 1.
        new_tokens: Most tokens of an answer.
        chat: Put the prompts as messages, in the model's chat template.
        progress: Told of each prompt that is done.

    Returns:
        For "dense" and "budget": `repetition`, the share of all runs of 4 tokens that stood in the same answer before;
        `worst`, the largest of one answer; `tokens` of an answer on average; `ended`, the share of answers that ended
        by themselves; `ffn_skipped`.
    """
    measured: dict[str, list[tuple[int, int, int, bool, float]]] = {"dense": [], "budget": []}
    for prompt in counted(prompts, progress):
        for name, value in (("dense", 1.0), ("budget", budget)):
            message: list[Message] = [{"role": "user", "content": prompt}]
            result = (
                session.chat(message, max_new_tokens=new_tokens, budget=value)
                if chat
                else session.generate(prompt, max_new_tokens=new_tokens, budget=value)
            )
            ended = result.finish_reason == "eos"
            measured[name].append((*repetition(result.ids), len(result.ids), ended, result.trace.ffn_skipped))
    return {
        name: {
            "repetition": sum(each[0] for each in rows) / max(1, sum(each[1] for each in rows)),
            "worst": max(each[0] / max(1, each[1]) for each in rows),
            "tokens": sum(each[2] for each in rows) / len(rows),
            "ended": sum(each[3] for each in rows) / len(rows),
            "ffn_skipped": sum(each[4] * each[2] for each in rows) / max(1, sum(each[2] for each in rows)),
        }
        for name, rows in measured.items()
    }


def has_chat(bundle: Bundle) -> bool:
    """Whether a bundle's model is one to talk with."""
    tokenizer = tokenizer_of(bundle)
    try:
        if tokenizer is None:
            return False
        tokenizer.render([{"role": "user", "content": "Hello"}], {})
    except RequestError:
        return False
    return True


def factoids(
    bundle: Bundle,
    questions: Sequence[Question],
    budget: float,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Ask questions after four examples, dense and under a budget.

    The first four questions are the examples. The prompt is read token by token under the budget, as if it were being
    written: a prompt that is read as a whole runs dense, and the first token of the answer with it.

    Args:
        bundle: An opened bundle with a tokenizer.
        questions: More than four.
        budget: 0 to 1.
        threads: Threads of the engine.
        progress: Told of each question that is done.

    Returns:
        Of how many questions the answer begins with a right one, case and leading articles aside: `dense`, `budget`,
        and `dense_prompt`, under the budget after a dense prompt; with `asked` and `ffn_skipped`.
    """
    name = bundle.manifest.reader
    graph, gates = bundle.manifest.graphs[name], bundle.manifest.gates.get(name)
    tokenizer = tokenizer_of(bundle)
    if graph.decoder is None or tokenizer is None:
        raise RequestError(f"{bundle.path}: no tokenizer or no decoder; questions cannot be asked")
    if route_bytes(bundle):
        raise RequestError(f"{bundle.path}: has routes; adaptc quality asks questions by each of them")
    level = threshold_of(gates, budget)
    decoder = HostDecoder(OrtEngine(bundle.onnx(graph.file), threads), graph.decoder, 1, 512, gates)
    right = {"dense": 0, "budget": 0, "dense_prompt": 0}
    ran: list[bytes] = []
    asked = asked_after_examples(questions)
    for prompt, question in counted(asked, progress):
        ids = np.array(tokenizer.encode(prompt), np.int64)
        for kind, threshold, stepwise in (
            ("dense", threshold_of(gates, 1.0), False),
            ("budget", level, True),
            ("dense_prompt", level, False),
        ):
            text = tokenizer.decode(_greedy(decoder, ids, threshold, stepwise, ran))
            right[kind] += is_right(text, question.answers)
    skips = decoder.skips(ran)
    decoder.close()
    share = 0.0 if skips is None or gates is None else skips.share
    ratio = right["budget"] / right["dense"] if right["dense"] else None
    return {**right, "asked": len(asked), "ratio": ratio, "ffn_skipped": share}


def _greedy(decoder: HostDecoder, ids: Any, threshold: float, stepwise: bool, ran: list[bytes]) -> list[int]:
    """The likeliest tokens up to a line's end; `ran` gets what ran where the prompt goes token by token."""
    read = 1 if stepwise else len(ids)
    logits = decoder.prefill(0, ids[:read], threshold)
    written: list[int] = []
    rest = ids[read:].tolist()
    while rest or len(written) < ANSWER_TOKENS:
        if not rest:
            written.append(int(logits.argmax()))
        logits = decoder.decode([rest.pop(0) if rest else written[-1]])[0]
        if stepwise and (now := decoder.ran(0)) is not None:
            ran.append(now)
    return written
