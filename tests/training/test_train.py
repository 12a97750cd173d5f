"""Training of gates: it starts well, gets better, goes on after a kill, and says what it did."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from adaptc.cli import main
from adaptc.errors import LoadError, PassError
from adaptc.ir.stored.gates_file import load_gates
from adaptc.passes.skip_ffn.importance import decisions
from adaptc.passes.skip_ffn.skip_ffn import SkipFfn
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.training.gates import cheap_paths
from adaptc.training.gates.measure import gates_metadata
from adaptc.training.gates.objective import GateObjective, gate_training
from adaptc.training.gates.start import gate
from adaptc.training.gates.text import GateText
from adaptc.training.loop import Training
from adaptc.training.recipe import Recipe
from tests.fakes.progress import Told
from tests.models import folder, tiny

RECIPE = Recipe(steps=6, rows=4, window=32, learning_rate=3e-3, least=0.2, most=0.5, start=512, bfloat16=False)


def text(tokens: int = 4096) -> Any:
    """A text that can be learned: each token mostly decides the next."""
    random = np.random.default_rng(0)
    ids = np.zeros(tokens, np.int64)
    for at in range(1, tokens):
        ids[at] = (ids[at - 1] * 7 + 3) % tiny.VOCAB if random.random() < 0.8 else random.integers(tiny.VOCAB)
    return ids


def trainer(recipe: Recipe = RECIPE, tokens: int = 4096, **changed: Any) -> Training[GateObjective]:
    options: dict[str, Any] = {"layers": (1, 2), "rank": 8, "warmup": 4}
    plain = GateText.plain(text(tokens), recipe.window)
    return gate_training(GateObjective(tiny.fx("llama"), plain, recipe, **(options | changed)))


def block(random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Inputs and results of a block, [1, 2000, 24], and its weights; four of 64 neurons do nearly everything."""
    n = torch.randn(2000, 24, generator=random)
    own = [torch.randn(shape, generator=random) / 5 for shape in ((64, 24), (64, 24), (24, 64))]
    own[2][:, 4:] *= 0.02
    y = (torch.nn.functional.silu(n @ own[0].T) * (n @ own[1].T)) @ own[2].T + 3.0
    return n[None], y[None], own


def test_a_cheap_path_is_found_where_there_is_one() -> None:
    random = torch.Generator().manual_seed(1)
    n, y, own = block(random)
    costs = cheap_paths.metric(torch.randn(1, 500, 24, generator=random))
    begun = cheap_paths.begun(n, y, costs, [own], 4)
    assert {float(row[0]) for row in begun.gate[0]} == {float(row[0]) for row in own[0][:4]}
    path = cheap_paths.fitted(begun, n, y, costs, random)
    assert float((path.result(0, n[0]) - y[0]).square().mean()) < 0.05 * float(y.var())


def test_a_cheap_path_is_right_where_it_counts() -> None:
    """A neuron that must give one thing for some tokens and its opposite for the others goes with those that count."""
    random = torch.Generator().manual_seed(3)
    n, _, [gate, up, down] = block(random)
    counts = n[0, :, 0] > 0.5
    given = (torch.nn.functional.silu(n @ gate[:1].T) * (n @ up[:1].T)) @ down[:, :1].T
    y = torch.where(counts[:, None], given, -given)
    costs = torch.eye(24)[None]
    even = cheap_paths.fitted(cheap_paths.begun(n, y, costs, [(gate, up, down)], 1), n, y, costs, random)
    there = cheap_paths.fitted(even, n, y, costs, random, counts[None].float() + 0.01)

    def error(paths: cheap_paths.CheapPaths, rows: torch.Tensor) -> float:
        return float((paths.result(0, n[0][rows]) - y[0][rows]).square().mean())

    assert error(there, counts) < 0.2 * error(even, counts)
    assert error(there, ~counts) > error(even, ~counts)


def test_an_error_in_a_direction_that_matters_costs_more() -> None:
    slopes = torch.zeros(1, 100, 3)
    slopes[0, :, 0], slopes[0, :, 1] = 2.0, 2.0
    [costs] = cheap_paths.metric(slopes)
    along, across, nowhere = (torch.tensor(e) for e in ([1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 1.0]))
    cost = [float(e @ costs @ e) for e in (along, across, nowhere)]
    assert cost[0] > 10 * cost[1]
    assert cost[1] == pytest.approx(2 * cheap_paths.EVEN)
    assert cost[2] == pytest.approx(cheap_paths.EVEN)
    assert float(costs.diagonal().mean()) == pytest.approx(1.0)


def test_a_gate_predicts_the_loss() -> None:
    random = torch.Generator().manual_seed(2)
    x = torch.randn(4000, 16, generator=random)
    expected = (x[:, 3] * 1.5 - 2).exp()
    loss = expected * torch.empty(4000).exponential_(generator=random)
    weight, bias = gate(x, loss)
    logits = (x @ weight + bias)[:, 0]
    assert float(torch.corrcoef(torch.stack([logits, expected.log()]))[0, 1]) > 0.95
    assert abs(float(logits.exp().mean() / loss.mean()) - 1) < 0.3


def test_training_helps_and_leaves_the_model_alone() -> None:
    before = {name: p.clone() for name, p in tiny.fx("llama").module.named_parameters()}
    training = trainer(dataclasses.replace(RECIPE, steps=60, learning_rate=1e-2, least=0.5, most=0.5))
    training.objective.start()
    for name, weight in training.objective.weights().items():
        weight.data *= 0.0 if ".cheap.down" in name else 1.0
    told = Told()
    training.run(told)
    losses = [loss for _, loss in training.curve]
    assert told.steps_of("") == [(done, 60) for done in range(61)]
    assert np.mean(losses[-15:]) < 0.8 * np.mean(losses[:15])
    assert told.notes[-1].startswith(f"loss {np.mean(losses[-10:]):.4f}, ")
    shares = [float(note.split()[2].rstrip("%")) / 100 for note in told.notes[1:]]
    assert all(0 <= share <= 2 / 3 for share in shares)
    assert all(torch.equal(p, before[name]) for name, p in tiny.fx("llama").module.named_parameters())


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = trainer()
    whole.objective.start()
    whole.run()
    first = trainer()
    first.objective.start()

    with pytest.raises(KeyboardInterrupt):
        first.run(Told(stop_at=4), tmp_path / "c", every=3)
    second = trainer()
    assert second.resume(tmp_path / "c")
    assert second.step == 3
    second.run()
    assert second.curve == whole.curve
    assert all(
        torch.equal(weight, whole.objective.weights()[name]) for name, weight in second.objective.weights().items()
    )


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    training = trainer()
    training.objective.start()
    training.run(checkpoint=tmp_path / "c")
    assert not trainer().resume(tmp_path / "none")
    with pytest.raises(LoadError, match="another recipe"):
        trainer(dataclasses.replace(RECIPE, seed=1)).resume(tmp_path / "c")
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-7])
    with pytest.raises(LoadError, match="cannot be read"):
        trainer().resume(tmp_path / "c")


def test_the_metadata_says_what_the_gates_do(tmp_path: Path) -> None:
    from adaptc.ir.stored.gates_file import save_gates

    training = trainer(dataclasses.replace(RECIPE, start=4096), tokens=16384)
    training.objective.start()
    training.run()
    metadata = gates_metadata(training, "tiny", "", {"text": "made up"})
    shares = [share for share, _ in metadata.thresholds]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.05, abs=0.02)
    assert shares[-1] > 0.4
    assert metadata.perplexity[0] == (0.0, 1.0)
    assert metadata.training["text"] == "made up"
    save_gates(metadata, dict(training.objective.weights()), tmp_path / "g")
    assert load_gates(tmp_path / "g")[0] == metadata
    # On text of the same kind the shares are those of the metadata.
    graph = (
        SkipFfn(gates=str(tmp_path / "g"), warmup=4)
        .apply(tiny.program("llama"))
        .graph("lm", type(training.objective.dense))
    )
    for share, threshold in metadata.thresholds:
        ran = decisions(graph, training.objective.text.train[0].ids[:32], threshold, 4)
        assert float((~ran).mean()) * 2 / 3 == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"warmup": 32}, "warmup: 32; less than"),
        ({"rank": 65}, r"^cheap: low_rank\(65\); at most a block's own inner width, low_rank\(64\), is right$"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(changed: dict[str, Any], match: str) -> None:
    options: dict[str, Any] = {"layers": (1, 2), "rank": 8, "warmup": 4}
    plain = GateText.plain(text(), RECIPE.window)
    with pytest.raises(PassError, match=match):
        GateObjective(tiny.fx("llama"), plain, RECIPE, **(options | changed))


def test_a_short_text_is_refused() -> None:
    with pytest.raises(PassError, match="200 tokens; at least 256"):
        GateText.plain(text(200), 32)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_from_a_spec_to_a_bundle(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    spec.write_text(
        spec.read_text() + "passes:\n  - skip_ffn: {gates: g/gates.safetensors, cheap: low_rank(4), warmup: 4}\n"
    )
    missing = run("compile", spec, "-o", tmp_path / "b", "--cache-dir", tmp_path / "cache")
    assert missing.exit_code == 1
    assert "no such file; `adaptc train` makes one" in missing.stderr
    options = ("--steps", "12", "--rows", "2", "--window", "32", "--cache-dir", tmp_path / "cache")
    done = run("train", spec, *options, "--sample", "600", "--json")
    assert done.exit_code == 0, done.stderr
    metadata = json.loads(done.stdout)
    assert (metadata["blocks"], metadata["rank"]) == (3, 4)
    assert metadata["training"]["sampled_tokens"] == 600
    assert not list(tmp_path.glob("g/*.checkpoint"))
    training = run("compile", spec, "-o", tmp_path / "b", "--cache-dir", tmp_path / "cache", "--json")
    assert training.exit_code == 0, training.stderr
    manifest = open_bundle(tmp_path / "b").manifest
    assert next(record.name for record in manifest.passes) == "skip_ffn"
    assert set(manifest.gate_verdicts) == {"lm"}
    # Other gates, another bundle: the file's content is part of what the cache goes by.
    again = run("train", spec, *options, "--seed", "3", "--restart")
    assert again.exit_code == 0, again.stderr
    assert again.stdout.startswith("blocks skipped  threshold  perplexity / dense")
    assert json.loads(run("compile", spec, "-o", tmp_path / "b", "--json").stdout) is not None


def test_gates_without_cheap_paths_are_fitted_alone(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    spec.write_text(spec.read_text() + "passes: [skip_ffn: {gates: gates.safetensors, cheap: identity, warmup: 4}]\n")
    done = run("train", spec, "--steps", "12", "--window", "32", "--start", "1024", "--json")
    assert done.exit_code == 0, done.stderr
    metadata, weights = load_gates(tmp_path / "gates.safetensors")
    assert metadata.rank == json.loads(done.stdout)["rank"] == 0
    assert metadata.thresholds
    assert {name.partition(".skip.")[2] for name in weights} == {"gate.weight", "gate.bias"}


@pytest.mark.parametrize(
    ("passes", "text"),
    [
        ("[]", "nothing to train"),
        ("[skip_ffn: {policy: static}]", "nothing to train"),
        ("[skip_ffn]", "nothing to train"),
    ],
)
def test_a_spec_without_gates_to_train_is_refused(passes: str, text: str, tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    spec.write_text(spec.read_text() + f"passes: {passes}\n")
    done = run("train", spec)
    assert done.exit_code == 1
    assert text in done.stderr
