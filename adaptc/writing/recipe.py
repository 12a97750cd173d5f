"""The options of writing chats, which its file keeps."""

from __future__ import annotations

from dataclasses import dataclass

from adaptc.writing.seeds import LONG


@dataclass(frozen=True, slots=True)
class WritingRecipe:
    """How chats are written.

    Attributes:
        seed: Seed of everything that is drawn.
        window: Most tokens of a chat, from 128.
        free_turns: Share of requests that the model writes from the bare header of a user's turn.
        systems: Share of other chats that begin with a system message of ours; the rest has what the template brings.
        follow_ups: Share of answers after which the user says something more.
        most_turns: Most answers of a chat, less one.
        request_temperature: Temperature of requests.
        answer_temperatures: Temperatures of answers, each with its share.
        top_p: Of all that is drawn.
        most: Most tokens of an answer.
    """

    seed: int = 0
    window: int = 1024
    free_turns: float = 0.15
    systems: float = 0.12
    follow_ups: float = 0.18
    most_turns: int = 2
    request_temperature: float = 1.0
    answer_temperatures: tuple[tuple[float, float], ...] = ((0.0, 0.4), (0.3, 0.15), (0.7, 0.25), (1.0, 0.2))
    top_p: float = 0.95
    most: int = LONG
