"""Two tiny models of one vocabulary and unequal width, depth, heads and head size, and what their stitches give."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from adaptc.capture.text import capture
from adaptc.ir.program import Program
from adaptc.passes.stitch.options import JoinOptions, Route, Slice
from adaptc.passes.stitch.plan import StitchPlan
from adaptc.passes.stitch.stitch import Stitch
from adaptc.runtime.bundle.plan import Run
from tests.models.tiny_tokenizer import byte_level, save

SHAPES: dict[str, dict[str, int]] = {
    "large": {"hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2},
    "small": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1},
}
HEADS = {"large": 32, "small": 16}

ROUTES = {
    "large": Route((Slice("large", (3, 6)),)),
    "small": Route((Slice("small", (1, 4)),), JoinOptions(kind="residual", rank=6, adapters=4)),
    "short": Route((Slice("large", (5, 6)),), JoinOptions()),
    "sandwich": Route((Slice("small", (1, 2)), Slice("large", (4, 6))), JoinOptions()),
}
"""The donor's own layers; another backbone's; fewer of its own; through the other backbone and back."""

SPEC = """\
version: 1
models:
  large: {source: large}
  small: {source: small}
passes:
  - stitch:
      trunk: {model: large, layer_range: [0, 3]}
      weights: stitch.safetensors
      router: {weights: router.safetensors, target_share: 0.25}
      routes:
        large: {slices: [{model: large, layer_range: [3, 6]}]}
        small:
          slices: [{sources: [{model: small, layer_range: [1, 4]}]}]
          stitch: {kind: residual, rank: 6, adapters: 4}
        short: {slices: [{model: large, layer_range: [5, 6]}], stitch: {}}
        sandwich:
          slices: [{model: small, layer_range: [1, 2]}, {model: large, layer_range: [4, 6]}]
          stitch: {}
target: {weights: fp32, max_tokens: 64, batch: 8}
"""

GPU_ROUTES = ROUTES | {"small": Route(ROUTES["small"].slices, JoinOptions(kind="residual", rank=8))}
"""The same as kernels on a GPU compute it: ranks that are multiples of 8, and no adapters."""

GPU_SPEC = SPEC.replace("rank: 6, adapters: 4", "rank: 8").replace("batch: 8", "batch: 4, device: cuda")
"""The spec for them."""


def stitch(**options: Any) -> Stitch:
    """The pass with the routes above."""
    return Stitch(**{"trunk": Slice("large", (0, 3)), "routes": ROUTES, **options})


@cache
def model(name: str, family: str = "qwen2") -> Any:
    """One of the pair, random, as transformers runs it."""
    config = transformers.CONFIG_MAPPING[family](
        vocab_size=byte_level().get_vocab_size(),
        intermediate_size=64,
        head_dim=HEADS[name],
        max_position_embeddings=128,
        tie_word_embeddings=name == "small",
        bos_token_id=0,
        eos_token_id=1,
        **SHAPES[name],
    )
    torch.manual_seed(len(name) + ord(name[0]))
    built = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.3)
    return built


@cache
def program(family: str = "qwen2") -> Program:
    """Both, captured, with random calibration text."""
    graphs = {}
    for name in SHAPES:
        built = model(name, family)
        graphs[name] = capture(built.config, dict(built.named_parameters(remove_duplicate=False)))
    ids = np.random.default_rng(0).integers(2, model("large").config.vocab_size, 2048)
    return Program(graphs, tuple(map(Run, graphs)), samples=dict.fromkeys(graphs, ids))


def weights(plan: StitchPlan) -> dict[str, torch.Tensor]:
    """Random weights for all stitches and adapters of a layout."""
    random = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=random) * 0.1 for name, shape in plan.shapes().items()}


def eager(
    route: str, ids: npt.NDArray[np.int64], given: Mapping[str, torch.Tensor], family: str = "qwen2"
) -> npt.NDArray[np.float32]:
    """Logits of a route, composed of transformers' own layers: float32 [batch, tokens, vocab]."""
    pass_ = ROUTES[route]
    runs = [("large", 0, 3), *((s.layers.model, *s.layers.layer_range) for s in pass_.slices)]
    with torch.no_grad():
        state = model("large", family).model.embed_tokens(torch.from_numpy(ids))
        before, seams = ("large", 0), 0
        for name, first, last in runs:
            if (name, first) != before:
                state = stitched(state, f"stitch.{route}.{seams}", given, passes=name == before[0])
                seams += 1
            for layer in range(first, last):
                state = run_layer(model(name, family), layer, state, adapters(name, layer, route, given))
            before = name, last
        owner = model(runs[-1][0], family)
        logits: npt.NDArray[np.float32] = owner.lm_head(owner.model.norm(state)).numpy()
    return logits


def stitched(state: torch.Tensor, stem: str, given: Mapping[str, torch.Tensor], *, passes: bool) -> torch.Tensor:
    z = state * (state.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    result = z @ given[f"{stem}.weight"].T + given[f"{stem}.bias"]
    if f"{stem}.a" in given:
        result = result + torch.nn.functional.silu(z @ given[f"{stem}.a"].T) @ given[f"{stem}.b"].T
    return state + result if passes else result


def adapters(name: str, layer: int, route: str, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """For "attention" and "mlp" B A, if the route has adapters there."""
    stem = f"{name}.model.layers.{layer}.adapter.{route}"
    parts = [part for part in ("attention", "mlp") if f"{stem}.{part}.a" in given]
    return {part: given[f"{stem}.{part}.b"] @ given[f"{stem}.{part}.a"] for part in parts}


def run_layer(owner: Any, index: int, state: torch.Tensor, extra: Mapping[str, torch.Tensor]) -> torch.Tensor:
    layer = owner.model.layers[index]
    tokens = state.shape[1]
    angles = owner.model.rotary_emb(state, torch.arange(tokens)[None])
    mask = torch.full((tokens, tokens), float("-inf")).triu(1)[None, None]
    normed = layer.input_layernorm(state)
    attended, _ = layer.self_attn(normed, position_embeddings=angles, attention_mask=mask)
    if "attention" in extra:
        attended = attended + normed @ extra["attention"].T
    state = state + attended
    normed = layer.post_attention_layernorm(state)
    fed = layer.mlp(normed)
    if "mlp" in extra:
        fed = fed + normed @ extra["mlp"].T
    return state + fed  # type: ignore[no-any-return]


def write(folder: Path, spec: str = SPEC, routes: Mapping[str, Route] = ROUTES) -> Path:
    """Write both models, their stitches and a spec; returns the spec's path."""
    from adaptc.ir.stored.stitch_file import StitchMetadata, save_stitches

    for name in SHAPES:
        model(name).save_pretrained(folder / name)
        save(byte_level(), folder / name)
    plan = stitch(routes=routes).plan(program())
    save_stitches(StitchMetadata({}, {}), halved(weights(plan)), folder / "stitch.safetensors")
    routed(folder / "router.safetensors")
    path = folder / "model.yaml"
    path.write_text(spec)
    return path


def routed(path: Path, routes: tuple[str, ...] = tuple(ROUTES)) -> None:
    """Write a random router for the pair, with random held-out prompts."""
    from adaptc.training.router import Prompts, write_router

    random = np.random.default_rng(9)
    shapes = {"w1": (8, 96), "b1": (8,), "w2": (len(routes), 8), "b2": (len(routes),)}
    found = {name: random.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
    lost = random.uniform(0, 1, (64, len(routes))).astype(np.float32)
    write_router(found, routes, Prompts(random.normal(size=(64, 96)).astype(np.float32), lost), {}, path)


def halved(given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As they are after they were stored: in float16."""
    return {name: value.half().float() for name, value in given.items()}


def greedy(
    route: str, ids: list[int], count: int, given: Mapping[str, torch.Tensor]
) -> tuple[list[int], npt.NDArray[np.float32]]:
    """What a route writes, everything recomputed at each token; and the logits of the last step."""
    all_ids = list(ids)
    for _ in range(count):
        logits = eager(route, np.array([all_ids]), given)[0, -1]
        all_ids.append(int(logits.argmax()))
    return all_ids[len(ids) :], logits
