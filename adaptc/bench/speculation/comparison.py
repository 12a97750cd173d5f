"""A bundle's speed with and without speculation: `adaptc bench --speculate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptc.bench.speculation.figures import differences, figures_by_kind
from adaptc.bench.speculation.prompts import KINDS, Prompt, PromptEncoder, choose_prompts, read_prompts
from adaptc.bench.speculation.turns import TimedAnswer, Write, WrittenTokens, answer_in_turns
from adaptc.errors import RequestError
from adaptc.evaluation.answers import has_chat
from adaptc.machine.description import Machine
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.generation.session import Session
from adaptc.runtime.loading import load, tokenizer_of
from adaptc.runtime.model.plan import refuse_encoder
from adaptc.runtime.progress import SILENT, Progress
from adaptc.runtime.speculation.speculation import AUTO, OFF
from adaptc.runtime.speculation.starting import LOOKUP

NEW_TOKENS, PROMPTS, TURNS = 128, 3, 3
"""Tokens of an answer, prompts of each kind and turns, if nobody says how many."""

MOST = 8
"""Tokens of a run whose costs are shown."""


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """How to measure.

    Attributes:
        threads: Threads that work on one step.
        new_tokens: The largest number of tokens of an answer; one that ends before is shorter.
        prompts: Prompts of each kind; None for all of a file.
        turns: How often every prompt is answered in every way.
        seed: Chooses prompts, and draws where `temperature` is above 0.
        temperature: Of sampling; 0 takes the likeliest token.
        budget: Of answers, for bundles with gates or a router; None for the bundle's own.
        route: Of answers, for stitched bundles.
    """

    threads: int
    new_tokens: int = NEW_TOKENS
    prompts: int | None = None
    turns: int = TURNS
    seed: int = 0
    temperature: float = 0.0
    budget: float | None = None
    route: str | None = None

    @property
    def request(self) -> dict[str, Any]:
        """Options of each answer beside its length."""
        drawn = {"temperature": self.temperature, "seed": self.seed} if self.temperature else {}
        return {"budget": self.budget, "route": self.route, **drawn}


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that drafts.

    Attributes:
        ways: What writes, by name: "off", each drafter, and "auto".
        costs: Seconds of a run that reads so many tokens of one sequence, as measured when it was loaded; 1 is a plain
            step.
        close_logits: See `SelfCheck.close`.
    """

    ways: Mapping[str, Write]
    costs: Mapping[int, float]
    close_logits: float = field(default=0.0)


def prompts_of(bundle: Bundle, kinds: Sequence[str], file: Path | None, settings: SpeculationSettings) -> list[Prompt]:
    """What is answered.

    Args:
        bundle: An opened bundle.
        kinds: The only kinds to take; none for all.
        file: A JSONL file with prompts; None for our own.
        settings: How many, and how long the answers are.

    Raises:
        RequestError: the bundle has no tokenizer or no decoder, there is no such kind, or too few prompts fit.
    """
    refuse_encoder(bundle)
    tokenizer = tokenizer_of(bundle)
    decoder = bundle.manifest.graphs[bundle.manifest.reader].decoder
    if tokenizer is None or decoder is None:
        raise RequestError(f"{bundle.path}: no tokenizer or no decoder; there is nothing to time")
    room = decoder.max_tokens - settings.new_tokens
    if room < 1:
        raise RequestError(
            f"{bundle.path}: holds {decoder.max_tokens} tokens, and answers may have {settings.new_tokens}; fewer new "
            "tokens are right"
        )
    reader = PromptEncoder(tokenizer, has_chat(bundle), room)
    if file is not None:
        return read_prompts(file, kinds, settings.prompts, reader)
    for kind in kinds:
        if kind not in KINDS:
            raise RequestError(f"speculate: no kind of text {kind!r}; there are: {', '.join(KINDS)}")
    return choose_prompts(kinds or list(KINDS), settings.prompts or PROMPTS, settings.seed, reader)


@contextmanager
def opened(bundle: Bundle, settings: SpeculationSettings) -> Iterator[Opened]:
    """Load a bundle with speculation, and free it in the end.

    Nothing is kept of prompts that were read before, so that all ways read them alike.

    Raises:
        RequestError: it cannot draft: it has no graphs for it, or answers would change on this machine; or an option
            has no meaning for it.
    """
    with _session(bundle, settings, AUTO) as session:
        yield _opened(session, settings)


def _session(bundle: Bundle, settings: SpeculationSettings, speculate: str) -> Session:
    session = load(
        bundle.path,
        threads=settings.threads,
        batch=1,
        prefix_bytes=0,
        verify=False,
        budget=settings.budget,
        speculate=speculate,
    )
    if session.speculation is not None:
        return session
    session.close()
    return _session(bundle, settings, LOOKUP)  # what is named is refused with the reason


def _opened(session: Session, settings: SpeculationSettings) -> Opened:
    def way(name: str) -> Write:
        def write(prompt: Sequence[int], new_tokens: int) -> WrittenTokens:
            result = session.generate(prompt, max_new_tokens=new_tokens, speculate=name, **settings.request)
            trace = result.trace
            return WrittenTokens(result.ids, trace.decode_seconds, trace.drafted, trace.accepted, trace.drafter)

        return write

    speculation = session.speculation
    assert speculation is not None
    ways = {name: way(name) for name in (OFF, *speculation.drafters, AUTO)}
    costs = {tokens: speculation.costs.reading(tokens) for tokens in range(1, MOST + 1)}
    return Opened(ways, costs, speculation.close_logits)


def bench_speculation(
    bundle: Bundle,
    kinds: Sequence[str],
    file: Path | None,
    settings: SpeculationSettings,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Answer prompts without speculation, with each drafter and with "auto", in turns.

    Args:
        bundle: An opened bundle.
        kinds: See `prompts_of`.
        file: See `prompts_of`.
        settings: How to measure.
        progress: Told of stages and answers.

    Returns:
        The figures, as JSON has them: `kinds`, `costs`, `differences`, and every answer.

    Raises:
        RequestError: as `prompts_of` and `opened`.
        EngineError: the engine failed.
    """
    prompts = prompts_of(bundle, kinds, file, settings)
    progress.expect(3)
    progress.stage("load and check")
    with opened(bundle, settings) as found:
        answers = answer_in_turns(found.ways, prompts, settings.new_tokens, settings.turns, progress)
    return report_of(prompts, answers, found, settings)


def report_of(
    prompts: Sequence[Prompt], answers: Sequence[TimedAnswer], found: Opened, settings: SpeculationSettings
) -> dict[str, Any]:
    """Everything that was measured, as JSON has it."""
    return {
        "kinds": figures_by_kind(answers, [*found.ways], OFF),
        "costs": [
            {"tokens": tokens, "seconds": seconds, "plain_steps": seconds / found.costs[1]}
            for tokens, seconds in found.costs.items()
        ],
        "close_logits": found.close_logits,
        "differences": [dataclasses.asdict(each) for each in differences(answers, OFF)],
        "prompts": [{"kind": each.kind, "messages": each.messages, "tokens": len(each.ids)} for each in prompts],
        "answers": [_answer(each) for each in answers],
        "settings": dataclasses.asdict(settings),
        "machine": dataclasses.asdict(Machine.here()),
    }


def _answer(answer: TimedAnswer) -> dict[str, Any]:
    told = {name: getattr(answer, name) for name in ("prompt", "kind", "turn", "way", "others")}
    return told | dataclasses.asdict(answer.written)
