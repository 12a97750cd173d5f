"""Chats written by torch: many sequences decode together, and whoever is done makes room for the next."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adaptc.errors import LoadError, one_line
from adaptc.evaluation.reference import load_eager
from adaptc.writing.jobs import WritingJob, WritingJobs, WrittenText
from adaptc.writing.slot_cache import NAME, SlotCache, register, step_bias

if TYPE_CHECKING:
    from adaptc.sources.base import Source

TOP = 64
"""How many of the likeliest tokens are drawn from."""

READ_TOGETHER = 16384
"""Most tokens of prompts, filler included, that are read in one pass."""

LENGTH_STEP = 64
"""Attention reads a multiple of so many positions, all slots alike."""

LOOK = 8
"""Steps after which the host looks which sequences have ended; those go on for so long in vain."""


class TorchWriter:
    """A model in a GPU's memory, or a CPU's, with slots for sequences."""

    def __init__(self, source: Source, ends: frozenset[int], *, slots: int, capacity: int, device: str) -> None:
        """Read the weights.

        Args:
            source: The model.
            ends: Tokens that end a text.
            slots: Sequences that are decoded together, at most; as many as there is memory for.
            capacity: Most tokens of a sequence.
            device: "cuda" or "cpu".

        Raises:
            LoadError: the model cannot be read, or looks back over less than `capacity` tokens.
        """
        config = source.config()
        window = getattr(config, "sliding_window", None)
        slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        if window is not None and window < capacity and slides:
            raise LoadError(
                f"{source.origin}: its layers look back over {window} tokens, and chats have {capacity}; "
                f"--window {window} is right, or --device cpu"
            )
        register()
        self._device = torch.device(device)
        self._dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._model = load_eager(source, "bfloat16" if device == "cuda" else "float32").to(device)
        self._model.set_attn_implementation(NAME)
        self._slots = slots if device == "cpu" else min(slots, _room(config, capacity))
        self._capacity = capacity
        self._cache = SlotCache(self._slots, capacity)
        self._ends = torch.tensor(sorted(ends), device=self._device)
        self._dice = torch.Generator(self._device)
        self._state = _State(self._slots, capacity, self._device)
        self._noise = torch.ones(self._slots, min(TOP, config.vocab_size), device=self._device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] | None = {} if device == "cuda" else None
        self.steps = 0

    @property
    def slots(self) -> int:
        """How many sequences are decoded together, at most."""
        return self._slots

    def run(self, jobs: WritingJobs, seed: int) -> None:
        """See `ChatWriter`."""
        self._dice.manual_seed(seed)
        running: dict[int, WritingJob] = {}
        position = np.zeros(self._slots, np.int64)  # of each slot's next token, as far as the host knows
        free = list(range(self._slots))[::-1]
        written: list[WrittenText] = []
        while not jobs.over():
            # A few new sequences at a time would be read at the price of many.
            if len(free) >= max(1, self._slots // 16) or not running:
                admitted = {free.pop(): job for job in jobs.take(len(free))}
                running |= admitted
                position[list(admitted)] = [len(job.prompt) - 1 for job in admitted.values()]
                self._admit(admitted)
            if running:
                most = int(position[list(running)].max()) + LOOK
                self._steps(min(self._capacity, -(-most // LENGTH_STEP) * LENGTH_STEP))
                position += LOOK
            # While the device computes, the host makes chats and requests of what was written before.
            jobs.give(written)
            if not running and not written:
                break
            written = self._ended(running, free) if running else []

    def _admit(self, running: dict[int, WritingJob]) -> None:
        """Read the prompts of new sequences, those of like lengths together."""
        by_length = sorted(running, key=lambda slot: len(running[slot].prompt))
        at = 0
        while at < len(by_length):
            count = 1
            while at + count < len(by_length):
                longest = len(running[by_length[at + count]].prompt)
                if longest * (count + 1) > READ_TOGETHER:
                    break
                count += 1
            self._read(by_length[at : at + count], running)
            at += count

    def _read(self, slots: Sequence[int], running: dict[int, WritingJob]) -> None:
        prompts = [running[slot].prompt for slot in slots]
        longest = -(-max(map(len, prompts)) // 16) * 16
        ids = np.zeros((len(slots), min(longest, self._capacity)), np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        rows = torch.tensor(slots, device=self._device)
        self._state.begin(rows, [running[slot] for slot in slots])
        with torch.inference_mode():
            self._cache.read(rows)
            read = torch.from_numpy(ids).to(self._device)
            places = torch.arange(read.shape[1], device=self._device).expand_as(read)
            # What lies behind a prompt's end is written too, and then over by the steps before it is looked at.
            self._model(read, position_ids=places, past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def _steps(self, length: int) -> None:
        """Write `LOOK` tokens of every slot; on a GPU by one CUDA graph for each length."""
        with torch.inference_mode():
            if self._graphs is not None and length not in self._graphs:
                self._capture(length)
            for _ in range(LOOK):
                self._noise.exponential_(generator=self._dice)
                if self._graphs is None:
                    self._step(length)
                else:
                    self._graphs[length].replay()
        self.steps += LOOK

    def _capture(self, length: int) -> None:
        """Capture a step; where torch cannot, steps are launched kernel by kernel from then on."""
        assert self._graphs is not None
        kept = self._state.copied()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):  # libraries allocate what they need in a first run
                self._step(length)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            pool = next((each.pool() for each in self._graphs.values()), None)
            with torch.cuda.graph(graph, pool=pool):
                self._step(length)
        except RuntimeError as error:
            torch.cuda.synchronize()
            warnings.warn(f"steps are not captured: {one_line(error)}", stacklevel=2)
            self._graphs = None
        else:
            self._graphs[length] = graph
        self._state.restore(kept)  # the first run has written a token that nobody asked for

    def _step(self, length: int) -> None:
        """Write one token of every slot."""
        state = self._state
        positions = state.position.clamp(max=length - 1)
        self._cache.step(state.rows, positions, length)
        logits = self._model(
            state.token[:, None],
            attention_mask=step_bias(positions, length, self._dtype),
            position_ids=positions[:, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        state.take(choose(logits, state.temperature, state.top_p, self._noise), self._ends)

    def _ended(self, running: dict[int, WritingJob], free: list[int]) -> list[WrittenText]:
        """Take out the sequences that have ended."""
        done, count, ended = self._state.look()
        slots = [slot for slot in running if done[slot]]
        if not slots:
            return []
        texts = self._state.texts[torch.tensor(slots, device=self._device)].cpu().numpy()
        written = []
        for slot, text in zip(slots, texts, strict=True):
            ids = tuple(text[: count[slot]].tolist())
            end = ids[-1] if ended[slot] else None
            written.append(WrittenText(running.pop(slot), ids[:-1] if ended[slot] else ids, end))
            free.append(slot)
        return written


class _State:
    """What the device knows of each slot's sequence; all of it is changed in place, without the host."""

    def __init__(self, slots: int, capacity: int, device: torch.device) -> None:
        self.rows = torch.arange(slots, device=device)
        self.token, self.position, self.count, self.most = (
            torch.zeros(slots, dtype=torch.int64, device=device) for _ in range(4)
        )
        self.done = torch.ones(slots, dtype=torch.bool, device=device)
        self.ended = torch.zeros(slots, dtype=torch.bool, device=device)
        self.temperature, self.top_p = (torch.zeros(slots, device=device) for _ in range(2))
        self.texts = torch.zeros(slots, capacity, dtype=torch.int32, device=device)

    def copied(self) -> list[torch.Tensor]:
        """Return copies of what steps change."""
        return [each.clone() for each in self._changing()]

    def restore(self, copies: Sequence[torch.Tensor]) -> None:
        """Take these values."""
        for each, copy in zip(self._changing(), copies, strict=True):
            each.copy_(copy)

    def _changing(self) -> tuple[torch.Tensor, ...]:
        return self.token, self.position, self.count, self.done, self.ended, self.texts

    def begin(self, rows: torch.Tensor, jobs: Sequence[WritingJob]) -> None:
        """Give slots to new sequences."""
        columns: list[tuple[torch.Tensor, list[Any]]] = [
            (self.token, [job.prompt[-1] for job in jobs]),
            (self.position, [len(job.prompt) - 1 for job in jobs]),
            (self.count, [0] * len(jobs)),
            (self.most, [job.most for job in jobs]),
            (self.done, [False] * len(jobs)),
            (self.ended, [False] * len(jobs)),
            (self.temperature, [job.temperature for job in jobs]),
            (self.top_p, [job.top_p for job in jobs]),
        ]
        for column, values in columns:
            column[rows] = torch.tensor(values, dtype=column.dtype, device=column.device)

    def take(self, token: torch.Tensor, ends: torch.Tensor) -> None:
        """Add a token, int64 [slots], to each sequence that has not ended."""
        going = ~self.done
        at = self.count.clamp(max=self.texts.shape[1] - 1)
        self.texts[self.rows, at] = torch.where(going, token.int(), self.texts[self.rows, at])
        self.token.copy_(token)
        self.count += going
        self.position += going
        ended = going & (token[:, None] == ends).any(1)
        self.ended |= ended
        self.done |= ended | (self.count >= self.most)

    def look(self) -> tuple[Any, Any, Any]:
        """Return which have ended, how many tokens each wrote, and which an end token ended: one small copy."""
        whole = torch.stack([self.done.long(), self.count, self.ended.long()]).cpu().numpy()
        return whole[0] != 0, whole[1], whole[2] != 0


def choose(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw a token for each row: of the `TOP` likeliest, those that have `top_p` of their probability together.

    Args:
        logits: float [rows, vocabulary].
        temperature: float32 [rows]; 0 takes the likeliest token.
        top_p: float32 [rows], above 0.
        noise: Exponentially distributed float32 [rows, tokens that are drawn from].

    Returns:
        int64 [rows].
    """
    values, tokens = logits.topk(noise.shape[1])
    likely = (values.float() / temperature.clamp(min=1e-2)[:, None]).softmax(-1)
    likely = likely.masked_fill(likely.cumsum(-1) - likely > top_p[:, None], 0.0)
    # The largest of probabilities over exponential numbers is a draw by them, and needs no sum.
    place = (likely / noise.clamp(min=1e-20)).argmax(-1)
    place = torch.where(temperature > 0, place, torch.zeros_like(place))
    return tokens.gather(1, place[:, None])[:, 0]


def _room(config: Any, capacity: int) -> int:
    """How many sequences a GPU's memory has room for, a multiple of 64, at least 64; a third is left for work."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = 2 * 2 * config.num_hidden_layers * heads * width * capacity + 16 * config.vocab_size
    free, _ = torch.cuda.mem_get_info()
    return max(64, int(free * 0.66 / row) // 64 * 64)
