"""What the first argument of `adaptc compile` names: a model.yaml, or a model alone.

A model is a folder, a `.gguf` file, `package:NAME/file` or a hub id. Of a folder that holds a model.yaml and a model
the model.yaml is taken: somebody wrote it for this model. `FOLDER/config.json` names the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaptc.errors import SpecError
from adaptc.sources.folder.files import ADAPTER
from adaptc.sources.hub.names import hub_name, refuse_url
from adaptc.sources.package import PREFIX

SPEC_FILE = "model.yaml"
"""The spec that is looked for in a folder."""

CONFIG = "config.json"
"""What a model's folder has."""

_MODULE = "module:"
_GGUF_MAGIC = b"GGUF"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class SpecFile:
    """A model.yaml.

    Attributes:
        path: The file.
        note: What was passed over to take it, as a sentence; "" for nothing.
    """

    path: Path
    note: str = ""


@dataclass(frozen=True, slots=True)
class PlainModel:
    """A model alone.

    Attributes:
        source: As a spec in the current folder would name it; of an adapter, its folder.
        adapter: Whether it is the folder of an adapter, which names its base.
    """

    source: str
    adapter: bool = False


def read_argument(name: str) -> SpecFile | PlainModel:
    """Tell a model.yaml from a model.

    Args:
        name: As it was typed.

    Raises:
        SpecError: it is neither; the message says what would be right.
    """
    if name.startswith(_MODULE):
        raise SpecError(f"{name}: a function needs weights: beside it, so a {SPEC_FILE} with models: is right")
    if name.startswith(PREFIX):
        if not all(name.removeprefix(PREFIX).partition("/")):
            raise SpecError(f"{name}: expected package:NAME/file, with NAME as Python imports it")
        return PlainModel(name)
    if (why := refuse_url(name)) is not None:
        raise SpecError(why)
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise SpecError(f"{name[:100]}: this user has no home folder; give the path without ~") from error
    if path.is_dir():
        return _in_folder(name, path)
    if path.name == CONFIG and path.is_file():
        return PlainModel(str(path.parent))
    if path.suffix == ".gguf" or _is_gguf(path):
        return PlainModel(name)
    if path.suffix in _WEIGHTS:
        raise SpecError(f"{name}: one file of a model; give the folder that also has its {CONFIG}")
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        if hub_name(name) is None:
            raise SpecError(
                f"{name[:200]}: no such file or folder; a {SPEC_FILE}, a model's folder, a .gguf file or a hub id "
                "org/name is right"
            )
        return PlainModel(name)
    return SpecFile(path)


def _in_folder(name: str, folder: Path) -> SpecFile | PlainModel:
    own, config = folder / SPEC_FILE, folder / CONFIG
    if own.is_file():
        note = f"{own} is taken; {config}, which is there too, would name the model alone" if config.exists() else ""
        return SpecFile(own, note)
    if config.exists():
        return PlainModel(name)
    if (folder / ADAPTER).exists():
        return PlainModel(name, adapter=True)
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if len(files) == 1:
        return PlainModel(str(folder / files[0]))
    if files:
        raise SpecError(f"{name}: several GGUF files: {', '.join(files[:5])}; give one, as {folder / files[0]}")
    raise SpecError(f"{name}: a folder without {SPEC_FILE}, {CONFIG} or a .gguf file; give one that has one of these")


def _is_gguf(path: Path) -> bool:
    if not path.is_file():  # reading a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC
    except OSError:
        return False
