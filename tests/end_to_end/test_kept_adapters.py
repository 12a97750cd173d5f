"""Adapters that a bundle keeps: each request gives what PEFT's model of its adapter gives, whatever others ask for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptc import runtime
from adaptc.compiler import tuning
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import SpecError
from adaptc.runtime.backends.backend import DecoderOptions
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.runtime.errors import RequestError
from adaptc.runtime.loading import load_decoder
from adaptc.runtime.model.options import RequestOptions
from adaptc.spec.reading import parse_spec
from tests.cli.running import run
from tests.models.folder import greedy, scores
from tests.models.tiny import FAMILIES
from tests.sources.adapters.made import adapter, base, loaded

pytest.importorskip("peft")

IDS = [5, 9, 40, 7, 101, 33]
LONG = [*range(20, 120), *IDS]
SPEC = """
version: 1
models: {lm: {source: base, adapters: ADAPTERS}}
target: {weights: WEIGHTS, max_tokens: 160, kv_cache: CACHE}
"""
KEPT = "[{source: one, name: sql}, {source: two, name: chat.v2}]"
NAMES = {"sql": "one", "chat.v2": "two"}
JOINED = ("llama-tied", "gemma2", "phi3", "gpt2", "gpt_neox", "falcon-new", "qwen3", "cohere2", "stablelm")
"""Families whose products are joined in other ways, that are tied, have windows, or have weights that stand turned."""


def made(folder: Path, family: str = "llama") -> None:
    """A base and two adapters: of all linear layers, and of smaller rank for some of them."""
    model_type, options = FAMILIES[family]
    base(folder / "base", model_type, **{"pad_token_id": 0, "max_position_embeddings": 256, **options})
    adapter(folder / "one", folder / "base", seed=1, target_modules="all-linear")
    ends = r".*layers?\.1\..*|.*\.h\.1\.(attn|mlp|self_attention).*"
    found = r"(q_proj|down_proj|o_proj|qkv_proj|c_attn|c_proj|query_key_value|dense_4h_to_h)"
    options = {"r": 2, "use_rslora": True, "alpha_pattern": {"down_proj": 5}}
    adapter(folder / "two", folder / "base", seed=2, target_modules=rf"({ends})\.{found}", **options)


def compiled(folder: Path, adapters: str = KEPT, weights: str = "fp32", cache: str = "fp32", more: str = "") -> Path:
    text = SPEC.replace("ADAPTERS", adapters).replace("WEIGHTS", weights).replace("CACHE", cache) + more
    into = folder / f"bundle-{abs(hash(text))}"
    if not into.exists():
        compile_spec(parse_spec(text), folder, into, Cache(folder / "cache"))
    return into


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    made(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> dict[str | None, Any]:
    """PEFT's models, and transformers' own, by the adapter's name."""
    import torch
    import transformers

    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    return {None: plain.eval(), **{name: loaded(folder / "base", folder / each) for name, each in NAMES.items()}}


def test_each_request_has_its_adapter(folder: Path, theirs: dict[str | None, Any]) -> None:
    with runtime.load(compiled(folder)) as session:
        assert session.adapters == ("sql", "chat.v2")
        for name, model in theirs.items():
            for step in (False, True):
                found = session.score(IDS, adapter=name, step=step).values
                assert abs(found - scores(model, IDS)).max() < 1e-4, name
                # A negative control: no other adapter gives that, and none does not either.
                others = (scores(each, IDS) for other, each in theirs.items() if other != name)
                assert all(abs(found - other).max() > 1e-2 for other in others)
            expected = greedy(model, IDS, 12)
            stop = expected.index(1) + 1 if 1 in expected else len(expected)
            result = session.generate(IDS, max_new_tokens=12, adapter=name)
            assert [*result.ids] == expected[:stop]
            assert result.trace.adapter == name


@pytest.mark.parametrize("family", JOINED)
def test_other_families(family: str, tmp_path: Path) -> None:
    made(tmp_path, family)
    with runtime.load(compiled(tmp_path)) as session:
        for name, place in NAMES.items():
            found = session.score(IDS, adapter=name).values
            assert abs(found - scores(loaded(tmp_path / "base", tmp_path / place), IDS)).max() < 1e-4, name


@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe"])
def test_models_with_experts(family: str, tmp_path: Path) -> None:
    """Experts' matrices are no linear layers in transformers, and no targets; attention's are."""
    model_type, options = FAMILIES[family]
    base(tmp_path / "base", model_type, **options)
    adapter(tmp_path / "one", tmp_path / "base", target_modules=["q_proj", "v_proj", "o_proj"])
    with runtime.load(compiled(tmp_path, "[{source: one, name: sql}]")) as session:
        found = session.score(IDS, adapter="sql").values
    assert abs(found - scores(loaded(tmp_path / "base", tmp_path / "one"), IDS)).max() < 1e-4


@pytest.mark.parametrize(
    ("weights", "cache", "near"),
    [
        ("fp16", "fp32", 1e-3),
        ("int8", "fp32", 5e-3),
        ("int4", "fp32", 0.05),
        ("fp32", "fp16", 1e-3),
        ("int8", "int8", 0.01),
    ],
)
def test_other_weights_and_caches(folder: Path, weights: str, cache: str, near: float) -> None:
    """As near to PEFT's model as rounding lets them be, and without one the bits of a bundle without adapters."""
    with runtime.load(compiled(folder, KEPT, weights, cache)) as session:
        for name, place in NAMES.items():
            found = session.score(IDS, adapter=name, step=True).values
            assert abs(found - scores(loaded(folder / "base", folder / place), IDS)).max() < near, name
        plain = session.score(IDS).values
    if cache != "int8":  # whose scales have room for what adapters add to keys and values
        with runtime.load(compiled(folder, "[]", weights, cache)) as session:
            assert (plain == session.score(IDS).values).all()


def test_sequences_of_a_batch_write_what_they_write_alone(folder: Path) -> None:
    asked = [None, "sql", "chat.v2", "sql", None]
    prompts = [IDS[: 2 + index] for index in range(len(asked))]
    with runtime.load(compiled(folder), batch=5) as session:
        alone = [
            session.generate(ids, max_new_tokens=9, adapter=name).ids for ids, name in zip(prompts, asked, strict=True)
        ]
        together = session.generate(prompts, max_new_tokens=9, adapter=asked)
        assert [each.ids for each in together] == alone
        assert [each.trace.adapter for each in together] == asked
        one = session.generate(prompts, max_new_tokens=9, adapter="sql")
        assert [each.trace.adapter for each in one] == ["sql"] * 5

        async def at_once() -> list[tuple[int, ...]]:
            calls = (
                session.generate_async(p, max_new_tokens=9, adapter=a) for p, a in zip(prompts, asked, strict=True)
            )
            return [each.ids for each in await asyncio.gather(*(waited(call) for call in calls))]

        async def waited(call: Any) -> Any:
            return await call

        assert asyncio.run(at_once()) == alone
    with runtime.load(compiled(folder, "[]"), batch=5) as plain:
        assert plain.generate(prompts[0], max_new_tokens=9).ids == alone[0]


def test_known_prefixes_are_of_one_adapter(folder: Path) -> None:
    """Prompts that begin alike are read once, but never with what another adapter left behind."""
    with runtime.load(compiled(folder)) as session:
        order = [None, "sql", "chat.v2", "sql", None, "chat.v2"]
        found = [session.generate(LONG, max_new_tokens=6, adapter=name) for name in order]
    assert [each.trace.cached_tokens > 0 for each in found] == [False, False, False, True, True, True]
    with runtime.load(compiled(folder), prefix_bytes=0) as session:
        alone = {name: session.generate(LONG, max_new_tokens=6, adapter=name).ids for name in order}
    assert [each.ids for each in found] == [alone[name] for name in order]
    assert len(set(alone.values())) == 3


def test_speculation_leaves_requests_with_adapters_alone(folder: Path) -> None:
    repeated = [7, 8, 9] * 8
    with runtime.load(compiled(folder), batch=2) as session:
        plain = {name: session.generate(repeated, max_new_tokens=20, adapter=name).ids for name in (None, "sql")}
    with runtime.load(compiled(folder), batch=2, speculate="lookup") as session:
        found = session.generate([repeated, repeated], max_new_tokens=20, adapter=[None, "sql"])
        assert [each.ids for each in found] == [plain[None], plain["sql"]]
        assert found[1].trace.drafted == 0


def test_blocks_behind_gates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every block run they are the model with its adapter; with some skipped, rows still have their own."""
    monkeypatch.setattr(tuning, "payoff", lambda *_: Payoff(1e-3, 1.01e-3, 0.8e-3, 1))  # they pay
    gates = "passes: [skip_ffn: {policy: static, layers: [1], warmup: 2}]\n"
    bundle = compiled(folder, more=gates)
    with runtime.load(bundle, batch=3) as session:
        form = runtime.open_bundle(bundle).manifest.adapters["lm"]
        assert session.gates is not None
        assert form.dense == "lm.adapted.dense"
        for name, place in NAMES.items():
            model = loaded(folder / "base", folder / place)
            assert abs(session.score(IDS, adapter=name, budget=1.0).values - scores(model, IDS)).max() < 1e-4
        asked = ["sql", None, "chat.v2"]
        together = session.generate([IDS] * 3, max_new_tokens=8, adapter=asked, budget=0.0)
        alone = [session.generate(IDS, max_new_tokens=8, adapter=name, budget=0.0) for name in asked]
        assert [each.ids for each in together] == [each.ids for each in alone]
        assert all(each.trace.ffn_skipped > 0 for each in alone)


def test_names_that_are_not_there(folder: Path) -> None:
    with runtime.load(compiled(folder)) as session:
        wrong: tuple[Any, ...] = ("sqll", "", 3)
        for name in wrong:
            with pytest.raises(RequestError, match=r"^adapter: no adapter .*; there are: sql, chat\.v2$"):
                session.generate(IDS, adapter=name)
        with pytest.raises(
            RequestError, match=r"^adapter: 1 of them; one for each of the 2 prompts, or None, is needed$"
        ):
            session.generate([IDS, IDS], adapter=["sql"])
        with pytest.raises(RequestError, match="no adapter"):
            session.score(IDS, adapter="one")
    with (
        runtime.load(compiled(folder, "[]")) as session,
        pytest.raises(RequestError, match=r"^adapter: no adapter 'sql'; this bundle has none$"),
    ):
        session.generate(IDS, adapter="sql")


def test_merged_and_kept_together(folder: Path, theirs: dict[str | None, Any]) -> None:
    """One without a name is merged into the weights that all others are kept beside."""
    with runtime.load(compiled(folder, "[two, {source: one, name: sql, weight: 0.5}]")) as session:
        merged = session.score(IDS).values
        both = session.score(IDS, adapter="sql").values
    assert abs(merged - scores(theirs["chat.v2"], IDS)).max() < 1e-4
    with runtime.load(compiled(folder, "[two, {source: one, weight: 0.5}]")) as session:
        assert abs(session.score(IDS).values - both).max() < 1e-4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "head": (
        {"modules_to_save": ["lm_head"]},
        r"lm_head\.weight is replaced as a whole; requests choose among changes of",
    ),
    "embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, r"model\.embed_tokens is an embedding; requests"),
    "dora": ({"use_dora": True}, r"use_dora: DoRA"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_cannot_be_kept(case: str, folder: Path) -> None:
    options, message = REFUSED[case]
    if not (folder / case).exists():
        given: dict[str, Any] = {"target_modules": ["q_proj"], **options}
        adapter(folder / case, folder / "base", **given)
    with pytest.raises(SpecError, match=rf"^models\.lm: {case}: .*{message}"):
        compiled(folder, f"[{{source: {case}, name: sql}}]")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("target.device=cuda",),
            "device: cuda has no form with adapters; backend: onnxruntime with device: cpu is right",
        ),
        (("target.backend=tensorrt", "target.weights=fp16"), "backend: tensorrt has no form with adapters"),
        (("passes=[{draft_with: {model: lm}}]",), "draft_with joins models, and they are of one"),
    ],
)
def test_targets_that_cannot_keep_them(folder: Path, settings: tuple[str, ...], message: str) -> None:
    (folder / "kept.yaml").write_text(
        SPEC.replace("ADAPTERS", KEPT).replace("WEIGHTS", "fp32").replace("CACHE", "fp32")
    )
    done = run("check", str(folder / "kept.yaml"), *(f"--set={each}" for each in settings))
    assert done.exit_code != 0
    assert f"adapters sql, chat.v2: {message}" in " ".join(done.stdout.split()), done.stdout


def test_the_command_line(folder: Path) -> None:
    (folder / "kept.yaml").write_text(
        SPEC.replace("ADAPTERS", KEPT).replace("WEIGHTS", "fp32").replace("CACHE", "fp32")
    )
    checked = run("check", str(folder / "kept.yaml"))
    assert checked.exit_code == 0
    assert "adapters that requests choose among: sql (rank 4, " in " ".join(checked.stdout.split())
    bundle = compiled(folder)
    shown = run("show", str(bundle)).stdout
    assert "# adapter 2 of lm: chat.v2, rank 2, " in shown
    with runtime.load(bundle) as session:
        text = session.generate("Hello", max_new_tokens=8, adapter="sql").text
    asked = run("generate", str(bundle), "-p", "Hello", "-n", "8", "--adapter", "sql", "--no-stream")
    assert asked.stdout == f"{text}\n"
    wrong = run("generate", str(bundle), "-p", "Hello", "--adapter", "nosql")
    assert wrong.exit_code != 0
    assert "no adapter 'nosql'; there are: sql, chat.v2" in wrong.stderr


def test_the_weights_are_there_once(folder: Path) -> None:
    """Both forms read one data file; small tensors of the adapters lie in the graph."""
    kept, plain = (runtime.open_bundle(compiled(folder, each)).manifest for each in (KEPT, "[]"))
    assert kept.graphs["lm"].data == kept.graphs["lm.adapted"].data
    [file] = kept.graphs["lm"].data
    own = kept.files[kept.graphs["lm.adapted"].file].bytes - kept.files[kept.graphs["lm"].file].bytes
    # The plain bundle's file has constants of kernels for a GPU too, which do not compute with adapters.
    more = kept.files[file].bytes + own - plain.files[file].bytes
    layers = 3 * 7 * 2 * 4096  # a page for each matrix at most
    assert 0 < more < 3 * sum(each.bytes for each in kept.adapters["lm"].adapters) + layers
    assert kept.models["lm"].sha256 != plain.models["lm"].sha256


def test_numbers_of_a_mixed_step_are_those_of_solo_steps(folder: Path) -> None:
    decoder = load_decoder(runtime.open_bundle(compiled(folder)), DecoderOptions(batch=3))
    ids, asked = np.array(IDS), (None, "chat.v2", "sql")
    alone = []
    for name in asked:
        decoder.start(0, ids, RequestOptions(adapter=name))
        alone.append(decoder.decode([11])[0].copy())
    for slot, name in enumerate(asked):
        decoder.start(slot, ids, RequestOptions(adapter=name))
    together = decoder.decode([11, 11, 11]).copy()
    decoder.close()
    assert abs(together - np.stack(alone)).max() < 1e-4
