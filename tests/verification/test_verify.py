from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import transformers
from click.testing import CliRunner, Result

from adaptc.cli import main
from adaptc.runtime import Bundle
from adaptc.runtime.model.decoder import Ids, Logits
from adaptc.verification.bundle_model import BundleModel
from adaptc.verification.kinds import verify
from adaptc.verification.kinds.steps import Verification, long_prompt, numbers_part, prompts_of, window_parts
from adaptc.verification.parity import (
    ARITHMETIC,
    LOSS,
    LOWERING,
    Model,
    Parity,
    ParityLimits,
    Passage,
    Predictions,
    Written,
    compare,
    faults,
    samples_of,
    worst,
)
from adaptc.verification.part import not_compared
from tests.models import attention_bundle

LM = attention_bundle.LM
PROMPTS = [[1, 2, 3], [40], [7, 300, 9, 9, 1]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return attention_bundle.write(tmp_path_factory.mktemp("verify") / "bundle")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)], prog_name="adaptc")


@dataclass
class Eager(Written):
    """The tiny model in numpy, with an error added to its logits."""

    error: float = 0.0
    seed: int = 0

    def logits(self, ids: Ids) -> Logits:
        noise = np.random.default_rng((self.seed, *ids.tolist())).normal(0, 1, (len(ids), LM.vocab))
        noisy: Logits = LM.logits(ids) + np.float32(self.error) * noise.astype(np.float32)
        return noisy

    def predictions(self, sample: Passage) -> Predictions:
        return Predictions(self.logits(sample.ids)[-sample.last :])


SAMPLES = samples_of(Eager(), PROMPTS)


def parity(model: Model) -> Parity:
    """How far a model is from the tiny model in numpy."""
    return compare([model.predictions(each) for each in SAMPLES], [Eager().predictions(each) for each in SAMPLES])


def test_a_model_is_its_own_equal() -> None:
    found = parity(Eager())
    assert (found.same_tokens, found.new_tokens, found.max_logit_error, found.mean_kl) == (20, 20, 0.0, 0.0)
    assert (found.worst_kl, found.top1_agreement, found.positions) == (0.0, 1.0, sum(len(p) + 20 for p in PROMPTS))
    assert faults(found, LOWERING) == []


def test_a_bundle_equals_its_model(bundle: Bundle) -> None:
    model = BundleModel(bundle, threads=1)
    found = parity(model)
    model.close()
    assert found.same_tokens == 20
    assert found.max_logit_error < 1e-4
    assert 0 <= found.mean_kl < 1e-9
    assert found.positions == sum(len(p) + 20 + 21 for p in PROMPTS), "read at once, and step by step"
    assert faults(found, LOWERING) == []


def test_a_fault_of_one_of_the_two_paths_is_seen() -> None:
    sample = SAMPLES[0]
    right = Eager().predictions(sample).read
    for read, stepped in ((right, right[-21:] + 1e-2), (right + 1e-2, right[-21:])):
        found = compare([Predictions(read, stepped)], [Predictions(right)])
        assert found.max_logit_error == pytest.approx(1e-2, rel=1e-3)
        assert faults(found, LOWERING)


def test_an_error_of_a_hundredth_is_seen() -> None:
    found = parity(Eager(0.01))
    assert 0.02 < found.max_logit_error < 0.1
    # KL of logits with independent errors of variance v is v/2 at most.
    assert 1e-6 < found.mean_kl < 1e-4
    said = faults(found, LOWERING)
    assert len(said) == 2
    assert said[0].startswith("a logit is off by 0.0")
    assert said[1].startswith("mean KL is ")


def test_other_tokens_are_seen() -> None:
    found = parity(Eager(3.0))
    assert found.same_tokens < 20
    assert found.top1_agreement < 1
    limits = ParityLimits(None, np.inf, top1_agreement=1.0)
    assert faults(found, limits) == [
        f"the most likely token is the same at {found.top1_agreement:.0%} of the positions, at least 100% must be"
    ]


@pytest.mark.parametrize("limits", [LOWERING, *LOSS.values(), *ARITHMETIC.values()])
def test_numbers_that_are_none_fail_under_every_limit(limits: ParityLimits) -> None:
    nan = np.full((21, 5), np.nan, np.float32)
    found = compare([Predictions(nan)], [Predictions(np.zeros((21, 5), np.float32))])
    assert faults(found, limits)


def test_limits_are_looser_with_fewer_bits() -> None:
    order = [LOSS[weights].mean_kl for weights in ("fp32", "fp16", "int8", "int4")]
    assert order == sorted(order)


def test_hashes_only(bundle: Bundle) -> None:
    shown = run(bundle.path, "--no-numbers", "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout) == {"files": 5, "hashes": "ok", "weights": "fp32", "parts": [], "passed": True}


def test_without_torch_it_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    shown = run(bundle.path, "--json")
    assert shown.exit_code == 0
    assert shown.stderr == "hashes only: torch is not installed; pip install 'adaptc[compile]'\n"
    result = json.loads(shown.stdout)
    assert result["passed"]
    assert [part["verdict"] for part in result["parts"]] == ["not compared"]
    assert run(bundle.path, "--strict").exit_code == 1


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    made = attention_bundle.write(tmp_path / "bundle")
    file = made.path / "graphs" / "lm.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    shown = run(made.path)
    assert shown.exit_code == 1
    assert len(shown.stderr.splitlines()) == 1
    assert "lm.onnx" in shown.stderr
    assert shown.stdout == ""


def test_a_source_that_is_gone_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    shown = run(bundle.path, "--base", tmp_path)
    assert shown.exit_code == 1
    assert shown.stderr == (
        f"Error: lm.gguf: no such file or folder: {tmp_path / 'lm.gguf'}; "
        "--base names the folder that paths in the spec start from\n"
    )


@pytest.mark.parametrize(("kl", "code"), [(0.3, 0), (1.2, 1)])
def test_the_command_judges_by_the_bundles_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kl: float, code: int
) -> None:
    made = attention_bundle.write(tmp_path / "bundle", weights="int4")
    loss = Parity(3, 20, 9.0, kl, 2 * kl, 0.8, 100, 30.0)
    parts = (not_compared("tokenizer", "nobody knows it"), numbers_part("loss", "the source", loss, LOSS["int4"]))
    monkeypatch.setattr(verify, "verify_bundle", lambda *_: Verification(parts, {"": loss}))
    shown = run(made.path, "--json")
    assert shown.exit_code == code
    result = json.loads(shown.stdout)
    assert result["passed"] == (code == 0)
    assert dataclasses.asdict(loss).items() <= result.items()
    assert [part["verdict"] for part in result["parts"]] == ["not compared", "failed" if code else "passed"]
    assert result["parts"][0]["why"] == ["nobody knows it"]
    assert result["parts"][1]["reference"] == "the source"
    if code:
        assert shown.stderr == (
            f"Error: {made.path}: not its source model in int4: loss: mean KL is 1.2 nats, at most 1 may be\n"
        )
    text = run(made.path)
    assert text.exit_code == code
    assert "tokenizer  not compared  nobody knows it\n" in text.stdout
    strict = run(made.path, "--strict")
    assert strict.exit_code == 1
    assert "tokenizer: not compared: nobody knows it" in strict.stderr


def test_a_bundle_without_a_tokenizer_is_asked_for_drawn_ids(tmp_path: Path) -> None:
    made = attention_bundle.write(tmp_path / "bundle", tokenizer=False)
    prompts = prompts_of(made, long=1000)
    assert [len(prompt) for prompt in prompts] == [48, LM.max_tokens - 20]
    assert prompts == prompts_of(made, long=1000)
    assert max(map(max, prompts)) < LM.vocab


@pytest.mark.parametrize(("window", "tokens"), [(None, 300), (100, 300), (1000, 1020), (4096, 2048)])
def test_the_long_prompt_is_longer_than_a_window(window: int | None, tokens: int) -> None:
    config = transformers.MistralConfig(sliding_window=window)
    assert long_prompt(config, 8192) == tokens
    assert bool(window_parts(config, 8192)) == (window == 4096)
    assert long_prompt(config, 90) == 300, "a window that the bundle cannot leave asks for nothing"


def test_of_two_graphs_the_worst_of_each_figure_counts() -> None:
    one = Parity(3, 20, 0.5, 0.1, 0.2, 0.9, 10, 1.0)
    other = Parity(5, 20, 0.25, float("nan"), 0.1, 0.75, 10, 1.0)
    for found in ((one, other), (other, one)):
        both = worst(found)
        assert (both.same_tokens, both.max_logit_error, both.top1_agreement) == (3, 0.5, 0.75)
        assert faults(both, LOSS["int4"])
    assert worst([one]) == one
