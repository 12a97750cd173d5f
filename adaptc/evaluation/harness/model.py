"""A bundle as a model of lm-evaluation-harness, whose requests share steps in the session's scheduler."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from adaptc.errors import RequestError
from adaptc.runtime.backends.backend import DecoderOptions
from adaptc.runtime.bundle.folder import Bundle, open_bundle
from adaptc.runtime.generation.session import Session
from adaptc.runtime.loading import PREFIX_BYTES, load, load_decoder, runs_on_gpu, tokenizer_of
from adaptc.runtime.model.decoder import BatchDecoder, Logits
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.plan import decoder_graph
from adaptc.runtime.progress import SILENT, Progress
from adaptc.runtime.text.templates import Message

BATCH = 8
"""Sequences that are written together if nobody says how many."""

_NEW_TOKENS = 256  # if a task does not say: lm-evaluation-harness's own default
_LOOK_SECONDS = 0.5
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

Score = tuple[float, bool]
"""Log-likelihood of a continuation in nats, and whether it is what the model would write."""


@dataclass(slots=True)
class AnswerCount:
    """What a model wrote.

    Attributes:
        tokens: How many.
        skipped: The sum over them of the share of gated blocks that did not run.
    """

    tokens: int = 0
    skipped: float = 0.0

    @property
    def ffn_skipped(self) -> float:
        """Share of gated blocks that did not run, over all tokens, 0 to 1."""
        return self.skipped / self.tokens if self.tokens else 0.0


@register_model("adaptc")
class BundleLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A language model's bundle, by one route and under one budget.

    Attributes:
        bundle: What runs.
        route: The route of a stitched bundle; None lets its router pick.
        budget: From 0 (cheapest) to 1 (dense); None takes the bundle's own.
        progress: Told how many requests are done.
        written: What it wrote so far.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        budget: float | None = None,
        route: object = None,
        batch: int | None = None,
        threads: int | None = None,
        device: str = "cpu",
        *,
        batch_size: int | str | None = None,
        max_batch_size: object = None,
        progress: Progress = SILENT,
    ) -> None:
        """Load a bundle.

        Args:
            bundle: Its folder, or the opened bundle; of one decoder, with a tokenizer.
            budget: See the class.
            route: See the class; a name that looks like a number comes as one from a command line.
            batch: Sequences that are written together; `batch_size`, or 8, if it is not given.
            threads: Threads of the engine.
            device: Where it runs, see `adaptc.runtime.load`.
            batch_size: As `batch`: lm-evaluation-harness's own name, for its command line.
            max_batch_size: Of no use here, and given by lm-evaluation-harness.
            progress: See the class.

        Raises:
            RequestError: a value is out of range, the route is not there, or the bundle has no tokenizer.
            BundleError: it cannot be opened.
        """
        super().__init__()
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
        tokenizer = tokenizer_of(opened)
        if tokenizer is None:
            raise RequestError(f"{opened.path}: no tokenizer; a text cannot be scored")
        named = str(batch_size)
        rows = batch if batch is not None else int(named) if named.isdigit() else BATCH
        self.bundle, self.budget = opened, budget
        self.route = None if route is None else str(route)
        self.progress = progress
        self.written = AnswerCount()
        self._reader = tokenizer
        _, self._spec = decoder_graph(opened)
        self._decoder: BatchDecoder | None = None
        if device == "cpu" and not runs_on_gpu(opened):
            options = DecoderOptions(batch=rows, threads=threads, prefix_bytes=PREFIX_BYTES)
            self._decoder = load_decoder(opened, options)
            self._session = Session(self._decoder, tokenizer)
        else:
            self._session = load(opened.path, device, batch=rows, threads=threads, verify=False)
        if self.route is not None and self.route not in self._session.routes:
            self.close()
            there = ", ".join(self._session.routes) or "none"
            raise RequestError(f"route: no route {self.route!r} in {opened.path}; there are: {there}")
        self._before = tokenizer.encode("")
        self._begins = tokenizer.decode(self._before, special=True)

    def by(self, route: str | None, budget: float | None) -> BundleLM:
        """The same loaded bundle by another route and under another budget; closed with this one."""
        other = object.__new__(BundleLM)
        other.__dict__.update(self.__dict__, route=route, budget=budget, written=AnswerCount())
        return other

    def close(self) -> None:
        """Free the bundle's memory."""
        self._session.close()

    @property
    def eot_token_id(self) -> int:
        """The first token that ends an answer."""
        return self._spec.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before."""
        first = self._spec.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def max_length(self) -> int:
        """Tokens of which the next one can be scored."""
        return self._spec.max_tokens - 1

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer and its template, for lm-evaluation-harness's caches."""
        return f"adaptc {self.bundle.path.resolve()}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The form of a conversation, for lm-evaluation-harness's records."""
        if not chat_template:
            return None
        return self._reader.render([{"role": "user", "content": "{content}"}])

    def apply_chat_template(self, chat_history: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """A conversation as a prompt; without `add_generation_prompt` its last message is gone on with."""
        variables = {} if add_generation_prompt else {"continue_final_message": True}
        return self._reader.render(list(chat_history), variables)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, with the tokens that the model expects before one unless it has them, as a chat does."""
        special = not (self._begins and string.startswith(self._begins))
        return self._reader.encode(string, special if add_special_tokens is None else add_special_tokens)

    def get_model_info(self) -> dict[str, Any]:
        """What ran, for lm-evaluation-harness's records."""
        models = {name: each.sha256 for name, each in self.bundle.manifest.models.items()}
        return {"bundle": str(self.bundle.path), "models": models, "route": self.route, "budget": self.budget}

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Score]:
        """Scores of continuations after contexts; the library's bar is not drawn beside our own progress."""
        scores: list[Score] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[Score]:
        """Scores of continuations: several of one token after the same context need it read once.

        Dense texts are read in pieces, as prompts are. Where blocks are skipped texts go token by token, as if they
        were being written, context included.
        """
        scores: list[Score] = []
        whole = [(context, continuation) for _pair, context, continuation in requests]
        for (context, single), group in groupby(whole, lambda each: (each[0], len(each[1]) == 1)):
            continuations = [continuation for _context, continuation in group]
            if single and len(continuations) > 1 and self._decoder is not None:
                logits = self._next_logits(self._decoder, context[-self.max_length :])
                scores += _scores_of_single(logits, [token for [token] in continuations])
            else:
                scores += [self._of(context, continuation) for continuation in continuations]
            self.progress.step(len(scores), len(whole))
        return scores

    def _of(self, context: Sequence[int], continuation: Sequence[int]) -> Score:
        ids = [*context, *continuation][-self._spec.max_tokens :]
        scored = min(len(continuation), len(ids) - 1)
        scores = self._session.score(ids, budget=self.budget, route=self.route)
        written = scores.best_ids[-scored:].tolist() == list(continuation)[-scored:]
        return float(scores.values[-scored:].sum(dtype=np.float64)), written

    def _next_logits(self, decoder: BatchDecoder, ids: list[int]) -> Logits:
        """Logits of the token that follows: float32 [vocab]."""
        options = RequestOptions(budget=self.budget, route=self.route)
        if decoder.dense(options):
            return decoder.start(0, np.array(ids, np.int64), options)
        logits = decoder.start(0, np.array(ids[:1], np.int64), options)
        for token in ids[1:]:
            logits = decoder.decode([token])[0]
        return logits

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in nats, in windows if they are longer than the bundle holds."""
        sums = []
        for request in requests:
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            sums.append(sum(self._of(*make_disjoint_window(window))[0] for window in windows))
            self.progress.step(len(sums), len(requests))
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts after contexts, each up to the first of its stop strings; requests of one kind share steps."""
        texts: dict[int, str] = {}
        kinds: dict[str, list[int]] = {}
        for at, request in enumerate(requests):
            kinds.setdefault(repr(request.args[1]), []).append(at)
        for places in kinds.values():
            wanted = requests[places[0]].args[1]
            found = self._written([requests[at].args[0] for at in places], wanted, len(texts), len(requests))
            texts |= dict(zip(places, found, strict=True))
            for at in places:
                self.cache_hook.add_partial("generate_until", requests[at].args, texts[at])
        return [texts[at] for at in range(len(requests))]

    def _written(self, contexts: Sequence[str], wanted: Mapping[str, Any], done: int, of: int) -> list[str]:
        """What the session writes after contexts; `done` of all `of` requests are."""
        until = wanted.get("until") or []
        stops = [each for each in ([until] if isinstance(until, str) else until) if each]
        most = min(int(wanted.get("max_gen_toks", _NEW_TOKENS)), self.max_length)
        left = self._spec.max_tokens - most
        prompts = [self.tok_encode(context)[-left:] for context in contexts]
        sampling: dict[str, Any] = {}
        if wanted.get("do_sample"):
            sampling = {name: wanted[name] for name in _SAMPLING if name in wanted} | {"seed": 0}
        with self._watched(done, len(prompts), of):
            results = self._session.generate(
                prompts, max_new_tokens=most, stop=stops, budget=self.budget, route=self.route, **sampling
            )
        for result in results:
            self.written.tokens += len(result.ids)
            self.written.skipped += result.trace.ffn_skipped * len(result.ids)
        return [result.text for result in results]

    @contextmanager
    def _watched(self, done: int, asked: int, of: int) -> Iterator[None]:
        """Tell the progress of requests that the scheduler runs, while it does."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_LOOK_SECONDS):
                status = self._session.status()
                self.progress.step(done + asked - status.running - status.waiting, of)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def _scores_of_single(logits: Logits, tokens: Sequence[int]) -> list[Score]:
    """Scores of continuations of one token, of the logits float32 [vocab] after their context."""
    values = logits.astype(np.float64) - float(logits.max())
    values -= np.log(np.exp(values).sum())
    best = int(logits.argmax())
    return [(float(values[token]), token == best) for token in tokens]
