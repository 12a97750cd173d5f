"""`adaptc check --explain`: what it says of families that adaptc does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adaptc.cli import main
from tests.models import folder, tiny


def explained(tmp_path: Path, model_type: str, **config: Any) -> dict[str, list[str]]:
    """What `check --explain` says of the model, by level."""
    spec, _ = folder.write(tmp_path)
    values = {**tiny.COMMON, "pad_token_id": None, "model_type": model_type, **config}
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    result = CliRunner().invoke(main, ["check", str(spec), "--explain", "--json"])
    assert result.exit_code == 1
    found: dict[str, list[str]] = {}
    for finding in json.loads(result.stdout)["findings"]:
        if finding["about"] == "lm":
            assert "\n" not in finding["text"]
            found.setdefault(finding["level"], []).append(finding["text"])
    assert "is not supported; supported: " in found["error"][0]
    return found


def test_of_a_family_that_needs_a_file_alone(tmp_path: Path) -> None:
    found = explained(tmp_path, "seed_oss", attention_out_bias=True)
    assert len(found["error"]) == 1
    assert found["warn"] == [
        "config.json: attention_out_bias: try each, and state those that capture follows as `keys`"
    ]
    assert found["ok"][0].startswith("a layer of each kind is captured as it is, in ")
    assert found["ok"][1].startswith(
        "the file to write is adaptc/families/decoders/seed_oss.py: SEED_OSS = DecoderFamily('seed_oss'); CONTRIB"
    )


def test_of_a_family_with_names_of_its_own(tmp_path: Path) -> None:
    found = explained(tmp_path, "gpt_neox_japanese", head_dim=8)
    assert any("attention: its code takes no function of others" in text for text in found["error"])
    own = "names=ModuleNames(decoder='gpt_neox_japanese', table='embed_in', norm='final_layer_norm', head='embed_out')"
    assert own in found["ok"][-1]


def test_of_a_family_with_foreign_parts(tmp_path: Path) -> None:
    found = explained(tmp_path, "mamba", state_size=4)
    assert any("MambaMixer, which no family of adaptc's has" in text for text in found["error"])
    assert "attention: its layers have none; a family's layers have one each, with a KV cache" in found["error"]


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("nobodys", "has no 'nobodys'; adaptc captures its models"), ("clip", "has 'clip', and not as a decoder of text")],
)
def test_of_what_is_no_decoder_of_transformers(model_type: str, expected: str, tmp_path: Path) -> None:
    assert any(expected in text for text in explained(tmp_path, model_type)["error"])
