"""Chat templates of folders, wherever they lie: a bundle's prompts are those of transformers on the folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file

from adaptc.errors import LoadError
from adaptc.runtime.errors import RequestError
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.sources.chat_templates import template_faults
from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec
from tests.models import vlm
from tests.models.chat_templates import CHATML, HEADERS, TOOL_USE
from tests.models.tokenizer_kinds import KINDS

ASK = [{"role": "user", "content": "What time is it?"}]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
NAMED = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": TOOL_USE}]


def source(folder: Path) -> Any:
    return find_source(ModelSpec(source=str(folder)), folder)


def change(path: Path, **values: Any) -> None:
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | values))


def in_config(folder: Path, template: Any) -> None:
    change(folder / "tokenizer_config.json", chat_template=template)


def in_files(folder: Path, **templates: str) -> None:
    for name, text in templates.items():
        path = folder / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def both(folder: Path) -> None:
    in_config(folder, NAMED)
    in_files(folder, default=HEADERS)


def tokens_named_elsewhere(folder: Path) -> None:
    in_config(folder, "{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}{{ image_token is defined }}")
    change(folder / "special_tokens_map.json", unk_token={"content": "<|im_end|>", "lstrip": False})
    change(folder / "tokenizer_config.json", extra_special_tokens={"image_token": "<|im_start|>"})


def saved_again(folder: Path) -> None:
    in_config(folder, NAMED)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "additional_chat_templates/tool_use.jinja").is_file()


FORMS: dict[str, Callable[[Path], None]] = {
    "a text in the config": lambda folder: in_config(folder, CHATML),
    "a list in the config": lambda folder: in_config(folder, NAMED),
    "a file": lambda folder: in_files(folder, default=HEADERS),
    "files by name": lambda folder: in_files(folder, default=CHATML, tool_use=TOOL_USE, rag=HEADERS),
    "a file and the config": both,
    "tokens named elsewhere": tokens_named_elsewhere,
    "saved by transformers": saved_again,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return KINDS["qwen"](tmp_path / "m")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_prompts_are_those_of_autotokenizer(form: str, tools: Any, folder: Path) -> None:
    FORMS[form](folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer(source(folder).tokenizer_files())
    wanted = theirs.apply_chat_template(ASK, tools=tools, tokenize=False, add_generation_prompt=True)
    if tools and form in ("a text in the config", "tokens named elsewhere"):
        with pytest.raises(RequestError, match=r"^tools: this model's chat template does not use tools"):
            ours.render(ASK, {"tools": tools})
        return
    prompt = ours.render(ASK, {} if tools is None else {"tools": tools})
    assert prompt == wanted
    ids = theirs.apply_chat_template(ASK, tools=tools, add_generation_prompt=True)["input_ids"]
    assert ours.encode(prompt, special=False) == ids


@pytest.mark.parametrize("form", FORMS)
def test_every_template_is_in_the_sources_hash(form: str, folder: Path) -> None:
    save_file({"weight": np.ones(3, np.float32)}, folder / "model.safetensors")
    before = source(folder).sha256()
    FORMS[form](folder)
    between = source(folder).sha256()
    for path in (*folder.glob("*.jinja"), *folder.glob("additional*/*.jinja")):
        path.write_text(path.read_text() + " ")
    change(folder / "tokenizer_config.json", chat_template="x")
    assert len({before, between, source(folder).sha256()}) == 3


def test_named_templates_are_files_of_the_bundle(folder: Path) -> None:
    in_config(folder, NAMED)
    files = source(folder).tokenizer_files()
    assert files["chat_template.jinja"] == CHATML.encode()
    assert files["additional_chat_templates/tool_use.jinja"] == TOOL_USE.encode()
    assert b"chat_template" not in files["tokenizer_config.json"]


def test_a_processors_template_is_that_of_a_model_that_takes_images(tmp_path: Path) -> None:
    vlm.write(tmp_path, "llava")
    change(tmp_path / "model/chat_template.json", chat_template=HEADERS)
    change(
        tmp_path / "model/processor_config.json",
        processor_class="LlavaProcessor",
        image_processor={"image_processor_type": "CLIPImageProcessor"},
        patch_size=2,
    )
    (tmp_path / "model/preprocessor_config.json").unlink()
    theirs = transformers.AutoProcessor.from_pretrained(tmp_path / "model")
    wanted = theirs.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    assert Tokenizer(source(tmp_path / "model").tokenizer_files()).render(ASK) == wanted
    in_files(tmp_path / "model", tool_use=TOOL_USE)
    with pytest.raises(ValueError, match="conflicting files"):
        transformers.AutoProcessor.from_pretrained(tmp_path / "model")
    with pytest.raises(LoadError, match=r"chat_template\.json beside additional_chat_templates/"):
        source(tmp_path / "model").tokenizer_files()


def test_the_old_file_serves_a_model_of_text_that_has_no_other(folder: Path) -> None:
    change(folder / "chat_template.json", chat_template=HEADERS)
    assert source(folder).tokenizer_files()["chat_template.jinja"] == HEADERS.encode()
    in_config(folder, CHATML)
    assert source(folder).tokenizer_files()["chat_template.jinja"] == CHATML.encode()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: in_config(folder, [{"name": "../x", "template": "a"}]), "Invalid chat template name: '../x'"),
        (lambda folder: in_config(folder, [{"name": "a"}]), "transformers cannot read its tokenizer: "),
        (lambda folder: in_config(folder, 5), "chat template 'default' is int; a named text"),
        (lambda folder: change(folder / "chat_template.json", x=1), "chat_template.json has no chat_template, a text"),
        (lambda folder: (folder / "chat_template.json").write_text("["), "chat_template.json is not JSON"),
    ],
)
def test_refuses_templates_of_another_form(write: Callable[[Path], object], message: str, folder: Path) -> None:
    write(folder)
    with pytest.raises(LoadError, match=message) as error:
        source(folder).tokenizer_files()
    assert "\n" not in str(error.value)


def test_check_says_what_is_wrong_with_a_template() -> None:
    good, bad = CHATML.encode(), b"{% for %}"
    assert list(template_faults({"chat_template.jinja": good})) == []
    assert list(template_faults({})) == ["no chat template: generate works, chat does not"]
    [fault] = template_faults({"chat_template.jinja": good, "additional_chat_templates/x.jinja": bad})
    assert fault.startswith("tokenizer/additional_chat_templates/x.jinja: not a chat template: ")
