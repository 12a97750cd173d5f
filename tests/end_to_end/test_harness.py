"""lm-evaluation-harness over bundles: the same numbers and answers as its own model of transformers gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="pip install 'adaptc[eval]'")

import torch  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from adaptc.cli import main  # noqa: E402
from adaptc.compiler.cache import Cache  # noqa: E402
from adaptc.compiler.driver import compile_spec  # noqa: E402
from adaptc.errors import RequestError  # noqa: E402
from adaptc.evaluation.harness import run  # noqa: E402
from adaptc.evaluation.harness.model import BundleLM  # noqa: E402
from adaptc.runtime import Bundle  # noqa: E402
from adaptc.spec.reading import read_spec  # noqa: E402
from tests.fakes.progress import Told  # noqa: E402
from tests.models import folder, stitched  # noqa: E402

PAIRS = [
    ("the cat", " sat on the mat"),
    ("the cat", " sat"),
    *[("What is it?\nAnswer:", f" {letter}") for letter in "abc"],
    *[("the mat ", letter) for letter in "xyz"],
    ("", "naïve café"),
    ("<|start|>user\nhello<|end|>", " family"),
]
TEXTS = ["the cat sat on the mat", "", "héllo wörld " * 30]


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, at) for at, each in enumerate(arguments)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A model's folder, and its bundle in float32."""
    where = tmp_path_factory.mktemp("harness")
    spec, _ = folder.write(where, "qwen2", num_hidden_layers=2)
    return where / "model", compile_spec(read_spec(spec), where, where / "bundle", Cache(where / "cache")).bundle


@pytest.fixture(scope="module")
def models(tiny: tuple[Path, Bundle]) -> Iterator[tuple[BundleLM, HFLM]]:
    source, bundle = tiny
    theirs = HFLM(pretrained=str(source), dtype="float32", device="cpu", batch_size=1, max_length=63)
    ours = BundleLM(bundle, batch=3, threads=1)
    with torch.inference_mode():
        yield ours, theirs
    ours.close()


def test_scores_are_those_of_transformers(models: tuple[BundleLM, HFLM]) -> None:
    ours, theirs = (each.loglikelihood(asked("loglikelihood", *PAIRS)) for each in models)
    for pair, (value, best), (expected, expected_best) in zip(PAIRS, ours, theirs, strict=True):
        assert value == pytest.approx(expected, abs=1e-4), pair
        assert best == expected_best, pair
    assert len({round(value, 3) for value, _ in ours}) == len(PAIRS), "or this would compare one number"


def test_whole_texts_are_scored_in_the_same_windows(models: tuple[BundleLM, HFLM]) -> None:
    texts = [(text,) for text in TEXTS if text]
    ours, theirs = (each.loglikelihood_rolling(asked("loglikelihood_rolling", *texts)) for each in models)
    assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("until", [[], [" "], "e"])
def test_answers_are_those_of_transformers(models: tuple[BundleLM, HFLM], until: Any) -> None:
    wanted = {"until": until, "max_gen_toks": 12, "do_sample": False}
    prompts = [(text, wanted) for text in ("the cat sat", "héllo", "日本", "a", "naïve café family")]
    prompts.append(("the mat", {**wanted, "max_gen_toks": 3}))
    ours, theirs = (each.generate_until(asked("generate_until", *prompts)) for each in models)
    assert ours == theirs
    assert len(set(ours)) > 1


def test_a_long_prompt_is_cut_at_its_start_as_there(models: tuple[BundleLM, HFLM]) -> None:
    wanted = {"until": [], "max_gen_toks": 8, "do_sample": False}
    # The library leaves room for the answer in 63 tokens, a bundle in the 64 that it holds.
    ids = models[0].tok_encode("the cat sat on the mat " * 40)
    assert len(ids) > 64
    text = models[0]._reader.decode(ids[-55:])
    [ours], [theirs] = (each.generate_until(asked("generate_until", (text, wanted))) for each in models)
    assert ours == theirs
    [cut] = models[0].generate_until(asked("generate_until", ("the cat sat on the mat " * 40, wanted)))
    whole = models[0]._session.generate(ids[-56:], max_new_tokens=8)
    assert cut == whole.text


def test_a_conversation_goes_through_the_models_template(models: tuple[BundleLM, HFLM]) -> None:
    ours, theirs = models
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages)
    begun: list[Any] = [*messages, {"role": "assistant", "content": "the cat"}]
    prompt = ours.apply_chat_template(begun, add_generation_prompt=False)
    assert prompt == theirs.apply_chat_template(begun, add_generation_prompt=False)
    assert prompt.endswith("the cat")
    assert ours.tok_encode(prompt) == theirs.tok_encode(prompt)


def test_a_task_asks_through_the_library(tiny: tuple[Path, Bundle], tmp_path: Path) -> None:
    lines = [{"question": f"{n}?", "answers": ["x"]} for n in range(9)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    told = Told()
    model = BundleLM(tiny[1], batch=2, threads=1, progress=told)
    where = {"capitals": tmp_path / "q.jsonl"}
    found = run.measure(model, run.TaskOptions(("capitals", "letters"), limit=4, files=where), told)
    model.close()
    assert told.stages == ["capitals", "letters"]
    assert told.steps_of("letters")[-1] == (16, 16)
    assert [(each.name, len(each.each)) for each in found.values()] == [("right", 4), ("acc", 4)]
    assert 0 < model.written.tokens <= 4 * 12


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("capitols", {}, "tasks: no task 'capitols'; there are: capitals"),
        ("humaneval_sandboxed", {}, "runs code that the model writes; --allow-code-execution is needed"),
        ("gsm8k_file", {}, "gsm8k_file: no file; --file gsm8k_file=test.jsonl names GSM8K's"),
        ("letters", {"files": {"capitals": Path("f")}}, "file: 'capitals' is none of the tasks that are asked"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    tiny: tuple[Path, Bundle], task: str, options: dict[str, Any], said: str
) -> None:
    model = BundleLM(tiny[1], batch=1, threads=1)
    with pytest.raises(RequestError, match=said):
        run.measure(model, run.TaskOptions((task,), **options))
    model.close()


def test_a_route_that_is_not_there_is_refused(tiny: tuple[Path, Bundle]) -> None:
    with pytest.raises(RequestError, match="route: no route 'm15'"):
        BundleLM(tiny[1], route="m15")


def test_the_librarys_own_command_knows_bundles_and_our_tasks(tiny: tuple[Path, Bundle], tmp_path: Path) -> None:
    made = lm_eval.simple_evaluate(
        model="adaptc",
        model_args=f"bundle={tiny[1].path},batch=2,threads=1",
        tasks=["letters"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(run.TASKS), include_defaults=False),
        limit=3,
    )
    assert made["results"]["letters"]["sample_count"]["acc,none"] == 3 if "sample_count" in made["results"] else True
    assert made["n-samples"]["letters"]["effective"] == 3
    assert made["config"]["bundle"] == str(tiny[1].path)


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    where = tmp_path_factory.mktemp("stitched")
    spec = read_spec(stitched.write(where), ("target.max_tokens=512",))
    return compile_spec(spec, where, where / "bundle", Cache(where / "cache")).bundle


def test_the_command_fills_a_row_for_each_route(routes: Bundle, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat " * 5)
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps({"question": f"{n}?", "answers": ["x"]}) for n in range(7)))
    arguments = ["quality", str(routes.path), "--text", str(tmp_path / "text.txt"), "--window", "32", "--threads", "1"]
    arguments += ["--tasks", "capitals", "--file", f"capitals={tmp_path / 'q.jsonl'}", "--limit", "2", "--batch", "2"]
    shown = CliRunner().invoke(main, [*arguments, "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert list(found) == [*stitched.ROUTES, "router"]
    assert "bytes_per_token" not in found["router"]
    for row in found.values():
        assert row["perplexity"] > 1
        assert row["capitals"]["asked"] == 2
        assert row["capitals"]["low"] <= row["capitals"]["value"] <= row["capitals"]["high"]
    shown = CliRunner().invoke(main, [*arguments, "--route", "short"])
    assert shown.exit_code == 0, shown.output
    head, _, row = shown.stdout.splitlines()
    assert head == "| | bytes a token | perplexity | ffn_skipped | capitals |"
    assert row.startswith("| short | 1 MB, 100.0% | ")


def test_a_route_answers_as_the_session_does(routes: Bundle) -> None:
    model = BundleLM(routes, route="short", batch=2, threads=1)
    wanted = {"until": [], "max_gen_toks": 6, "do_sample": False}
    for route in stitched.ROUTES:
        [text] = model.by(route, None).generate_until(asked("generate_until", ("the cat", wanted)))
        assert text == model._session.generate("the cat", max_new_tokens=6, route=route).text
    model.close()
