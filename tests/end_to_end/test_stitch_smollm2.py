"""SmolLM2-135M stitched to a shallow copy, in fp32: the donor's route is the donor, others are their eager sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from adaptc import runtime
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.evaluation.reference import Reference
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.model.options import RequestOptions
from adaptc.sources.find import find_source
from adaptc.spec.reading import read_spec
from adaptc.spec.schema import ModelSpec
from tests.gpu.answers import mixed
from tests.models import shallow

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("stitch-smollm2")]

PROMPTS = ("The capital of France is", "Water boils at a lower temperature on", "def fibonacci(n):", "Once upon a time")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    folder = tmp_path_factory.mktemp("smollm2")
    spec = read_spec(shallow.write(folder), ["target.weights=fp32"])
    return compile_spec(spec, folder, folder / "bundle", Cache(folder / "cache")).bundle, folder


def test_the_donors_route_is_the_donor(made: tuple[Bundle, Path]) -> None:
    bundle, folder = made
    donor = Reference(find_source(ModelSpec(source=shallow.SMOLLM2), folder), "float32")
    with runtime.load(bundle.path) as session:
        for prompt in PROMPTS:
            assert session.tokenizer is not None
            ids = session.tokenizer.encode(prompt)
            written = session.generate(ids, max_new_tokens=20, route="large")
            assert list(written.ids) == donor.greedy(ids, len(written.ids))
            whole = np.array([*ids, *written.ids])
            logits = np.concatenate(list(session._decoder.score(whole, 64, RequestOptions(route="large"))))
            assert np.abs(logits - donor.logits(whole)).max() < 1e-3


def test_mixed_routes_write_what_their_layers_write_one_by_one(made: tuple[Bundle, Path]) -> None:
    bundle, folder = made
    source = find_source(ModelSpec(source=shallow.SMOLLM2), folder)
    large = AutoModelForCausalLM.from_config(source.config(), dtype=torch.float32).eval()
    large.load_state_dict(dict(source.tensors()), strict=False)
    small = AutoModelForCausalLM.from_pretrained(folder / "shallow", dtype=torch.float32).eval()
    found = weights(bundle)
    requests = []
    with runtime.load(bundle.path, batch=6) as session:
        for index in range(6):
            assert session.tokenizer is not None
            ids = session.tokenizer.encode(PROMPTS[index % 4])
            requests.append((ids, ("large", "small", "short")[index % 3]))
        written = mixed(session, requests, 12)
    for (prompt, route), ids in zip(requests, written, strict=True):
        whole = torch.tensor([[*prompt, *ids]])
        with torch.no_grad():
            states = large(whole, output_hidden_states=True, use_cache=False).hidden_states[12]
            logits = tail(route, states, large, small, found)
        assert logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == ids, route


def tail(route: str, h: torch.Tensor, large: Any, small: Any, found: dict[str, torch.Tensor]) -> torch.Tensor:
    owner, first = {"large": (large, 12), "small": (small, 4), "short": (large, 15)}[route]
    if route != "large":
        z = h * (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        y = z @ found[f"stitch.{route}.0.weight"].T + found[f"stitch.{route}.0.bias"]
        h = y + h if route == "short" else y
    tokens = h.shape[1]
    angles = owner.model.rotary_emb(h, torch.arange(tokens)[None])
    mask = torch.full((tokens, tokens), float("-inf")).triu(1)[None, None]
    for layer in owner.model.layers[first:]:
        h = layer(h, attention_mask=mask, position_embeddings=angles)
    return owner.lm_head(owner.model.norm(h))  # type: ignore[no-any-return]


def weights(bundle: Bundle) -> dict[str, torch.Tensor]:
    """The stitches as they are in the bundle's graphs: W is stored as it is multiplied, or transposed."""
    import onnx

    found = {}
    for name in ("tail.small", "tail.short"):
        model = onnx.load(bundle.path / bundle.manifest.graphs[name].file)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("stitch."):
                found[tensor.name] = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
    return found
