"""A model with adapters as PEFT makes it: it reads the adapters' folders and merges them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from adaptc.errors import LoadError, foreign
from adaptc.sources.adapters.files import Adapter


def peft_version() -> str:
    """Return name and version of PEFT, for what was compared with it."""
    import peft

    return f"peft {peft.__version__}"


def merged(model: Any, adapters: Iterable[Adapter]) -> Any:
    """Return a model of transformers with adapters merged into it by PEFT.

    Args:
        model: The base; it is changed.
        adapters: In order.

    Raises:
        LoadError: PEFT is not installed, or does not merge them.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise LoadError("peft is not installed; pip install peft") from error
    for adapter in adapters:
        with foreign("peft does not merge this adapter"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on what merging a tied embedding does, which comes not so far
            wrapped = peft.PeftModel.from_pretrained(model, str(adapter.folder()))
            if adapter.weight != 1.0:
                _scale(wrapped, adapter.weight)
            model = wrapped.merge_and_unload()
    return model.eval()


def _scale(wrapped: Any, weight: float) -> None:
    """Multiply what an adapter changes.

    Raises:
        LoadError: it holds whole modules, which PEFT does not scale.
    """
    for module in wrapped.modules():
        if hasattr(module, "modules_to_save"):
            raise LoadError("peft does not scale modules that an adapter holds whole")
        if hasattr(module, "lora_A") or hasattr(module, "lora_embedding_A"):
            module.scaling["default"] *= weight
