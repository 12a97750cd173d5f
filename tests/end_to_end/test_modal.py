"""From a factory in a Python file to a bundle that runs on subsets, and all that is measured of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from adaptc import runtime
from adaptc.bench.replay import is_under
from adaptc.cli import main
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import LoadError
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.runtime.multimodal.modality_gate import gate_features
from adaptc.runtime.multimodal.profile import read_profile, wilson
from adaptc.sources.find import find_source
from adaptc.sources.module import ModuleSource
from adaptc.spec.reading import read_spec
from adaptc.spec.schema import ModelSpec
from adaptc.training.modality_gate import calibration_error, logistic
from tests import touched
from tests.close import ENGINE, assert_close
from tests.models import views
from tests.opened_files import opened_with_planted

WHOLE = tuple(views.MODALITIES)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    spec = views.write(folder / "spec")
    compile_spec(read_spec(spec), spec.parent, folder / "bundle", Cache(folder / "cache"))
    views.labelled(folder / "data.npz", 200)
    views.labelled(folder / "test.npz", 200, seed=8)
    return folder


@pytest.fixture(scope="module")
def profiled(compiled: Path) -> Path:
    shutil.copytree(compiled, compiled.parent / "profiled")
    folder = compiled.parent / "profiled"
    done = run("profile", folder / "bundle", "--data", folder / "data.npz", "--threads", "1", "--largest-batch", "8")
    assert done.exit_code == 0, done.output
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_every_subset_of_the_bundle_equals_eager(compiled: Path) -> None:
    given = views.feeds(6)
    with runtime.load_modal(compiled / "bundle") as session:
        assert len(session.modal.subsets) == 7
        for subset in session.modal.subsets:
            names = [each for name in subset.modalities for each in views.MODALITIES[name]]
            answer = session.infer({name: given[name] for name in names})
            assert answer.trace.modalities == (subset.modalities,) * 6
            assert_close(answer.outputs["logits"], views.eager(given, subset.modalities), **ENGINE)


def test_verify_compares_every_subset(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run("verify", compiled / "bundle", "--base", compiled / "spec", "--json", "--threads", "1")
    assert shown.exit_code == 0, shown.stderr
    parts = {part["part"]: part for part in json.loads(shown.stdout)["parts"]}
    assert sum(name.startswith("lowering of ") for name in parts) == 7
    assert parts["capture"]["reference"] == "the factory's module, run by torch"
    assert {part["verdict"] for part in parts.values()} == {"passed"}
    lowering, loss = (parts[f"{what} of text"]["figures"]["max_logit_error"] for what in ("lowering", "loss"))
    assert loss > 10 * lowering

    shutil.copytree(compiled / "spec", tmp_path / "spec")
    [weights] = (tmp_path / "spec").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: value * 1.1 if name == "head.weight" else value for name, value in tensors.items()}, weights)
    [model] = open_bundle(compiled / "bundle").manifest.models.values()
    monkeypatch.setattr(ModuleSource, "sha256", lambda self, *_: model.sha256)
    shown = run("verify", compiled / "bundle", "--base", tmp_path / "spec", "--threads", "1")
    assert shown.exit_code == 1
    assert "weights: head.weight is off by 0.09" in shown.stderr


def test_only_files_that_the_manifest_names_are_opened(compiled: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(compiled / "bundle", tmp_path / "b")
    rows: Any = views.feeds(3)
    np.savez(tmp_path / "rows.npz", **rows)
    opened = opened_with_planted(
        bundle,
        f"import numpy as np\nfrom adaptc import runtime\nrows = dict(np.load({str(tmp_path / 'rows.npz')!r}))\n"
        f"with runtime.load_modal({str(bundle)!r}) as session:\n    session.infer(rows)",
    )
    assert len(opened) > 3


def test_weights_of_what_is_left_out_are_not_touched(compiled: Path, tmp_path: Path) -> None:
    """With every weight of the image's encoder broken, subsets without it say the same; with it, nonsense."""
    shutil.copytree(compiled / "bundle", tmp_path / "b")
    touched.break_weights(tmp_path / "b/graphs/views.encode.image.onnx", tmp_path / "b/graphs/views.data")
    given = views.feeds(3)
    with runtime.load_modal(tmp_path / "b", verify=False) as session:
        for subset in (("text",), ("sound",), ("text", "sound")):
            answer = session.infer(given, modalities=subset)
            assert_close(answer.outputs["logits"], views.eager(given, subset), **ENGINE)
        assert not any("image" in graph for graph in session.graphs.loaded)
        assert np.isnan(session.infer(given, modalities=WHOLE).outputs["logits"]).any()


def test_only_the_subsets_nodes_are_executed(compiled: Path, tmp_path: Path) -> None:
    """By ONNX Runtime's own profile of every graph that a subset loads."""
    ran: set[str] = set()
    with runtime.load_modal(compiled / "bundle") as session:
        session.infer(views.feeds(2), modalities=("text",))
        loaded = session.graphs.loaded
    features = {"ids": views.feeds(2)["ids"], "mask": views.feeds(2)["mask"]}
    for graph in loaded:
        engine = touched.profiled(compiled / f"bundle/graphs/{graph}.onnx", tmp_path / graph.replace("+", "-"))
        names = [output.name for output in engine.get_outputs()]
        features = dict(zip(names, engine.run(names, features), strict=True))
        ran |= touched.executed(engine)
    assert any(name.startswith("words") for name in ran)
    assert not any(name.startswith(("image", "sound")) for name in ran)


def test_load_gives_a_modal_session_too(compiled: Path) -> None:
    with runtime.load(compiled / "bundle") as session:
        assert type(session).__name__ == "ModalSession"
    assert runtime.open_bundle(compiled / "bundle").manifest.modal["views"].modalities["text"].inputs == ("ids", "mask")


def test_a_profile_says_what_was_measured(profiled: Path) -> None:
    profile = read_profile(open_bundle(profiled / "bundle"))
    assert profile is not None
    with np.load(profiled / "data.npz") as file:
        given = {name: file[name] for name in file.files}
    for each in profile.subsets:
        right = views.eager(given, each.modalities).argmax(1) == given["labels"]
        assert each.accuracy == pytest.approx(right.mean(), abs=0.011)  # a near tie may go either way
        assert each.low < each.accuracy < each.high
        assert list(each.seconds) == sorted(each.seconds)
    assert profile.batches == (1, 2, 4, 8)
    runtime.open_bundle(profiled / "bundle")  # its hashes still agree


def test_a_strategy_is_printed_and_drawn(profiled: Path, tmp_path: Path) -> None:
    found = json.loads(run("strategy", profiled / "bundle", "--size", "8", "--json").stdout)
    seconds = [point["seconds"] for point in found["points"]]
    assert seconds == sorted(seconds)
    assert all(sum(point["requests"].values()) == 8 for point in found["points"])
    best = max(found["points"], key=lambda point: point["accuracy"])["accuracy"]
    cheap = run("strategy", profiled / "bundle", "--size", "8", "--accuracy", str(best), "--plot", tmp_path / "s.png")
    assert cheap.exit_code == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    refused = run("strategy", profiled / "bundle", "--accuracy", "1")
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: accuracy: 1.000 cannot be reached; at most ")


def test_jobs_are_replayed(profiled: Path, tmp_path: Path) -> None:
    arguments = ("bench", profiled / "bundle", "--jobs", "6", "--data", profiled / "test.npz", "--threads", "1")
    done = run(*arguments, "--json", "--plot", tmp_path / "jobs.png")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    keys = ("throughput_ratio", "job_completion_ratio", "accuracy_full", "accuracy_adaptive")
    assert all(found[key] > 0 for key in keys)
    assert {"jobs_under_floor", "deadlines_missed"} <= set(found)
    for kind in ("saturated", "poisson", "bursty"):
        assert found[kind]["whole"]["options"].keys() == {"image+text+sound"}
        assert found[kind][found["policy"]]["jobs_expected_under_floor"] == 0
        requests = {sum(each["options"].values()) for each in found[kind].values()}
        assert len(requests) == 1
    assert (tmp_path / "jobs.png").read_bytes().startswith(b"\x89PNG")
    assert "Poisson" in run(*arguments).stdout


def test_infer_follows_the_profile(profiled: Path) -> None:
    given = views.feeds(4)
    with runtime.load_modal(profiled / "bundle") as session:
        assert session.profile is not None
        whole = session.profile.subsets[-1]
        answer = session.infer(given)
        assert answer.trace.accuracy == max(option.accuracy for option in session.options)
        cheap = session.infer(given, accuracy=0.0)
        assert cheap.trace.predicted_ms is not None
        assert cheap.trace.predicted_ms <= whole.seconds[2] * 1e3
        with session.jobs() as queue:
            assert len(queue.submit(given, accuracy=whole.accuracy - 0.05).result(30).modalities) == 4


@pytest.mark.parametrize("name", ["profile", "bench"])
def test_data_that_does_not_fit_is_a_sentence(name: str, profiled: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "bare.npz", pixels=np.zeros((2, 1, 6, 6), np.uint8))
    given: Any = views.feeds(2)
    np.savez(tmp_path / "short.npz", labels=np.zeros(3, int), **given)
    np.savez(tmp_path / "part.npz", labels=np.zeros(2, int), pixels=given["pixels"])
    more = ("--jobs", "3") if name == "bench" else ()
    for file, message in (
        ("text.npz", "cannot be read: "),
        ("bare.npz", "no 'labels'; whole numbers, one for each row, are needed"),
        ("short.npz", "2 rows and 3 labels; every modality and a label for each row are needed"),
        ("part.npz", "no text; every modality and a label for each row are needed"),
    ):
        done = run(name, profiled / "bundle", "--data", tmp_path / file, *more)
        assert done.exit_code == 1
        assert f"Error: {tmp_path / file}: {message}" in done.output


SOURCE = {"source": "module:views.py:build", "weights": "views.safetensors"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "module:views.py"}, "module:views.py: no factory; module:FILE.py:FUNCTION is right"),
        ({"source": "module:none.py:build"}, "module:none.py:build: no file {folder}/none.py"),
        ({"weights": "none.safetensors"}, "module:views.py:build: no weights {folder}/none.safetensors"),
        (
            {"weights": "views.py"},
            "module:views.py:build: weights: views.py; only .safetensors is read, which holds no code",
        ),
        ({"source": "module:views.py:bake"}, "module:views.py:bake: views.py has no function 'bake'"),
        (
            {"source": "module:views.py:model"},
            "module:views.py:model: returned Views; (module, {{input: example}}) is right",
        ),
        ({"source": "module:broken.py:build"}, "{folder}/broken.py: failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_factory_that_cannot_be_used_is_a_sentence(change: dict[str, str], message: str, compiled: Path) -> None:
    folder = compiled / "spec"
    (folder / "broken.py").write_text("1 / 0\n")
    with pytest.raises(LoadError) as caught:
        find_source(ModelSpec(**{**SOURCE, **change}), folder).build()  # type: ignore[arg-type, attr-defined]
    assert str(caught.value) == message.format(folder=folder)


def test_a_factory_that_fixes_the_batch_is_told(compiled: Path) -> None:
    from adaptc.capture.module import capture_module

    class Fixed(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.reshape(len(x), 2, 2)

    with pytest.raises(LoadError, match=r"^capture: forward fixes the batch"):
        capture_module(Fixed(), {"x": torch.zeros(1, 4)})


def test_a_gates_probabilities_are_calibrated_where_the_truth_is_logistic() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(4000, 6))
    share = 1 / (1 + np.exp(-(x @ np.array([1, -0.5, 0, 0.2, 0.3, 0]) + 0.5)))
    truth = random.random(4000) < share
    weights, bias = logistic(x[:2000], truth[:2000], 1.0)
    p = 1 / (1 + np.exp(-(x[2000:] @ weights + bias)))
    assert calibration_error(p[:, None], truth[2000:, None]) < 0.03
    assert calibration_error(np.sqrt(p)[:, None], truth[2000:, None]) > 0.06  # a negative control


def test_a_gate_is_fitted_to_the_end_where_few_rows_are_wrong() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 500)
    logits = random.normal(size=(500, 10))
    logits[np.arange(500), labels] += random.uniform(1.5, 8, 500)
    reads = gate_features({"code": random.normal(size=(500, 2))}, logits * 8 / 3)
    x = (reads - reads.mean(0)) / (reads.std(0) + 1e-6)
    truth = logits.argmax(1) == labels
    weights, bias = logistic(x, truth, 300.0)
    p = 1 / (1 + np.exp(-np.clip(x @ weights + bias, -30, 30)))
    # The bias is free, so at the optimum the mean P is the share that is right; whole Newton steps gave 0.908.
    assert truth.mean() == pytest.approx(0.934)
    assert p.mean() == pytest.approx(truth.mean(), abs=1e-5)


def test_intervals_and_floors() -> None:
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert not is_under(17, 20, 0.87, 0.01)
    assert is_under(10, 20, 0.87, 0.01)


@pytest.mark.parametrize("arguments", [("generate", "-p", "x"), ("chat",)])
def test_commands_that_write_text_refuse_it_in_one_line(arguments: tuple[str, ...], compiled: Path) -> None:
    name, *more = arguments
    done = CliRunner().invoke(main, [name, str(compiled / "bundle"), *more], input="hi\n")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "its model answers inputs of several modalities and writes no text" in done.stderr
