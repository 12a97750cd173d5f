"""drop_modality on language models that take images: an encoder and one decoder, which say what the whole says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

from adaptc.capture.text import capture
from adaptc.compiler.tuning import running
from adaptc.errors import PassError
from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.marks import path_of
from adaptc.ir.program import Backbone, Program
from adaptc.passes import Pipeline
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.drop_modality.decoder import text_only
from adaptc.passes.drop_modality.drop_modality import DropModality
from adaptc.passes.lower.lower import Lower
from adaptc.passes.skip_ffn.skip_ffn import SkipFfn
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.plan import Run
from adaptc.runtime.model.inserts import Inserts
from tests.close import ENGINE, FLOAT32, assert_close
from tests.models import vlm

PARTS: dict[str, tuple[str, ...]] = {"image": ("pixel_values",), "text": ("input_ids",)}
PLACES = {"llava": (16, 16), "idefics3": (4, 4), "smolvlm": (4, 4), "gemma3": (4, 4)}
FAMILIES = ("llava", "idefics3", "gemma3")


def dropped(family: str, **options: Any) -> Program:
    return Pipeline((DropModality(**{"modalities": PARTS, "stand_in": "empty", **options}),)).run(vlm.program(family))


def prompt(family: str) -> tuple[list[int], npt.NDArray[np.int64]]:
    """Token ids with two images, and where they go."""
    token = vlm.model(family).config.image_token_id
    first, second = PLACES[family]
    ids = [5, 6, *[token] * first, 7, *[token] * second, 8, 9]
    return ids, np.flatnonzero(np.array(ids) == token)


def text(ids: list[int]) -> dict[str, npt.NDArray[Any]]:
    return {"input_ids": np.array([ids]), "position_ids": np.arange(len(ids))[None]}


def test_golden(golden: Callable[[str, str], None]) -> None:
    program = vlm.program("llava", 1)
    options: dict[str, Any] = {"modalities": PARTS, "stand_in": "empty"}
    golden("drop_modality/llava", str(DropModality(**options).apply(program)))
    golden("drop_modality/llava-text", str(DropModality(**options, keep=(("text",),)).apply(program)))


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_eager(family: str) -> None:
    """The whole as captured, its parts, and its decoder with no row of features."""
    model, made = vlm.model(family, num_hidden_layers=3), dropped(family)
    ids, places = prompt(family)
    images = vlm.two_images(family)
    pixels = images["pixel_values"].reshape(2, 3, vlm.SIDE, vlm.SIDE)
    expected = vlm.logits(model, ids, images)
    whole = vlm.program(family).graphs["lm"].run({**text(ids), "pixel_values": pixels, "image_places": places})
    assert_close(whole["logits"][0], expected, **FLOAT32)
    features = made.graphs["lm.encode.image"].run({"pixel_values": pixels})["image_features"].reshape(len(places), -1)
    feeds = {**text(ids), "image_features": features, "image_places": places}
    assert_close(made.graphs["lm"].run(feeds)["logits"][0], expected, **FLOAT32)
    none = {"image_features": features[:0], "image_places": places[:0]}
    alone = vlm.logits(model, ids)
    assert_close(made.graphs["lm"].run({**text(ids), **none})["logits"][0], alone, **FLOAT32)
    assert_close(dropped(family, keep=(("text",),)).graphs["lm"].run(text(ids))["logits"][0], alone, **FLOAT32)
    assert np.abs(expected - alone).max() > 0.1  # a negative control


def test_text_alone_is_the_plain_decoder() -> None:
    """Operator by operator the graph of the language model itself: nothing of images is left in it."""
    model = vlm.model("llava", num_hidden_layers=3)
    plain = transformers.LlamaForCausalLM(model.config.text_config)
    expected = capture(plain.config, dict(plain.named_parameters(remove_duplicate=False)))
    found = text_only(vlm.program("llava").graph("lm", FxGraph))
    assert found.inputs == expected.inputs

    def operators(graph: FxGraph) -> Counter[tuple[str, str]]:
        nodes = [node for node in graph.module.graph.nodes if node.op == "call_function"]
        return Counter((str(n.target), path_of(n).replace("model.language_model", "model")) for n in nodes)

    assert operators(found) == operators(expected)
    assert text_only(expected) is expected


@pytest.mark.parametrize("family", vlm.ANY_SIZE)
def test_a_text_of_qwen2_vl_has_one_position(family: str) -> None:
    """Its three are the same without images, so the cache's kernel can rotate as for any other model."""
    graph = dropped(family, keep=(("text",),)).graph("lm", FxGraph)
    ids = [5, 6, 7, 8, 9]
    found = graph.run(text(ids))["logits"][0]  # position_ids are int64 [batch, tokens]
    assert_close(found, vlm.logits(vlm.model(family, num_hidden_layers=3), ids), **FLOAT32)


def test_input_is_untouched_and_weights_are_shared() -> None:
    before = str(vlm.program("llava"))
    made = dropped("llava")
    assert str(vlm.program("llava")) == before
    own = dict(vlm.program("llava").graph("lm", FxGraph).module.named_parameters())
    read = {}
    for name in ("lm", "lm.encode.image"):
        graph = made.graph(name, FxGraph).module
        read[name] = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
        assert all(value is own[weight] for weight, value in graph.named_parameters() if weight in read[name])
    assert not read["lm"] & read["lm.encode.image"]
    assert made.plan == (Run("lm.encode.image"), Run("lm"))
    assert [each.modalities for each in made.modal["lm"].subsets] == [("text",), ("image", "text")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stand_in": "learned"}, "stand_in: learned; nothing stands for a language model's image: empty is right"),
        ({"keep": (("image",),)}, "keep: image: a language model cannot do without text"),
        (
            {"modalities": {"image": ("pixel_values",), "text": ("position_ids",)}},
            "modalities: none has input_ids, the text of this language model",
        ),
        (
            {"modalities": {"a": ("pixel_values",), "b": ("input_ids",), "c": ("image_places",)}},
            "modalities: a, b, c; one with pixel_values and one with input_ids are right",
        ),
        (
            {"modalities": {"image": ("pixels",), "text": ("input_ids",)}},
            "modalities: image: no input 'pixels'; the model has: input_ids, position_ids, pixel_values, image_places",
        ),
    ],
)
def test_refuses_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PassError) as caught:
        DropModality(**{"modalities": PARTS, "stand_in": "empty", **options}).apply(vlm.program("llava"))
    assert str(caught.value) == message


def test_skip_ffn_comes_after_it() -> None:
    with pytest.raises(PassError, match=r"^pixel_values: its encoder has layers too"):
        SkipFfn(policy="static", warmup=0).apply(replace(vlm.program("llava"), samples={"lm": np.arange(300) % 300}))


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_blocks_of_the_decoder_are_skipped_with_images_and_without(family: str) -> None:
    """After `skip_ffn`, as eager without these blocks for the tokens that are written."""
    model = vlm.model(family, num_hidden_layers=3)
    program = dropped(family)
    backbone = Backbone("m", "llava", model.config.text_config.vocab_size, 0, (1,), None, 128)
    program = replace(
        program, samples={"lm": np.random.default_rng(0).integers(0, 300, 300)}, backbones={"lm": backbone}
    )
    encoder = program.graphs["lm.encode.image"]
    made = Pipeline((SkipFfn(policy="static", layers=(1, 2), warmup=0),)).run(program)
    made = replace(made, graphs={"lm": made.graphs["lm"]}, plan=(Run("lm"),))  # lowering the encoder would add nothing
    made = Pipeline((Lower(), KvCache(max_tokens=64), LogitsFrom())).run(made)  # `running` emits the branches
    assert list(made.gates) == ["lm"]
    gates = made.gates["lm"]
    ids, places = prompt(family)
    images, following = vlm.two_images(family), [40, 41]
    features: Any = encoder.run(images)["image_features"].reshape(len(places), -1)
    graph: Any = made.graphs["lm"]
    spec = decoder_spec(graph, backbone)
    assert isinstance(spec, DecoderSpec)
    with running({"lm": graph}, spec, gates) as [decoder]:
        for inserts, given in ((Inserts(places, features, whole=family == "gemma3"), images), (None, None)):
            decoder.prefill(0, np.array(ids), gates.thresholds[-1][1] or 0.0, inserts)
            found = np.stack([decoder.decode([token])[0].copy() for token in following])
            assert not np.frombuffer(decoder.ran(0) or b"", np.bool_).any()
            assert_close(found, _without(model, [*ids, *following], len(ids), given)[-2:], **ENGINE)
            assert np.abs(found - vlm.logits(model, [*ids, *following], given)[-2:]).max() > 0.1


def _without(model: Any, ids: list[int], first: int, images: vlm.Given | None) -> npt.NDArray[np.float32]:
    """transformers' logits where tokens from `first` on go without the feed-forward blocks of layers 1 and 2."""

    def silent(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        return torch.cat([out[:, :first], torch.zeros_like(out[:, first:])], 1)

    hooks = [model.model.language_model.layers[n].mlp.register_forward_hook(silent) for n in (1, 2)]
    found = vlm.logits(model, ids, images)
    for hook in hooks:
        hook.remove()
    return found
