"""Files of trained parts: safetensors whose metadata says what the part is and where it comes from.

Gates, stitches and routers are stored so. Each kind of file has a key of its own in the safetensors header, under which
a dataclass lies as JSON; keys with a default may be missing there, as in files of an older adaptc.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from adaptc.errors import BundleError, LoadError
from adaptc.runtime.bundle.files.replace import write_whole
from adaptc.runtime.bundle.strict_json import dumps, loads
from adaptc.runtime.safetensors_file import read_safetensors

if TYPE_CHECKING:
    import torch

Metadata = TypeVar("Metadata")
Array = npt.NDArray[Any]


def save_trained(path: Path, key: str, metadata: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a file of trained parts; the file that was there stays until the new one is whole.

    Args:
        path: The file.
        key: Key of its kind in the header.
        metadata: A dataclass.
        tensors: Contiguous, on the CPU, in the dtypes they are stored in.
    """
    from safetensors.torch import save

    write_whole(path, save(dict(tensors), metadata={key: dumps(metadata)}))


def load_trained(path: Path, key: str, kind: type[Metadata], noun: str) -> tuple[Metadata, dict[str, Array]]:
    """Read a file of trained parts.

    Args:
        path: The file.
        key: Key of its kind in the header.
        kind: Dataclass of its metadata.
        noun: What the file holds, for messages: "gates".

    Returns:
        The metadata, and the tensors as read-only arrays in their stored dtypes, of bfloat16 as float32.

    Raises:
        LoadError: the file is missing, damaged, or of another kind.
    """
    try:
        about, stored = read_safetensors(path.read_bytes())
    except FileNotFoundError:
        raise LoadError(f"{path}: no such file; `adaptc train` makes one") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: cannot be read as {noun} ({error}); a file of `adaptc train` is right") from error
    text = about.get(key)
    if text is None:
        raise LoadError(f"{path}: no metadata of {noun} in it; a file of `adaptc train` is right")
    try:
        return loads(kind, text, defaults=True), stored
    except BundleError as error:
        raise LoadError(f"{path}: metadata: {error}; train again") from error


def check_finite(path: Path, tensors: Mapping[str, Array]) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        LoadError: a tensor has such a value.
    """
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise LoadError(f"{path}: {name} has NaN or infinite values; train again")
