"""What is found before a compile, beside what `check` finds: the list of passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adaptc.checks.finding import Finding
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.compiler.preflight import preflight, refuse_faults
from adaptc.errors import SpecError
from adaptc.spec.reading import read_spec
from tests.models import folder


def test_the_passes_are_named_in_order(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path, weights="int4")
    findings = preflight(read_spec(spec), tmp_path).findings
    names = "gptq, lower, encoder_attention, kv_cache, logits_from, fuse_norms, fuse_projections, "
    names += "adapter_places, quantize, device_steps, sliding_cache, switch_adapters, branch, verify_drafts"
    assert findings[-1] == Finding("passes", "ok", names)
    refuse_faults(read_spec(spec), tmp_path)


def test_every_error_is_a_line_of_the_refusal(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    broken = read_spec(spec, ["models.lm.source=nowhere", "calibration.text=none.txt"])
    errors = [each.text for each in preflight(broken, tmp_path).findings if each.level == "error"]
    assert len(errors) == 2
    with pytest.raises(SpecError) as refused:
        refuse_faults(broken, tmp_path)
    assert str(refused.value).splitlines() == [f"models.lm: {errors[0]}", f"calibration: {errors[1]}"]


def test_a_compile_has_the_warnings_of_check_also_from_the_cache(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path, eos_token_id=None)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"logit_scale": 0.5}))
    found = preflight(read_spec(spec), tmp_path).findings
    expected = [f"models.lm: {each.text}" for each in found if each.level == "warn" and each.about == "lm"]
    assert len(expected) == 2
    for cached in (False, True):
        warnings: list[str] = []
        into, cache = tmp_path / "bundle", Cache(tmp_path / "cache")
        made = compile_spec(read_spec(spec), tmp_path, into, cache, warn=warnings.append)
        assert made.cached is cached
        assert [line for line in warnings if line.startswith("models.")] == expected


def test_rows_that_decide_apart_are_refused_before_a_compile_for_tensorrt(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path)
    for backend in ("tensorrt", "tensorrt-rtx"):
        for batch, level in (("rows", "error"), ("auto", "ok"), ("any", "ok")):
            passes = f"passes=[{{skip_ffn: {{policy: static, batch: {batch}}}}}]"
            given = read_spec(spec, [f"target.backend={backend}", "target.weights=fp16", passes])
            found = preflight(given, tmp_path).findings[-1]
            assert (found.about, found.level) == ("passes", level)
            if level == "error":
                end = f"{backend} runs a block for all rows of a step; auto is right"
                assert found.text == f"passes.skip_ffn.batch: rows; {end}"
