"""A model in a Hugging Face folder."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError, one_line
from adaptc.families.sentences import Sentences
from adaptc.families.table import family_of, supported
from adaptc.ir.source_grid import SourceMatrix
from adaptc.runtime.bundle.reading import read_file
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.base import Source, TokenIds
from adaptc.sources.config import build_config
from adaptc.sources.folder.config_keys import IMPLEMENTATION, refuse_keys, unknown_keys
from adaptc.sources.folder.files import deciding_files, read_object
from adaptc.sources.folder.sentences import sentences_of
from adaptc.sources.folder.tokenizer import tokenizer_files
from adaptc.sources.folder.weights import (
    StoredWeights,
    check_headers,
    file_remarks,
    has_own_head,
    refuse_adapter,
    stored_weights,
    weight_files,
    with_tied_table,
)
from adaptc.sources.quantized.methods import method_of
from adaptc.sources.quantized.packed import Method
from adaptc.sources.tensors import Tensors, needed, without_place

if TYPE_CHECKING:
    from adaptc.ir.weight_names import UnreadTensors

_LONGEST_README = 1 << 24  # bytes


@dataclass(frozen=True, slots=True)
class FolderSource(Source):
    """A folder with config.json, safetensors and a tokenizer."""

    def config(self) -> Any:
        """See `Source.config`; a head of its own in the files unties what the config says is tied."""
        config = self._stated()
        if self._tied_in_name_only(config):
            config.tie_word_embeddings = False
        return config

    def _stated(self) -> Any:
        """The config as its file states it."""
        values = self._values()
        model_type = values.get("model_type")
        refuse_keys(self.origin, values)
        self._method()
        if "auto_map" in values and family_of(model_type) is None:
            raise LoadError(
                f"{self.origin}: architecture {model_type!r} is Python code in the model's folder, which adaptc "
                f"does not run; supported: {', '.join(supported())}"
            )
        # transformers would look for the method's own library.
        own = ("model_type", "quantization_config", "compression_config", *IMPLEMENTATION)
        return build_config(self.origin, model_type, {key: each for key, each in values.items() if key not in own})

    def _method(self) -> Method | None:
        """How the weights are quantized; None if they are floats."""
        return method_of(self.origin, self._values())

    def _tied_in_name_only(self, config: Any) -> bool:
        if not config.tie_word_embeddings:
            return False
        try:
            files = weight_files(self.origin, self.path)
        except LoadError:
            return False  # not fetched yet, or to be refused when the weights are asked for
        return has_own_head(self.origin, files, config, self._method())

    def remarks(self) -> tuple[str, ...]:
        """See `Source.remarks`."""
        config = self._stated()
        method = self._method()
        found = [*unknown_keys(config, self._values()), *file_remarks(self.path), *(method.remarks if method else ())]
        try:
            stored = self._stored(config)
        except LoadError:
            return tuple(found)
        if self._tied_in_name_only(config):
            found.append(
                "config.json says that the head is the embedding, and the weights hold another; both are kept, as "
                "transformers does (tie_word_embeddings: false would say so)"
            )
        if stored.unread:
            names = ", ".join(stored.unread[:2]) + (", …" if len(stored.unread) > 2 else "")
            found.append(
                f"{len(stored.unread)} scales of activations or of a KV cache are not read, as these are floats here: "
                f"{names}"
            )
        extra = without_place(config, stored.shapes)
        if extra:
            names = ", ".join(extra[:3]) + (", …" if len(extra) > 3 else "")
            found.append(f"{len(extra)} tensors have no place in a {config.model_type} model and are not read: {names}")
        return tuple(found)

    def token_ids(self) -> TokenIds:
        """See `Source.token_ids`."""
        own = self._values()
        text = own.get("text_config") or {}
        values = own | read_object(self.origin, self.path / "generation_config.json")

        def tokens(name: str) -> tuple[int, ...]:
            """The model's own setting, else that of the language model in it."""
            key = f"{name}_token_id"
            value = values.get(key)
            value = text.get(key) if value is None and isinstance(text, dict) else value
            several = value if isinstance(value, list) else [] if value is None else [value]
            for each in several:
                if not isinstance(each, int) or isinstance(each, bool):
                    raise LoadError(
                        f"{self.origin}: {key} is {one_line(value)[:40]}; a token's id, or a list of these, is right"
                    )
            return tuple(several)

        bos, pad = tokens("bos"), tuple(each for each in tokens("pad") if each >= 0)  # -1: none, to old files
        return TokenIds(next(iter(bos), None), tokens("eos"), next(iter(pad), None))

    def tokenizer_files(self) -> dict[str, bytes]:
        """See `Source.tokenizer_files`; transformers reads the tokenizer, whatever form it has."""
        return tokenizer_files(self.origin, self.path)

    def image_processor(self) -> dict[str, Any]:
        """See `Source.image_processor`."""
        own = read_object(self.origin, self.path / "processor_config.json").get("image_processor")
        return own if isinstance(own, dict) else read_object(self.origin, self.path / "preprocessor_config.json")

    def sentences(self) -> Sentences:
        """See `Source.sentences`."""
        return sentences_of(self.origin, self.path)

    def tensors(self) -> UnreadTensors:
        """See `Source.tensors`; tensors already of `dtype` are views of the mapped file."""
        config = self.config()
        stored = self._stored(config)
        names = needed(self.origin, config, stored.shapes)
        readers = {name: reader for name, reader in stored.readers.items() if name in names}
        return Tensors(self.origin, self.dtype, readers, stored.shapes)

    def quantization(self) -> str | None:
        """See `Source.quantization`; the method that its config names."""
        method = self._method()
        return None if method is None else method.name

    def matrices(self) -> Mapping[str, SourceMatrix]:
        """See `Source.matrices`."""
        config = self.config()
        stored = self._stored(config)
        return stored.matrices(needed(self.origin, config, stored.shapes))

    def _stored(self, config: Any) -> StoredWeights:
        stored = stored_weights(self.origin, weight_files(self.origin, self.path), config, self._method())
        return with_tied_table(config, stored)

    def files(self) -> dict[str, Path]:
        """See `Source.files`."""
        return weight_files(self.origin, self.path) | deciding_files(self.path)

    def sha256(self, progress: Progress = SILENT) -> str:
        """See `Source.sha256`; weights that are cut short are told before they are hashed."""
        check_headers(self.origin, weight_files(self.origin, self.path))
        return Source.sha256(self, progress)

    def licence(self) -> str | None:
        """See `Source.licence`; it stands in the front matter of the model's README."""
        readme = self.path / "README.md"
        text = b""
        with contextlib.suppress(OSError):
            text = read_file(readme, _LONGEST_README) if readme.is_file() else b""
        front = re.match(r"---\n(.*?)\n---", text.decode("utf-8", "replace"), re.DOTALL)
        licence = re.search(r"^license:\s*([\w.-]+)\s*$", front[1], re.MULTILINE) if front else None
        return licence[1] if licence else None

    def _values(self) -> dict[str, Any]:
        if not (self.path / "config.json").exists():
            refuse_adapter(self.origin, self.path)
        return read_object(self.origin, self.path / "config.json", needed=True)
