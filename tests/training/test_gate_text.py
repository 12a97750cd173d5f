"""Gates are trained on text that is read and chats that are written, and measured on each by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from adaptc.cli import main
from adaptc.errors import PassError, SpecError
from adaptc.ir.stored.gates_file import load_gates
from adaptc.sources.calibration_text import CalibrationText, Prose, WrittenChats
from adaptc.sources.chats import Chat, append_chats, begin_chats
from adaptc.sources.find import find_source
from adaptc.sources.vocabulary import vocabulary
from adaptc.spec.reading import read_spec
from adaptc.training.gates.measure import measure
from adaptc.training.gates.objective import GateObjective
from adaptc.training.gates.text import CountedRows, GateText, gate_text
from adaptc.training.recipe import Recipe
from tests.models import folder, tiny

WINDOW = 32


def chats(count: int, seed: int = 0) -> tuple[Chat, ...]:
    """Chats of 20 to 40 tokens, two answers in each."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ids = random.integers(2, 60, random.integers(20, 41)).tolist()
        found.append(Chat(tuple(ids), ((6, 12), (15, len(ids))), "made", ()))
    return tuple(found)


def test_each_kind_is_held_out_by_itself_and_gives_as_many_tokens(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    source = find_source(read_spec(spec).models["lm"], tmp_path)
    written = WrittenChats("chats", vocabulary(source), chats(64))
    text = CalibrationText((Prose("prose", "some words and others. " * 300), written), 1 << 20)
    found = gate_text(text, source, WINDOW, seed=0)
    prose, answers = found.train
    assert prose.counts.all()
    assert found.scored.counts.all()
    assert 0 < answers.counts.mean() < 1
    assert found.written is not None
    assert len(found.written.ids) == 8, "a chat of eight, one in a sequence"
    held = {tuple(row[:20]) for row in found.written.ids.tolist()}
    assert not held & {tuple(row[:20]) for row in answers.ids.tolist()}
    assert all(row[6] and not row[5] for row in found.written.counts.tolist()), "an answer counts, a prompt does not"
    some = found.first(400)
    whole = some.counts.all(1)
    assert some.counts[whole].sum() == pytest.approx(200, abs=WINDOW)
    assert some.counts[~whole].sum() == pytest.approx(200, abs=WINDOW)
    assert gate_text(replace(text, parts=(written,)), source, WINDOW, seed=0).scored.counts.any()


def test_chats_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    source = find_source(read_spec(spec).models["lm"], tmp_path)
    known = vocabulary(source)
    for part, error, match in (
        (WrittenChats("c", "another", chats(64)), SpecError, "c: written in another vocabulary"),
        (WrittenChats("c", known, chats(7)), PassError, "7 chats; at least 8"),
    ):
        with pytest.raises(error, match=match):
            gate_text(CalibrationText((part,), 1 << 20), source, WINDOW, seed=0)


def test_thresholds_are_those_of_the_tokens_that_count() -> None:
    """Answers differ from prompts in the tokens that they use, so thresholds of all tokens would be others."""
    random = np.random.default_rng(1)
    ids = random.integers(0, tiny.VOCAB // 2, (64, WINDOW))
    counts = np.zeros(ids.shape, np.bool_)
    ids[:, 16:], counts[:, 16:] = ids[:, 16:] + tiny.VOCAB // 2, True
    every = CountedRows(ids, np.ones(ids.shape, np.bool_))
    recipe = Recipe(window=WINDOW, start=2048, rows=16, bfloat16=False)
    objective = GateObjective(
        tiny.fx("llama"), GateText((every,), every, CountedRows(ids, counts)), recipe, layers=(1, 2), rank=4, warmup=4
    )
    objective.start()
    answers = CountedRows(ids, counts)
    found = measure(objective, answers)
    assert measure(objective, every).thresholds != found.thresholds
    assert [share for share, _ in found.loss[1:]] == [share for share, _ in found.thresholds]
    assert found.loss[0] == (0.0, 0.0)
    assert 0 < found.loss[1][1] < found.loss[-1][1]
    share, level = found.thresholds[4]
    feeds, positions = objective.feeds(answers)
    levels = torch.full(ids.shape, -np.inf)
    levels[:, 16:] = level
    dense = objective.dense.module(feeds, positions)[0].detach().log_softmax(-1)
    gated, *logits = (each.detach() for each in objective.module(feeds, positions, levels))
    skipped = torch.stack([each[:, 16:] < level for each in logits]).float().mean()
    assert float(skipped) * 2 / 3 == pytest.approx(share, abs=1e-4)
    kl = (dense.exp() * (dense - gated.log_softmax(-1))).sum(-1)[:, 16:-1]
    assert float(kl.mean()) == pytest.approx(found.loss[5][1], rel=1e-3)


def test_a_spec_with_prose_and_chats_gives_both_tables(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    source = find_source(read_spec(spec).models["lm"], tmp_path)
    begin_chats(tmp_path / "chats.jsonl", {"vocabulary": vocabulary(source)})
    append_chats(tmp_path / "chats.jsonl", chats(160))
    (tmp_path / "prose.txt").write_text("a text of words that follow each other, " * 100)
    spec.write_text(
        spec.read_text()
        + "passes: [skip_ffn: {gates: gates.safetensors, cheap: low_rank(4), warmup: 4}]\n"
        + "calibration: {text: [prose.txt, chats.jsonl]}\n"
    )
    done = CliRunner().invoke(main, ["train", str(spec), "--steps", "3", "--window", str(WINDOW), "--start", "1024"])
    assert done.exit_code == 0, done.stderr
    assert "KL to dense, nats a token (held-out answers)" in done.stdout
    metadata, _ = load_gates(tmp_path / "gates.safetensors")
    assert metadata.written
    assert metadata.written != metadata.thresholds
    assert [share for share, _ in metadata.written_loss[1:]] == [share for share, _ in metadata.written]
    assert set(json.loads(json.dumps(metadata.training["held_out_tokens"]))) == {"scored", "written"}
    # The same gates on other chats: thresholds are others, weights are not.
    _, weights = load_gates(tmp_path / "gates.safetensors")
    begin_chats(tmp_path / "others.jsonl", {"vocabulary": vocabulary(source)})
    append_chats(tmp_path / "others.jsonl", chats(16, seed=1))
    again = ["--measure-only", "--window", str(WINDOW), "--set", "calibration.text=[prose.txt,others.jsonl]"]
    done = CliRunner().invoke(main, ["train", str(spec), "-o", str(tmp_path / "again.safetensors"), *again])
    assert done.exit_code == 0, done.stderr
    measured, same = load_gates(tmp_path / "again.safetensors")
    # The same prose is held out; only the codes of the file lie between.
    np.testing.assert_allclose(measured.thresholds, metadata.thresholds, rtol=0.02, atol=0.01)
    assert measured.written != metadata.written
    assert measured.training["curve"] == metadata.training["curve"]
    assert measured.training["measured"]["text"] == "prose.txt, others.jsonl"
    assert all(torch.allclose(weights[name], same[name], rtol=1e-6) for name in weights)
