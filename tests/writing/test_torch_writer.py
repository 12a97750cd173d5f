"""The torch writer: many sequences in slots give the tokens that each gives alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptc.errors import LoadError
from adaptc.sources.find import find_source
from adaptc.spec.reading import read_spec
from adaptc.writing.jobs import WritingJob, WrittenText
from adaptc.writing.torch_writer import TorchWriter, choose
from tests.models import folder

ENDS = frozenset(range(1, 320, 12))


class Listed:
    """WritingJobs in a row; the results by purpose."""

    def __init__(self, jobs: Sequence[WritingJob], give_up_after: int | None = None) -> None:
        self.left = deque(jobs)
        self.found: dict[object, WrittenText] = {}
        self.looks = give_up_after

    def take(self, count: int) -> list[WritingJob]:
        return [self.left.popleft() for _ in range(min(count, len(self.left)))]

    def give(self, written: Sequence[WrittenText]) -> None:
        self.found |= {each.job.purpose: each for each in written}

    def over(self) -> bool:
        if self.looks is not None:
            self.looks -= 1
            return self.looks < 0
        return False


def jobs(count: int, temperature: float = 0.0, seed: int = 3) -> list[WritingJob]:
    random = np.random.default_rng(seed)
    made = []
    for at in range(count):
        prompt = tuple(random.integers(2, 300, int(random.integers(1, 30))).tolist())
        made.append(WritingJob(prompt, int(random.integers(1, 34)), temperature, 0.9, at))
    return made


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen2", {"num_attention_heads": 4, "num_key_value_heads": 2}),
        ("llama", {}),
        ("gemma2", {"attn_logit_softcapping": 5.0, "sliding_window": 64, "layer_types": ["full_attention"] * 2}),
    ],
)
def test_slots_write_what_each_text_gives_alone(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    """Three slots for eleven texts of other lengths: slots are used again, over what was there before."""
    spec, model = folder.write(tmp_path, family, num_hidden_layers=2, **options)
    source = find_source(read_spec(spec).models["lm"], tmp_path)
    writer = TorchWriter(source, ENDS, slots=3, capacity=64, device="cpu")
    listed = Listed(jobs(11))
    writer.run(listed, 0)
    assert len(listed.found) == 11
    ended = 0
    for job in jobs(11):
        alone = folder.greedy(model, list(job.prompt), job.most)
        end = next((at for at, token in enumerate(alone) if token in ENDS), None)
        found = listed.found[job.purpose]
        assert found.ids == tuple(alone[:end])
        assert found.end == (None if end is None else alone[end])
        ended += end is not None
    assert 0 < ended < 11, "some end by a token, some by their length"


def test_draws_repeat_by_their_seed(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path, "qwen2")
    source = find_source(read_spec(spec).models["lm"], tmp_path)
    writer = TorchWriter(source, ENDS, slots=4, capacity=64, device="cpu")
    runs = []
    for seed in (5, 5, 6):
        listed = Listed(jobs(8, temperature=1.0))
        writer.run(listed, seed)
        runs.append({key: each.ids for key, each in listed.found.items()})
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_it_stops_when_it_is_time(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path, "qwen2")
    source = find_source(read_spec(spec).models["lm"], tmp_path)
    listed = Listed(jobs(50), give_up_after=2)
    TorchWriter(source, ENDS, slots=2, capacity=64, device="cpu").run(listed, 0)
    assert len(listed.found) < 50
    assert listed.left


def test_a_window_that_is_too_small_is_refused(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path, "gemma2", sliding_window=32)
    source = find_source(read_spec(spec).models["lm"], tmp_path)
    with pytest.raises(LoadError, match="look back over 32 tokens, and chats have 64"):
        TorchWriter(source, ENDS, slots=2, capacity=64, device="cpu")


def test_draws_follow_probabilities_of_the_likeliest() -> None:
    rows = 40_000
    logits = torch.tensor([2.0, 1.0, 0.0, -9.0, 1.5]).expand(rows, 5)
    noise = torch.empty(rows, 4).exponential_(generator=torch.Generator().manual_seed(1))
    chosen = choose(logits, torch.full((rows,), 2.0), torch.full((rows,), 0.85), noise)
    share = torch.bincount(chosen, minlength=5) / rows
    # At temperature 2 the shares are .37, .22, .13, .00 and .28; the first three reach .85 together, the rest goes.
    likely = torch.tensor([2.0, 1.0, 0.0, -20.0, 1.5]).div(2).exp()
    likely[2] = likely[3] = 0
    torch.testing.assert_close(share, likely / likely.sum(), atol=0.01, rtol=0)
    greedy = choose(logits, torch.zeros(rows), torch.ones(rows), noise)
    assert (greedy == 0).all()
