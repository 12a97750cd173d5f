"""What `adaptc check --explain` says of a model of an unknown family: which parts are foreign, which file to write."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from adaptc.checks.finding import Finding
from adaptc.checks.language_model import ROPE_KINDS
from adaptc.errors import AdaptcError
from adaptc.families.base import DecoderFamily, ModuleNames
from adaptc.families.table import family_of
from adaptc.ir.marks import LAYER
from adaptc.sources.base import Source
from adaptc.sources.config import LAYER_TYPES
from adaptc.sources.folder.config_keys import new_fields
from adaptc.sources.folder.files import read_object

_KNOWN = re.compile(
    r"Linear|Embedding|Conv1D|Dropout|ModuleList|.*Norm(\w*)|.*Rotary\w*|.*Attention|.*MLP|.*Layer|(?!.*(Moe|Sparse|Mamba)).*Block"
    r"|.*(GELU|SiLU|ReLU|Sigmoid|Tanh)\w*"
)
"""Classes of modules that capture, lowering and the runtime have seen."""

_OWN_ATTENTION = (
    "attention: its code takes no function of others: own_attention and a `prepare` that puts adaptc's operator in are "
    "right, as in adaptc/families/layer_norms/falcon.py"
)


def explain(name: str, source: Source) -> Iterator[Finding]:
    """Say what of a model adaptc knows, what is foreign, and which file would make a family of it.

    Args:
        name: The model's name in the spec.
        source: It; a folder with a config.json.

    Yields:
        A finding for each part; nothing for a model of a known family, or of another form.
    """
    path = source.files().get("config.json")
    values = {} if path is None else read_object(source.origin, path)
    model_type = values.get("model_type")
    if isinstance(model_type, str) and family_of(model_type) is None:
        yield from (Finding(name, level, text) for level, text in _parts(model_type, values))


def _parts(model_type: str, values: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """Level and text of each finding."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    release = f"transformers {transformers.__version__}"
    if model_type not in transformers.CONFIG_MAPPING:
        yield "error", f"{release} has no {model_type!r}; adaptc captures its models, or a Python module of yours"
        return
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        yield "error", f"{release} has {model_type!r}, and not as a decoder of text; adaptc captures these"
        return
    try:
        config, model = _built(model_type, values)
    except Exception as error:  # transformers raises whatever a config makes it
        yield "error", f"{release} does not build this model: {str(error).splitlines()[0][:200]}"
        return
    names, missing = _names(model, config)
    yield from (("error", text) for text in missing)
    takes = bool(getattr(model, "_supports_attention_backend", False))
    if not any("Attention" in type(module).__name__ for module in model.modules()):
        yield "error", "attention: its layers have none; a family's layers have one each, with a KV cache"
    elif not takes:
        yield "error", _OWN_ATTENTION
    yield from (("error", text) for text in _foreign(model, config))
    if fields := new_fields(config, values):
        yield "warn", f"config.json: {', '.join(fields)}: try each, and state those that capture follows as `keys`"
    if takes and not missing:
        yield _tried(config, DecoderFamily(model_type, names=names))
    yield "ok", _advice(model_type, names)


def _built(model_type: str, values: Mapping[str, Any]) -> tuple[Any, Any]:
    """The config, and a model of its first layer without memory."""
    import torch
    import transformers

    config = transformers.CONFIG_MAPPING[model_type](**{k: v for k, v in values.items() if k != "model_type"})
    small = copy.deepcopy(config)
    if not getattr(small, "layer_types", None):
        small.num_hidden_layers = 1
    with torch.device("meta"):
        return config, transformers.AutoModelForCausalLM.from_config(small)


def _names(model: Any, config: Any) -> tuple[ModuleNames, list[str]]:
    """What the model calls its parts, and which parts were not found."""
    import torch

    paths = {module: path for path, module in model.named_modules()}
    lists = [path for module, path in paths.items() if isinstance(module, torch.nn.ModuleList) and "." in path]
    layers = min(lists, key=lambda path: path.count("."), default="")
    decoder, _, leaf = layers.rpartition(".")
    missing = [] if layers else ["layers: no list of them in the model; adaptc stamps layers that are alike"]
    if layers and not LAYER.match(f"{layers}.0"):
        missing.append(f"layers: they are at {layers}; adaptc/ir/marks.py finds those of `layers` and `h`")
    outside = {path: module for module, path in paths.items() if path.rpartition(".")[0] == decoder and path != layers}
    norms = [path for path, module in outside.items() if re.search("norm", type(module).__name__, re.IGNORECASE)]
    table = paths.get(model.get_input_embeddings(), "")
    tables = [path for path, module in outside.items() if isinstance(module, torch.nn.Embedding) and path != table]
    head = paths.get(model.get_output_embeddings(), "lm_head")
    leaves = [path.rpartition(".")[2] for path in (table, norms[-1] if norms else "norm", tables[0] if tables else "")]
    return ModuleNames(decoder, leaf, leaves[0], leaves[1], head, leaves[2]), missing


def _foreign(model: Any, config: Any) -> Iterator[str]:
    """Modules and kinds that no pass has seen."""
    unknown = {
        type(module).__name__: path
        for path, module in reversed(list(model.named_modules()))
        if "." in path and not _KNOWN.fullmatch(type(module).__name__)
    }
    for kind, path in sorted(unknown.items()):
        yield f"{path}: a {kind}, which no family of adaptc's has"
    types = set(getattr(config, "layer_types", None) or ()) - set(LAYER_TYPES)
    if types:
        yield f"layer_types: {', '.join(sorted(types))}; adaptc captures {' and '.join(LAYER_TYPES)}"
    rope = getattr(config, "rope_parameters", None) or {}
    sets = [each for each in rope.values() if isinstance(each, dict)] or [rope]
    kinds = {str(each.get("rope_type", "default")) for each in sets} - set(ROPE_KINDS)
    if kinds:
        yield f"RoPE of kind {', '.join(sorted(kinds))}; adaptc has {', '.join(ROPE_KINDS)}"


def _tried(config: Any, family: DecoderFamily) -> tuple[Any, str]:
    """Whether a layer of each kind is captured as it is."""
    from adaptc.capture.text import exported

    try:
        module = exported(config, family)
    except (AdaptcError, LookupError, AttributeError, TypeError, ValueError) as error:
        return "error", f"a layer of each kind is not captured as it is: {str(error).splitlines()[0][:200]}"
    count = sum(node.op == "call_function" for node in module.graph.nodes)
    return "ok", f"a layer of each kind is captured as it is, in {count} operators"


def _advice(model_type: str, names: ModuleNames) -> str:
    usual = ModuleNames()
    own = [
        f"{field}={value!r}"
        for field in ModuleNames.__slots__
        if (value := getattr(names, field)) != getattr(usual, field)
    ]
    named = f", names=ModuleNames({', '.join(own)})" if own else ""
    return (
        f"the file to write is adaptc/families/decoders/{model_type}.py: {model_type.upper()} = "
        f"DecoderFamily({model_type!r}{named}); CONTRIBUTING.md, Adding a family of decoders, says the other two places"
    )
