"""A model in a Hugging Face folder, on disk or on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError
from adaptc.families.multimodal import MULTIMODAL, family_of, renamed
from adaptc.sources.base import SUPPORTED, Source, Tensors, TokenIds, build_config, check_shapes, one_line

if TYPE_CHECKING:
    import torch

_INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Ends of names that old files keep, of what models compute by themselves now."""
_SMALL = ["*.json", "*.jinja", "*.txt", "tokenizer.model", "README.md"]


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
        known = (*SUPPORTED, *MULTIMODAL)
        if "auto_map" in values and model_type not in known:
            raise LoadError(
                f"{self.origin}: architecture {model_type!r} is Python code in the model's folder, which adaptc "
                f"does not run; supported: {', '.join(known)}"
            )
        return build_config(
            self.origin, model_type, {key: value for key, value in values.items() if key != "model_type"}
        )

    def token_ids(self) -> TokenIds:
        """See `Source.token_ids`."""
        own = self._json("config.json", needed=True)
        values, text = own | self._json("generation_config.json"), own.get("text_config") or {}

        def said(key: str) -> Any:
            """What the model says, else what the language model in it does."""
            return text.get(key) if values.get(key) is None else values[key]

        eos = said("eos_token_id")
        ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return TokenIds(said("bos_token_id"), tuple(ends), said("pad_token_id"))

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
            made = {name: Path(folder, name) for name in _TOKENIZER}
            if not made["tokenizer.json"].exists():
                raise LoadError(
                    f"{self.origin}: its tokenizer has no fast form (tokenizer.json), which the runtime needs"
                )
            return {name: path.read_bytes() for name, path in made.items() if path.exists()}

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
        """See `Source.licence`; it stands in the model card's front matter."""
        card = self.path / "README.md"
        text = card.read_text("utf-8", "replace") if card.exists() else ""
        front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        found = re.search(r"^license:\s*([\w.-]+)\s*$", front[1], re.MULTILINE) if front else None
        return found[1] if found else None

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


@dataclass(frozen=True, slots=True)
class HubSource(Source):
    """A repository of the hub: from the local cache if it is there, else fetched; never renewed."""

    def config(self) -> Any:
        """See `Source.config`."""
        return self._fetch(weights=False).config()

    def token_ids(self) -> TokenIds:
        """See `Source.token_ids`."""
        return self._fetch(weights=False).token_ids()

    def tokenizer_files(self) -> dict[str, bytes]:
        """See `Source.tokenizer_files`."""
        return self._fetch(weights=False).tokenizer_files()

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """See `Source.tensors`."""
        return self._fetch(weights=True).tensors()

    def image_processor(self) -> dict[str, Any]:
        """See `Source.image_processor`."""
        return self._fetch(weights=False).image_processor()

    def files(self) -> dict[str, Path]:
        """See `Source.files`; fetches the weights."""
        return self._fetch(weights=True).files()

    def licence(self) -> str | None:
        """See `Source.licence`."""
        return self._fetch(weights=False).licence()

    def commit(self) -> str:
        """Return the commit that is read, 40 hex digits; the cache names its folders so."""
        return self._fetch(weights=False).path.name

    def _fetch(self, *, weights: bool) -> FolderSource:
        from huggingface_hub import errors, snapshot_download

        patterns = [*_SMALL, "*.safetensors"] if weights else _SMALL
        folder = FolderSource(self.path, self.origin, "hub", self.dtype, self.revision)

        def snapshot(*, local: bool) -> FolderSource:
            found = snapshot_download(
                self.origin, revision=self.revision, allow_patterns=patterns, local_files_only=local
            )
            return replace(folder, path=Path(str(found)))

        try:
            cached = snapshot(local=True)
            cached.files() if weights else cached.config()
        except (OSError, LoadError):
            pass
        else:
            return cached
        try:
            return snapshot(local=False)
        except errors.GatedRepoError as error:
            raise LoadError(
                f"{self.origin}: the hub asks to accept this model's terms first; then: hf auth login"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise LoadError(f"{self.origin}: the hub's repository has no revision {self.revision!r}") from error
        except errors.RepositoryNotFoundError as error:
            raise LoadError(f"{self.origin}: no such folder here, and no such repository on the hub") from error
        except (errors.HFValidationError, OSError) as error:
            raise LoadError(
                f"{self.origin}: no such folder here, not in the hub's cache, and the hub cannot be reached"
            ) from error


def _full_names(config: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Name parameters as transformers' model does."""
    if family_of(config) is not None:
        names = renamed(config, found)
        return {names[name]: value for name, value in found.items()}
    if "embed_tokens.weight" in found:  # saved from the model without its head
        return {f"model.{name}": value for name, value in found.items()}
    return found
