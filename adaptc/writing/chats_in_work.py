"""From seeds to chats: which turn is written next, and which chats are kept."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from adaptc.errors import LoadError
from adaptc.sources.chats import Chat
from adaptc.writing.filters import Requests, bare, fit_request, has_marks, listed, loops, refuses
from adaptc.writing.frame import Frame, Messages, assistant, opening, user
from adaptc.writing.jobs import WritingJob, WrittenText
from adaptc.writing.recipe import WritingRecipe
from adaptc.writing.seeds import Draws, RequestSeed, draw_seed
from adaptc.writing.topics import FOLLOW_UPS, ROLES

ASKING, REQUEST, FREE_TURN = 448, 256, 320
"""Most tokens of a list of requests, of one request or text, and of a user's turn from the bare header."""

HOPELESS = 60_000
"""Tokens of which some must be kept."""

LEAST_ROOM = 32
"""Tokens that an answer must have room for."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, or several, is being written."""

    seed: RequestSeed


@dataclass(frozen=True, slots=True)
class _FreeTurn:
    """A user's turn is being written: the first one, or one after a chat."""

    system: str | None
    before: Chat | None


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer is being written.

    Attributes:
        messages: Up to the request.
        before: The chat that it goes on with, or None.
        most: Most tokens of this and of later answers.
    """

    messages: Messages
    kind: str
    before: Chat | None
    most: int


class ChatsInWork:
    """The chats that are being written: gives jobs to an engine, and keeps what comes back of them."""

    def __init__(
        self, frame: Frame, recipe: WritingRecipe, requests: Requests, keep: Callable[[Chat], None], seed: int
    ) -> None:
        """Begin.

        Args:
            frame: The model's template.
            recipe: Shares and lengths.
            requests: Those that were made before, and what is excluded.
            keep: Called with each chat that is done.
            seed: Of everything drawn here.
        """
        self._frame, self._recipe, self._requests, self._keep = frame, recipe, requests, keep
        self._draws = Draws(np.random.default_rng(seed))
        self._ready: deque[WritingJob] = deque()
        self._headers = frame.header() is not None
        self._asked: Counter[str] = Counter()
        self.fates: Counter[str] = Counter()
        self.written = 0
        self.kept_tokens, self.kept_chats = 0, 0
        self._answering = 0
        self.wanted = 0
        self.deadline: float | None = None

    def take(self, count: int) -> list[WritingJob]:
        """See `WritingJobs`: requests that are ready first, then new seeds, until what is being written is enough."""
        jobs: list[WritingJob] = []
        while len(jobs) < count and not self._enough():
            job = self._ready.popleft() if self._ready else self._seeded()
            if isinstance(job.purpose, _Answer):
                self._answering += 1
            jobs.append(job)
        return jobs

    def over(self) -> bool:
        """See `WritingJobs`."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def give(self, written: Sequence[WrittenText]) -> None:
        """See `WritingJobs`."""
        for each in written:
            self.written += len(each.ids) + (each.end is not None)
            match each.job.purpose:
                case _Asked(seed):
                    self._requested(seed, each)
                case _FreeTurn() as turn:
                    self._turned(turn, each)
                case _Answer() as answer:
                    self._answering -= 1
                    self._answered(answer, each)
        if self.written > HOPELESS and self.kept_tokens < self.written / 100:
            fates = ", ".join(f"{count} {fate}" for fate, count in self.fates.most_common(3))
            raise LoadError(
                f"of {self.written} tokens hardly any are fit to be kept ({fates}); an instruct model is right"
            )

    def finish(self) -> None:
        """Keep the chats that were to go on, as they are; what engines have in hand is lost."""
        for job in self._ready:
            if isinstance(job.purpose, _Answer | _FreeTurn) and job.purpose.before is not None:
                self._done(job.purpose.before)
        self._ready.clear()

    def _enough(self) -> bool:
        """Whether what is kept and what is being answered will be as much as is wanted."""
        mean = self.kept_tokens / self.kept_chats if self.kept_chats else self._recipe.window / 4
        return self.kept_tokens + self._answering * mean * self._kept_share() >= self.wanted

    def _kept_share(self) -> float:
        lost = sum(self.fates[each] for each in ("unfinished", "looped", "refused", "foreign", "empty"))
        return (self.kept_chats + 1) / (self.kept_chats + lost + 1)

    def _seeded(self) -> WritingJob:
        """A job that comes by new requests; requests that need nothing written are ready at once."""
        while True:
            if self._headers and self._draws.chance(self._recipe.free_turns):
                system = self._system(0.1)
                header = self._frame.header(system)
                if header is not None:
                    return self._job(header, FREE_TURN, self._recipe.request_temperature, _FreeTurn(system, None))
            seed = draw_seed(self._draws, self._asked)
            if seed.ask is None:
                self._ask(seed.wrap, seed.kind, seed.most)
            elif prompt := self._frame.prompt((user(seed.ask),)):
                most = ASKING if seed.listed else REQUEST
                return self._job(prompt, most, self._recipe.request_temperature, _Asked(seed))
            if self._ready:
                return self._ready.popleft()

    def _requested(self, seed: RequestSeed, written: WrittenText) -> None:
        """Make requests of what was written for a seed."""
        text = self._frame.tokenizer.decode(written.ids)
        # Questions of one list begin alike.
        if self._frame.is_foreign(written.ids) or (not seed.listed and loops(written.ids)):
            self.fates["bad request"] += 1
            return
        entries = listed(text) if seed.listed else [bare(text)]
        if written.end is None:
            entries = entries[:-1]  # it may be cut off
        if not entries:
            self.fates["bad request"] += 1
        for entry in entries:
            self._ask(seed.wrap.replace("{}", entry), seed.kind, seed.most)

    def _turned(self, turn: _FreeTurn, written: WrittenText) -> None:
        """Have an answer written to a user's turn that the model wrote."""
        text = self._frame.tokenizer.decode(written.ids).strip()
        if written.end is None or self._frame.is_foreign(written.ids) or loops(written.ids):
            self.fates["bad request"] += 1
            if turn.before is not None:
                self._done(turn.before)
        elif turn.before is None:
            self._ask(text, "free", self._recipe.most, turn.system)
        else:
            self._go_on(turn.before, text)

    def _ask(self, request: str, kind: str, most: int, system: str | None = None) -> None:
        """Have a request answered, unless it is not fit."""
        request = request.strip()
        if not fit_request(request):
            self.fates["bad request"] += 1
        elif self._requests.excludes(request):
            self.fates["excluded"] += 1
        elif not self._requests.add(request):
            self.fates["repeated"] += 1
        else:
            self._asked[kind] += 1
            messages = (*opening(system or self._system(self._recipe.systems)), user(request))
            prompt = self._frame.prompt(messages)
            if prompt is not None:
                self._answer(prompt, _Answer(messages, kind, None, most))

    def _answer(self, prompt: Sequence[int], answer: _Answer) -> None:
        room = min(answer.most, self._recipe.most, self._recipe.window - len(prompt) - 1)
        if room < LEAST_ROOM:
            self.fates["too long"] += 1
            if answer.before is not None:
                self._done(answer.before)
            return
        temperatures, shares = zip(*self._recipe.answer_temperatures, strict=True)
        temperature = temperatures[int(self._draws.random.choice(len(shares), p=np.array(shares) / sum(shares)))]
        self._ready.append(self._job(prompt, room, temperature, answer))

    def _answered(self, answer: _Answer, written: WrittenText) -> None:
        """Keep a chat, or go on with it; if the answer is not fit, keep what was before it."""
        text = self._frame.tokenizer.decode(written.ids)
        fate = self._fault(written, text)
        self.fates[fate or "answered"] += 1
        if fate is not None:
            if answer.before is not None:
                self._done(answer.before)
            return
        assert written.end is not None
        prompt, before = written.job.prompt, answer.before
        ids = (*prompt, *written.ids, written.end)
        spans = (*(() if before is None else before.answers), (len(prompt), len(ids)))
        chat = Chat(ids, spans, answer.kind, (*answer.messages, assistant(text)))
        if len(spans) <= self._recipe.most_turns and self._draws.chance(self._recipe.follow_ups):
            if self._headers and self._draws.chance(0.5):
                after = self._frame.follow_up(chat.messages, None)
                room = self._recipe.window - len(ids) - len(after or ()) - 2 * LEAST_ROOM
                if after is not None and room >= LEAST_ROOM:
                    turn = _FreeTurn(None, chat)
                    most = min(room, FREE_TURN)
                    self._ready.append(self._job([*ids, *after], most, self._recipe.request_temperature, turn))
                    return
            self._go_on(chat, self._draws.of(FOLLOW_UPS))
            return
        self._done(chat)

    def _go_on(self, chat: Chat, request: str) -> None:
        """Have a further request answered; if that cannot be, keep the chat as it is."""
        after = self._frame.follow_up(chat.messages, request) if len(request) > 1 else None
        if after is None or has_marks(request) or self._requests.excludes(request):
            self._done(chat)
            return
        messages = (*chat.messages, user(request))
        self._answer([*chat.ids, *after], _Answer(messages, chat.kind, chat, self._recipe.most))

    def _done(self, chat: Chat) -> None:
        self.kept_tokens += len(chat.ids)
        self.kept_chats += 1
        self._keep(chat)

    def _fault(self, written: WrittenText, text: str) -> str | None:
        """Why an answer is not kept; None if it is."""
        if written.end is None:
            return "unfinished"
        if not text.strip():
            return "empty"
        if self._frame.is_foreign(written.ids) or has_marks(text):
            return "foreign"
        if refuses(text):
            return "refused"
        return "looped" if loops(written.ids) else None

    def _system(self, share: float) -> str | None:
        return self._draws.of(ROLES) if self._frame.systems and self._draws.chance(share) else None

    def _job(self, prompt: Sequence[int], most: int, temperature: float, purpose: object) -> WritingJob:
        return WritingJob(tuple(prompt), most, temperature, self._recipe.top_p, purpose)
