from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from adaptc.cli import main
from adaptc.evaluation import verify
from adaptc.evaluation.parity import LIMITS, NEW_TOKENS, Logits, Parity, ParityLimits, compare, faults, worst
from adaptc.evaluation.text import Ids
from adaptc.evaluation.verify import BundleModel
from adaptc.runtime import Bundle, BundleError, open_bundle
from tests.models import attention_bundle

LM = attention_bundle.LM
PROMPTS = [[1, 2, 3], [40], [7, 300, 9, 9, 1]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return attention_bundle.write(tmp_path_factory.mktemp("verify") / "bundle")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)], prog_name="adaptc")


@dataclass
class Eager:
    """The tiny model in numpy, with an error added to its logits."""

    error: float = 0.0
    seed: int = 0
    asked: list[int] = field(default_factory=list)

    def logits(self, ids: Ids) -> Logits:
        noise = np.random.default_rng((self.seed, *ids.tolist())).normal(0, 1, (len(ids), LM.vocab))
        noisy: Logits = LM.logits(ids) + np.float32(self.error) * noise.astype(np.float32)
        return noisy

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        ids = list(prompt)
        for _ in range(new_tokens):
            ids.append(int(self.logits(np.array(ids))[-1].argmax()))
        return ids[len(prompt) :]


def test_a_model_is_its_own_equal() -> None:
    found = compare(Eager(), Eager(), PROMPTS)
    assert found == Parity(20, 20, 0.0, 0.0, 1.0, sum(len(p) + 20 for p in PROMPTS))
    assert faults(found, LIMITS["fp32"]) == []


def test_a_bundle_equals_its_model(bundle: Bundle) -> None:
    model = BundleModel(bundle, threads=1)
    found = compare(model, Eager(), PROMPTS)
    model.close()
    assert found.same_tokens == 20
    assert found.max_logit_error < 1e-4
    assert 0 <= found.mean_kl < 1e-9
    assert faults(found, LIMITS["fp32"]) == []


def test_an_error_of_a_hundredth_is_seen() -> None:
    found = compare(Eager(0.01), Eager(), PROMPTS)
    assert 0.02 < found.max_logit_error < 0.1
    # KL of logits with independent errors of variance v is v/2 at most.
    assert 1e-6 < found.mean_kl < 1e-4
    said = faults(dataclasses.replace(found, same_tokens=20), LIMITS["fp32"])
    assert len(said) == 2
    assert said[0].startswith("a logit is off by 0.0")
    assert said[1].startswith("mean KL is ")


def test_other_tokens_are_seen() -> None:
    found = compare(Eager(3.0), Eager(), PROMPTS)
    assert found.same_tokens < 20
    assert found.top1_agreement < 1
    assert f"{found.same_tokens} greedy tokens are the same, 20 must be" in faults(found, LIMITS["fp32"])


@pytest.mark.parametrize("weights", LIMITS)
def test_numbers_that_are_none_fail_in_every_precision(weights: str) -> None:
    nan = Parity(NEW_TOKENS, NEW_TOKENS, float("nan"), float("nan"), 1.0, 10)
    assert faults(nan, LIMITS[weights])


def test_limits_are_looser_with_fewer_bits() -> None:
    order = [LIMITS[weights].mean_kl for weights in ("fp32", "fp16", "int8", "int4")]
    assert order == sorted(order)
    assert LIMITS["fp32"] == ParityLimits(20, 1e-3, 1e-6)


def test_hashes_only(bundle: Bundle) -> None:
    shown = run(bundle.path, "--no-numbers", "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout) == {"files": 5, "hashes": "ok", "weights": "fp32", "passed": True}


def test_without_torch_it_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    shown = run(bundle.path, "--json")
    assert shown.exit_code == 0
    assert shown.stderr == "hashes only: torch is not installed; pip install 'adaptc[compile]'\n"
    assert json.loads(shown.stdout)["passed"]


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


@pytest.mark.parametrize(("kl", "code"), [(0.1, 0), (0.3, 1)])
def test_the_command_judges_by_the_bundles_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kl: float, code: int
) -> None:
    made = attention_bundle.write(tmp_path / "bundle", weights="int4")
    parity = Parity(3, 20, 9.0, kl, 0.8, 100)
    monkeypatch.setattr(verify, "parity_of", lambda *_: parity)
    shown = run(made.path, "--json")
    assert shown.exit_code == code
    result = json.loads(shown.stdout)
    assert result["passed"] == (code == 0)
    assert dataclasses.asdict(parity).items() <= result.items()
    if code:
        assert shown.stderr == (
            f"Error: {made.path}: not its source model in int4: mean KL is 0.3 nats, at most 0.25 may be\n"
        )


def test_a_bundle_without_a_tokenizer_cannot_be_compared(tmp_path: Path) -> None:
    attention_bundle.write(tmp_path / "bundle", tokenizer=False)
    with pytest.raises(BundleError, match="no tokenizer"):
        verify.prompts_of(open_bundle(tmp_path / "bundle"))


def test_of_two_graphs_the_worst_of_each_figure_counts() -> None:
    one, other = Parity(3, 20, 0.5, 0.1, 0.9, 10), Parity(5, 20, 0.25, float("nan"), 0.75, 10)
    for found in ((one, other), (other, one)):
        parity = worst(found)
        assert (parity.same_tokens, parity.max_logit_error, parity.top1_agreement) == (3, 0.5, 0.75)
        assert faults(parity, LIMITS["int4"])
    assert worst([one]) == one
