"""The matrix of folders: families of models and kinds of tokenizers, each held against transformers' own reading.

Logits are those of `from_pretrained`, ids those of `AutoTokenizer`, prompts those of `apply_chat_template`. Everything
is tiny and made on the spot.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adaptc.capture.text import capture
from adaptc.errors import LoadError
from adaptc.families.table import DECODERS
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.sources.base import Source
from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec
from adaptc.verification.outside import Place, TorchModel, auto_tokenizer, load_model, place_of
from adaptc.verification.parity import LOWERING, Passage, compare, faults
from adaptc.verification.probes import texts
from adaptc.verification.rewritten import GraphModel
from adaptc.verification.text import AutoText, ids_part, template_part
from tests.models import tiny
from tests.models.tokenizer_kinds import KINDS

TOKENS = 40
TEMPLATES = {
    "plain": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "tools": (
        "{{ bos_token }}{% if tools %}{{ tools | tojson(indent=2) }}\n{% endif %}{% for m in messages %}"
        "{% if m.role == 'narrator' %}{{ raise_exception('role ' + m.role) }}{% endif %}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}[{{ m.role }}] {{ m.content }}"
        "{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    ),
}
"""Chat templates of the forms that models have; the last reads tools and refuses roles."""


def found(folder: Path) -> Source:
    return find_source(ModelSpec(source=str(folder)), folder)


def test_every_family_of_decoders_has_a_row() -> None:
    assert {model_type for model_type, _ in tiny.FAMILIES.values()} == set(DECODERS)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_are_those_of_from_pretrained(family: str, tmp_path: Path) -> None:
    tiny.model(family).save_pretrained(tmp_path)
    source = found(tmp_path)
    place = place_of(source)
    assert place is not None
    model, _ = load_model(place)
    captured = GraphModel((capture(source.config(), source.tensors()),))
    ids = torch.randint(0, tiny.VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(2)).numpy()
    passage = Passage(ids, TOKENS, TOKENS)
    parity = compare([captured.predictions(passage)], [TorchModel(model).predictions(passage)])
    assert faults(parity, LOWERING) == []
    assert parity.positions == TOKENS


def read(folder: Path) -> tuple[Tokenizer, AutoText]:
    """A folder's tokenizer as a bundle has it, and as AutoTokenizer reads it."""
    return Tokenizer(found(folder).tokenizer_files()), AutoText(auto_tokenizer(Place(folder)), "")


CLASSES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text")
"""Families by whose names AutoTokenizer picks a class, or none; those of Cohere, GPT-2 and GPT-NeoX are not tried."""

_GEMMAS = ("gemma", "gemma2", "gemma3_text")

REFUSED = {
    *((kind, family, False) for kind in ("gpt2", "llama3", "qwen", "wordpiece") for family in _GEMMAS),
    *(("qwen", family, named) for family, named in (("llama", False), ("mistral", False), ("mistral", True))),
    *(("wordpiece", family, False) for family in ("llama", "qwen2", "qwen3", "mistral")),
    *(("wordpiece", family, True) for family in ("qwen2", "mistral")),
    *(("wordpiece", family, False) for family in ("qwen2_moe", "qwen3_moe", "olmoe")),
    *((kind, "mixtral", named) for kind in ("qwen", "wordpiece") for named in (True, False)),
    *((kind, "granitemoe", named) for kind in ("qwen", "wordpiece") for named in (True, False)),
}
"""Kind, family and whether a class is named, where the class does not read the kind's files: these are refused.

Gemma's class adds an `<unk>` that the vocabularies lack; the others find no files of theirs, and would be empty."""


@pytest.mark.parametrize("named", [True, False], ids=["class", "no class"])
@pytest.mark.parametrize("model_type", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_autotokenizer(kind: str, model_type: str, named: bool, tmp_path: Path) -> None:
    """Of every kind in a folder of each family by whose name AutoTokenizer picks a class, if the folder names none."""
    KINDS[kind](tmp_path)
    change = {"config.json": {"model_type": model_type}}
    for file in ("config.json", "tokenizer_config.json"):
        values = json.loads((tmp_path / file).read_text()) | change.get(file, {})
        if not named:
            values.pop("tokenizer_class", None)
        (tmp_path / file).write_text(json.dumps(values))
    if (kind, model_type, named) in REFUSED:
        with pytest.raises(LoadError):
            read(tmp_path)
        return
    ours, theirs = read(tmp_path)
    probes = list(texts(theirs.special, drawn=20))
    part = ids_part(ours, "", probes, theirs.ids(probes, special=True), theirs.ids(probes, special=False))
    assert part.why == ()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["gpt2", "llama2", "gemma"])
def test_prompts_are_those_of_apply_chat_template(kind: str, template: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path).joinpath("chat_template.jinja").write_text(TEMPLATES[template])
    part = template_part(*read(tmp_path))
    assert (part.verdict, part.why) == ("passed", ())
