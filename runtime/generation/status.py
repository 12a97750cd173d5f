"""What a session does now."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Status:
    """How busy a session is, and what it has done since it was loaded.

    Attributes:
        running: Sequences and texts that have a slot now.
        waiting: Those that wait for one.
        kv_tokens: Tokens in the KV cache, those of prompts that are being read included.
        kv_capacity: The largest number of tokens that it takes.
        prefix_hit_tokens: Prompt tokens that were not read, since they were known from earlier prompts.
        prefix_query_tokens: All prompt tokens.
        preemptions: How often a sequence gave up its slot for others.
        step_seconds: Mean time of a step lately; 0 before the first one.
        budget_ceiling: The most that any budget counts for now, 0 to 1, see `LoadTargets`; 1 without targets.
        pressure: How near the times are to the targets: budgets go down above 1; 0 without targets.
        read_tokens: Prompt tokens that were read.
        written_tokens: Tokens that were chosen, those of sequences that go on included.
    """

    running: int
    waiting: int
    kv_tokens: int
    kv_capacity: int
    prefix_hit_tokens: int
    prefix_query_tokens: int
    preemptions: int
    step_seconds: float
    budget_ceiling: float
    pressure: float
    read_tokens: int
    written_tokens: int
