"""A model in one GGUF file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptc.families.model import kv_heads_of
from adaptc.ir.source_grid import SourceMatrix
from adaptc.sources.base import Source, TokenIds
from adaptc.sources.config import build_config
from adaptc.sources.gguf.config import config_values, family_and_layout
from adaptc.sources.gguf.file import GgufFile, read_gguf
from adaptc.sources.gguf.grids import FLOATS, type_name
from adaptc.sources.gguf.keys import remarks_on_keys
from adaptc.sources.gguf.parameters import StoredParameter, parameter_names, read_matrix, read_parameter, zero_biases
from adaptc.sources.gguf.tokenizer import rebuilt_tokenizer
from adaptc.sources.gguf.vocabulary import read_vocabulary
from adaptc.sources.tensors import Tensors, check_shapes, parameter_shapes

if TYPE_CHECKING:
    import torch

    from adaptc.ir.weight_names import UnreadTensors


@dataclass(frozen=True, slots=True)
class GgufSource(Source):
    """A GGUF file; its weights are dequantized, so "dense" means what the file holds."""

    def config(self) -> Any:
        """See `Source.config`."""
        return self._config(read_gguf(self.path))

    def _config(self, file: GgufFile) -> Any:
        family, _ = family_and_layout(file)
        return build_config(self.origin, family.model_type, config_values(file))

    def token_ids(self) -> TokenIds:
        """See `Source.token_ids`; all ends that llama.cpp knows end an answer: also those of turns and calls."""
        vocabulary = read_vocabulary(read_gguf(self.path))
        return TokenIds(vocabulary.bos, vocabulary.ends, vocabulary.pad)

    def tokenizer_files(self) -> dict[str, bytes]:
        """See `Source.tokenizer_files`."""
        return dict(rebuilt_tokenizer(read_gguf(self.path)))

    def tensors(self) -> UnreadTensors:
        """See `Source.tensors`; peak memory beyond what the caller keeps is the largest tensor, twice."""
        file = read_gguf(self.path)
        config = self._config(file)
        wanted = parameter_shapes(config)
        stored = parameter_names(file) | zero_biases(file, wanted)
        # A matrix of one row is a vector in a file.
        shapes = {
            name: wanted[name] if wanted.get(name) == (1, *each.shape) else each.shape for name, each in stored.items()
        }
        names = check_shapes(self.origin, config, shapes)
        heads = config.num_attention_heads, kv_heads_of(config)
        readers = {
            name: partial(_read, file, each, shapes[name], *heads) for name, each in stored.items() if name in names
        }
        return Tensors(self.origin, self.dtype, readers, shapes)

    def quantization(self) -> str | None:
        """See `Source.quantization`; the ggml type of most matrices."""
        kinds = Counter(type_name(tensor) for tensor in read_gguf(self.path).tensors.values() if len(tensor.shape) > 1)
        quantized = [name for name, _ in kinds.most_common() if name not in FLOATS]
        return quantized[0] if quantized else None

    def matrices(self) -> Mapping[str, SourceMatrix]:
        """See `Source.matrices`."""
        file = read_gguf(self.path)
        config = self._config(file)
        heads = config.num_attention_heads, kv_heads_of(config)
        return {
            name: SourceMatrix(each.shape[0], partial(read_matrix, file, each.tensors[0], *heads))
            for name, each in parameter_names(file).items()
            if len(each.shape) == 2 and each.whole
        }

    def files(self) -> dict[str, Path]:
        """See `Source.files`."""
        return {self.path.name: self.path}

    def remarks(self) -> tuple[str, ...]:
        """See `Source.remarks`."""
        file = read_gguf(self.path)
        _, layout = family_and_layout(file)
        return remarks_on_keys(file, layout.architecture, layout.keys)

    def licence(self) -> str | None:
        """See `Source.licence`."""
        name: str | None = read_gguf(self.path).get("general.license", str)
        return name


def _read(
    file: GgufFile, parameter: StoredParameter, shape: tuple[int, ...], heads: int, kv_heads: int
) -> torch.Tensor:
    import numpy as np
    import torch

    values = read_parameter(file, parameter, shape, heads, kv_heads)
    # Tensors stored as float32 come as read-only views of the file, which torch will not share.
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))
