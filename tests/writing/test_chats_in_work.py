"""From seeds to chats: what is asked, what is kept, and what goes on with a file, with scripted texts for a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adaptc.compiler.cache import Cache
from adaptc.errors import LoadError, SpecError
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.sources.chats import read_chats
from adaptc.writing.frame import Frame
from adaptc.writing.jobs import WritingJob, WritingJobs, WrittenText
from adaptc.writing.recipe import WritingRecipe
from adaptc.writing.run import WritingLimits, WritingPlace, WritingResult, write_chats
from adaptc.writing.seeds import KINDS
from tests.models.chat_templates import CHATML
from tests.models.tiny_tokenizer import byte_level, files

ABOUT = {"model": "scripted", "sha256": "0" * 64, "vocabulary": "1" * 64, "engine": "none"}
END = 1


@pytest.fixture
def frame() -> Frame:
    template = (
        "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    )
    return Frame(Tokenizer(files(byte_level(), template)), frozenset({END}), True)


@dataclass
class Scripted:
    """A model that answers by a function of the prompt's text and the number of the job."""

    frame: Frame
    said: Callable[[str, int], str | None]
    slots: int = 5
    jobs: int = 0

    def run(self, jobs: WritingJobs, seed: int) -> None:
        while not jobs.over() and (taken := jobs.take(self.slots)):
            jobs.give([self.written(job) for job in taken])

    def written(self, job: WritingJob) -> WrittenText:
        self.jobs += 1
        text = self.said(self.frame.tokenizer.decode(job.prompt, special=True), self.jobs)
        if text is None:
            return WrittenText(job, tuple(self.frame.tokenizer.encode("and so on", special=False)), None)
        return WrittenText(job, tuple(self.frame.tokenizer.encode(text, special=False)), END)


def good(prompt: str, number: int) -> str:
    """Lists where a list is asked for, a user's turn after a user's header, else a short answer."""
    if prompt.endswith("<|start|>user\n"):
        return f"Tell me more about number {number}, and about {number * 7919} too."
    if "numbered list" in prompt and "nothing else" in prompt:
        return "\n".join(f"{at}. What is thing {number * 31 + at} of the {number * at * 17} kinds?" for at in (1, 2, 3))
    return f"It is {number}."


def write(
    frame: Frame, path: Path, said: Callable[[str, int], str | None] = good, tokens: int = 20_000, **options: object
) -> WritingResult:
    recipe = WritingRecipe(seed=int(str(options.pop("seed", 0))), window=2048)
    restart = bool(options.pop("restart", False))
    place = WritingPlace(path.parent, path, Cache(path.parent / "cache"), restart=restart)
    limits = WritingLimits(tokens)
    return write_chats(frame, ABOUT, recipe, limits, place, Scripted(frame, said), **options)  # type: ignore[arg-type]


def test_chats_are_what_the_template_writes(frame: Frame, tmp_path: Path) -> None:
    result = write(frame, tmp_path / "chats.jsonl")
    found = read_chats(tmp_path / "chats.jsonl")
    assert found.tokens == result.tokens >= 20_000
    assert {len(chat.answers) for chat in found.chats} == {1, 2, 3}
    for chat in found.chats:
        text = frame.tokenizer.render(chat.messages, {"add_generation_prompt": False})
        assert frame.tokenizer.decode(chat.ids, special=True) == text.removesuffix("\n")
        answers = [each["content"] for each in chat.messages if each["role"] == "assistant"]
        spans = [frame.tokenizer.decode(chat.ids[start:end], special=True) for start, end in chat.answers]
        assert spans == [f"{each}<|end|>" for each in answers]
    kinds = Counter(chat.kind for chat in found.chats)
    assert kinds.keys() >= {"form", "fact", "code", "arithmetic", "choice", "translation", "language", "free"}
    asked = sum(count for kind, count in kinds.items() if kind != "free")
    total = sum(share for _, share in KINDS.values())
    for kind, (_, share) in KINDS.items():
        assert kinds[kind] / asked == pytest.approx(share / total, abs=0.06), "though some seeds give lists"
    assert any(chat.messages[0]["role"] == "system" for chat in found.chats)
    [run] = found.metadata["runs"]
    assert run["tokens_written"] == result.written > result.answer_tokens
    assert run["fates"]["answered"] == sum(len(chat.answers) for chat in found.chats)


def test_requests_are_not_repeated(frame: Frame, tmp_path: Path) -> None:
    write(frame, tmp_path / "chats.jsonl")
    firsts = [
        next(each["content"] for each in chat.messages if each["role"] == "user")
        for chat in read_chats(tmp_path / "chats.jsonl").chats
    ]
    assert len(set(firsts)) == len(firsts) > 100


def test_a_file_is_gone_on_with(frame: Frame, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    write(frame, path, tokens=5_000)
    before = read_chats(path)
    with path.open("ab") as file:
        file.write(b'{"ids": [1, 2')  # as a kill leaves it
    result = write(frame, path, tokens=10_000)
    after = read_chats(path)
    assert after.chats[: len(before.chats)] == before.chats
    assert after.tokens == result.tokens >= 10_000
    assert len(after.metadata["runs"]) == 2
    again = write(frame, path, tokens=10_000)
    assert (again.written, again.chats) == (0, len(after.chats)), "it has what is wanted"
    with pytest.raises(SpecError, match="written with another recipe; another file or --restart is right"):
        write(frame, path, tokens=10_000, seed=1)
    write(frame, path, tokens=1_000, seed=1, restart=True)
    assert read_chats(path).tokens < 5_000


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ("unfinished", None),
        ("refused", "I'm sorry, but I can't assist with that."),
        ("looped", "the cat sat on the mat " * 30),
        ("foreign", "It is this.<|im_end|> And that."),
        ("empty", " \n"),
    ],
)
def test_bad_answers_are_not_kept(frame: Frame, tmp_path: Path, fate: str, said: str | None) -> None:
    """Every third answer is bad; a chat whose later answer is bad is kept up to there."""

    def third(prompt: str, number: int) -> str | None:
        asked = prompt.endswith("<|start|>user\n") or ("numbered list" in prompt and "nothing else" in prompt)
        return said if number % 3 == 0 and not asked else good(prompt, number)

    result = write(frame, tmp_path / "chats.jsonl", third)
    assert result.fates[fate] > 10
    for chat in read_chats(tmp_path / "chats.jsonl").chats:
        assert all(each["content"] != said for each in chat.messages if each["role"] == "assistant")
        assert chat.ids[-1] == END


def test_what_is_excluded_is_not_asked(frame: Frame, tmp_path: Path) -> None:
    def capitals(prompt: str, number: int) -> str:
        asked = "numbered list" in prompt and "nothing else" in prompt
        return "1. What is the capital of France?\n2. Now, what is 3 * 4?\n" + "3. x" if asked else good(prompt, number)

    path = tmp_path / "chats.jsonl"
    write(frame, path, capitals, tokens=4_000)
    assert any("capital of France" in str(chat.messages) for chat in read_chats(path).chats)
    result = write(frame, path, capitals, tokens=4_000, restart=True, without=["What is the capital of France?", "now"])
    assert result.fates["excluded"] > 1
    assert not any("capital of France" in str(chat.messages) for chat in read_chats(path).chats)


def test_a_model_that_writes_nothing_fit_is_refused(frame: Frame, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"hardly any are fit to be kept \(\d+ bad request"):
        write(frame, tmp_path / "chats.jsonl", lambda _, __: "<|im_start|>" * 40)


def test_a_template_without_system_messages_has_none(tmp_path: Path) -> None:
    template = files(byte_level(), CHATML)
    frame = replace(Frame(Tokenizer(template), frozenset({END}), False))
    assert frame.header() is None, "<|im_end|> is no token here"
    write(frame, tmp_path / "chats.jsonl", tokens=3_000)
    for chat in read_chats(tmp_path / "chats.jsonl").chats:
        assert chat.messages[0]["role"] == "user"
        assert chat.kind != "free"
        assert len(chat.answers) == 1, "a turn that no token ends is not gone on with"


def test_the_file_says_what_wrote_it(frame: Frame, tmp_path: Path) -> None:
    write(frame, tmp_path / "chats.jsonl", tokens=1_000)
    first = json.loads((tmp_path / "chats.jsonl").read_text().splitlines()[0])
    assert first["model"] == "scripted"
    assert first["recipe"]["window"] == 2048
    assert first["versions"].keys() == {"adaptc", "transformers", "tokenizers"}
