"""Tokens are drawn from the distribution that transformers' own processors make of the logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers.generation import logits_process

from adaptc.runtime import Sampling
from adaptc.runtime.text.sampling import Sampler

POINTS = 250
Logits = npt.NDArray[np.float32]


def theirs(
    logits: Logits, prompt: Sequence[int], sampling: Sampling, ends: Sequence[int] = (), least: int = 0
) -> npt.NDArray[np.float64]:
    """Probabilities [vocab] of the first token, by the processors in the order in which `generate` applies them."""
    ids, scores = torch.tensor([prompt]), torch.from_numpy(logits.copy())[None]
    processors = [
        logits_process.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        *([logits_process.MinNewTokensLengthLogitsProcessor(len(prompt), least, [*ends], "cpu")] if least else []),
        logits_process.TemperatureLogitsWarper(sampling.temperature),
        *([logits_process.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []),
        *([logits_process.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []),
        *([logits_process.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []),
    ]
    for process in processors:
        scores = process(ids, scores)
    probabilities: npt.NDArray[np.float64] = torch.softmax(scores.double(), -1)[0].numpy()
    return probabilities


class Fixed(np.random.Generator):
    """Draws one number."""

    def __init__(self, point: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.point = point

    def random(self, *_: object, **__: object) -> float:  # type: ignore[override]
        return self.point


def ours(
    logits: Logits, prompt: Sequence[int], sampling: Sampling, ends: Sequence[int] = (), least: int = 0
) -> npt.NDArray[np.float64]:
    """Shares [vocab] of the tokens drawn at points evenly spread over [0, 1)."""
    drawn = [
        Sampler(sampling, prompt, Fixed((point + 0.5) / POINTS), ends, least)(logits.copy()) for point in range(POINTS)
    ]
    return np.bincount(drawn, minlength=len(logits)) / POINTS


def case(seed: int) -> tuple[Logits, list[int], Sampling]:
    random = np.random.default_rng(seed)
    vocab = int(random.choice([5, 50, 3000]))
    logits = random.normal(0, random.choice([0.1, 3, 20]), vocab).astype(np.float32)
    sampling = Sampling(
        temperature=random.choice([0.05, 0.7, 1, 2.5]),
        top_k=random.choice([0, 1, 3, 40, vocab, vocab + 9]),
        top_p=random.choice([1, 0.95, 0.5, 0.01]),
        min_p=random.choice([0, 0.05, 0.5, 1]),
        repetition_penalty=random.choice([1, 1.3, 0.8]),
    )
    return logits, random.integers(0, vocab, 7).tolist(), sampling


@pytest.mark.parametrize("seed", range(40))
def test_the_distribution_is_that_of_transformers(seed: int) -> None:
    logits, prompt, sampling = case(seed)
    expected, drawn = theirs(logits, prompt, sampling), ours(logits, prompt, sampling)
    assert drawn[expected == 0].sum() == 0, "nothing is drawn that a filter takes away"
    assert np.abs(drawn - expected).max() <= 1.01 / POINTS


@pytest.mark.parametrize("seed", range(40, 46))
def test_ends_are_held_back_as_transformers_does(seed: int) -> None:
    logits, prompt, sampling = case(seed)
    ends = np.argsort(logits)[-2:].tolist()
    expected, drawn = (each(logits, prompt, sampling, ends, 1) for each in (theirs, ours))
    assert drawn[ends].sum() == 0
    assert np.abs(drawn - expected).max() <= 1.01 / POINTS
    np.testing.assert_array_equal(ours(logits, prompt, sampling, ends, 0), ours(logits, prompt, sampling))


def test_another_distribution_is_found() -> None:
    """A negative control: what is compared would tell a wrong filter."""
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    expected = theirs(logits, [0], Sampling(temperature=1, top_p=0.5))
    assert np.abs(ours(logits, [0], Sampling(temperature=1, top_p=0.6)) - expected).max() <= 1.01 / POINTS
    assert np.abs(ours(logits, [0], Sampling(temperature=1, top_p=0.8)) - expected).max() > 0.1
