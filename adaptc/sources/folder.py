"""A model in a Hugging Face folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from adaptc.errors import LoadError, one_line
from adaptc.families.model import multimodal_of, renamed
from adaptc.families.table import family_of, supported
from adaptc.sources.base import Source, TokenIds
from adaptc.sources.config import build_config
from adaptc.sources.tensors import Tensors, check_shapes

if TYPE_CHECKING:
    import torch

_Value = TypeVar("_Value")

_INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Ends of the names of buffers that old files hold and that models compute by themselves now."""


@dataclass(frozen=True, slots=True)
class FolderSource(Source):
    """A folder with config.json, safetensors and a tokenizer."""

    def config(self) -> Any:
        """See `Source.config`."""
        values = self._json("config.json", needed=True)
        model_type = values.get("model_type")
        if "quantization_config" in values:
            method = values["quantization_config"].get("quant_method", "an unnamed method")
            raise LoadError(f"{self.origin}: its weights are quantized by {method}; give the model as it was before")
        if "auto_map" in values and family_of(model_type) is None:
            raise LoadError(
                f"{self.origin}: architecture {model_type!r} is Python code in the model's folder, which adaptc "
                f"does not run; supported: {', '.join(supported())}"
            )
        return build_config(
            self.origin, model_type, {key: value for key, value in values.items() if key != "model_type"}
        )

    def token_ids(self) -> TokenIds:
        """See `Source.token_ids`."""
        own = self._json("config.json", needed=True)
        values, text = own | self._json("generation_config.json"), own.get("text_config") or {}

        def token(name: str) -> Any:
            """The model's own setting, else that of the language model in it."""
            key = f"{name}_token_id"
            return text.get(key) if values.get(key) is None else values[key]

        eos = token("eos")
        ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return TokenIds(token("bos"), tuple(ends), token("pad"))

    def tokenizer_files(self) -> dict[str, bytes]:
        """See `Source.tokenizer_files`; a tokenizer of another form is converted by transformers."""
        if not (self.path / "tokenizer.json").exists():
            return self._converted_tokenizer()
        self._json("tokenizer.json")
        config = self._json("tokenizer_config.json")
        files = {name: self._bytes(name) for name in _TOKENIZER if (self.path / name).exists()}
        files.setdefault("tokenizer_config.json", b"{}\n")
        template = config.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
        if isinstance(template, str):
            files.setdefault("chat_template.jinja", template.encode())
        return files

    def image_processor(self) -> dict[str, Any]:
        """See `Source.image_processor`."""
        own = self._json("processor_config.json").get("image_processor")
        return own if isinstance(own, dict) else self._json("preprocessor_config.json")

    def _converted_tokenizer(self) -> dict[str, bytes]:
        import tempfile

        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            raise LoadError(
                f"{self.origin}: no tokenizer.json, and transformers cannot make one: {one_line(error)}"
            ) from error
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            files = {name: Path(folder, name) for name in _TOKENIZER}
            if not files["tokenizer.json"].exists():
                raise LoadError(
                    f"{self.origin}: its tokenizer has no fast form (tokenizer.json), which the runtime needs"
                )
            return {name: path.read_bytes() for name, path in files.items() if path.exists()}

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """See `Source.tensors`; tensors already of `dtype` are views of the mapped file."""
        from safetensors import SafetensorError, safe_open

        config = self.config()
        shapes, readers = {}, {}
        for path in self._weights().values():
            try:
                file: Any = safe_open(path, framework="pt")
                for name in file.keys():  # noqa: SIM118  (not a dict)
                    if name.endswith(_BUFFERS):
                        continue
                    part = file.get_slice(name)
                    if part.get_dtype() not in _FLOATS:
                        kinds = ", ".join(_FLOATS)
                        raise LoadError(f"{self.origin}: {name} is {part.get_dtype()}; adaptc reads {kinds}")
                    shapes[name], readers[name] = tuple(part.get_shape()), partial(file.get_tensor, name)
            except (SafetensorError, OSError) as error:
                raise LoadError(f"{self.origin}: {path.name} is damaged or cut short: {one_line(error)}") from error
        shapes, readers = _full_names(config, shapes), _full_names(config, readers)
        names = check_shapes(self.origin, config, shapes)
        return Tensors(self.origin, self.dtype, {name: readers[name] for name in readers if name in names})

    def _weights(self) -> dict[str, Path]:
        if (self.path / _INDEX).exists():
            shards = self._json(_INDEX).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
                raise LoadError(f"{self.origin}: {_INDEX} has no weight_map; the file is damaged")
            names = sorted(set(shards.values()))
        else:
            names = ["model.safetensors"]
        for name in names:
            if Path(name).name != name:
                raise LoadError(f"{self.origin}: {_INDEX} names a file outside the folder: {name}")
            if not (self.path / name).exists():
                raise LoadError(f"{self.origin}: {self._no_weights(name)}")
        return {name: self.path / name for name in names}

    def _no_weights(self, name: str) -> str:
        if pickles := sorted(path.name for path in self.path.glob("pytorch_model*.bin")):
            return f"only {pickles[0]}, a pickle, which adaptc never opens; save the model as safetensors"
        return f"{name} is missing; fetch the model again"

    def files(self) -> dict[str, Path]:
        """See `Source.files`."""
        small = (
            "config.json",
            "generation_config.json",
            "preprocessor_config.json",
            "processor_config.json",
            *_TOKENIZER,
            "tokenizer.model",
            "vocab.json",
            "merges.txt",
        )
        return self._weights() | {name: self.path / name for name in small if (self.path / name).exists()}

    def licence(self) -> str | None:
        """See `Source.licence`; it stands in the front matter of the model's README."""
        readme = self.path / "README.md"
        text = readme.read_text("utf-8", "replace") if readme.exists() else ""
        front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        licence = re.search(r"^license:\s*([\w.-]+)\s*$", front[1], re.MULTILINE) if front else None
        return licence[1] if licence else None

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise LoadError(f"{self.origin}: {name} cannot be read: {error.strerror}") from error

    def _json(self, name: str, *, needed: bool = False) -> dict[str, Any]:
        if not (self.path / name).exists():
            if needed:
                raise LoadError(f"{self.origin}: {self.path} has no {name}; a Hugging Face model folder has one")
            return {}
        try:
            values = json.loads(self._bytes(name))
        except (ValueError, RecursionError) as error:
            raise LoadError(f"{self.origin}: {name} is not JSON: {one_line(error)}") from error
        if not isinstance(values, dict):
            raise LoadError(f"{self.origin}: {name} is not a JSON object")
        return values


def _full_names(config: Any, by_name: Mapping[str, _Value]) -> dict[str, _Value]:
    """Name parameters as transformers' model does."""
    if multimodal_of(config) is not None:
        names = renamed(config, by_name)
        return {names[name]: value for name, value in by_name.items()}
    if "embed_tokens.weight" in by_name:  # saved from the model without its head
        return {f"model.{name}": value for name, value in by_name.items()}
    return dict(by_name)
