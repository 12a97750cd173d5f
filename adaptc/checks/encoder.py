"""What `adaptc check` says of an encoder, and what of a spec has no meaning for one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from adaptc.checks.finding import Finding
from adaptc.checks.model_size import Size, size_of_shapes
from adaptc.errors import LoadError
from adaptc.families.encoder_model import classifies, encoder_of
from adaptc.sources.base import Source
from adaptc.sources.encoders import encoder_spec, longest_text
from adaptc.sources.tensors import parameter_shapes
from adaptc.sources.vocabulary import tokens_of
from adaptc.spec.schema import Spec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_MB = 1e6
_NO_DECODER = (
    "its encoder is compiled, which gives states of sounds; its decoder is not, as attention from one sequence to "
    "another has no form here: no text is written"
)


def encoder_findings(
    spec: Spec, name: str, source: Source, config: PretrainedConfig, sizes: list[Size]
) -> Iterator[Finding]:
    """Yield what there is to say of an encoder; its size is appended to `sizes`.

    Raises:
        LoadError: it cannot be read further.
    """
    family = encoder_of(config)
    assert family is not None, "asked of encoders alone"
    depth = getattr(config, family.depth)
    yield Finding(name, "ok", f"{config.model_type}, an encoder, {depth} layers, width {config.hidden_size}")
    yield from (Finding(name, "error", fault) for fault in _faults(spec, name))
    heads = config.num_attention_heads
    if config.hidden_size % max(1, heads):
        yield Finding(name, "error", f"{heads} heads cannot share a width of {config.hidden_size}; a divisor can")
        return
    spec_of_runtime = encoder_spec(source, spec.target.max_tokens)
    assert spec_of_runtime is not None
    if family.reads == "text":
        yield from _text(spec, name, source, config)
    else:
        yield Finding(name, "warn", _NO_DECODER)
    shapes = parameter_shapes(config)
    table = next((each for each, shape in shapes.items() if shape[0] == config.vocab_size and len(shape) == 2), "")
    sizes.append(size := size_of_shapes(shapes, spec.target, spec.models[name].dtype, (table, "")))
    yield Finding(
        name, "ok", f"{size.parameters / _MB:,.1f} M parameters, {size.bundle / _MB:,.0f} MB as {spec.target.weights}"
    )


def _faults(spec: Spec, name: str) -> Iterator[str]:
    """What an encoder cannot be compiled with."""
    if spec.target.backend != "onnxruntime" or spec.target.device != "cpu":
        yield "an encoder runs on a CPU; backend: onnxruntime and device: cpu are right"
    if spec.target.kv_cache != "fp32":
        yield f"kv_cache: {spec.target.kv_cache}: an encoder keeps no keys and values; leave it out"
    if spec.passes:
        named = ", ".join(entry.name for entry in spec.passes)
        yield f"passes: {named}: rewrites of decoders; none is right for an encoder"
    if spec.models[name].adapters:
        yield "adapters: for decoders; merge them into the weights first"


def _text(spec: Spec, name: str, source: Source, config: Any) -> Iterator[Finding]:
    """What becomes of texts, and of their tokens."""
    family = encoder_of(config)
    assert family is not None
    longest = longest_text(source, family)
    most = spec.target.max_tokens
    yield Finding(name, "ok", f"texts of up to {min(most, longest)} tokens; the model's are up to {longest}")
    if classifies(config):
        labels = [str(config.id2label[index]) for index in range(config.num_labels)]
        yield Finding(name, "ok", f"{len(labels)} labels: {', '.join(labels)[:80]}")
    else:
        sentences = source.sentences()
        then = ", then brought to length 1" if sentences.normalize else ""
        yield Finding(name, "ok", f"a text's vector: {' and '.join(sentences.pooling)} of its states{then}")
    try:
        past = max(tokens_of(source).values(), default=0) + 1 - config.vocab_size
    except LoadError as error:
        yield Finding(name, "error", str(error))
        return
    if past > 0:
        yield Finding(
            name, "error", f"the tokenizer has {past} tokens that the embedding has not; the model's own is right"
        )
