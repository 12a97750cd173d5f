from __future__ import annotations

import json
import string
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.errors import PassError, SpecError
from adaptc.spec import json_schema as schema
from adaptc.spec import passes as spec_passes
from adaptc.spec.passes import build_passes
from adaptc.spec.reading import effective, parse_spec, read_spec
from adaptc.spec.schema import CalibrationSpec, ModelSpec, PassEntry, QuantizeSpec, Spec, TargetSpec
from tests.repo import ROOT

HEAD = "version: 1\nmodels:\n  lm:\n    source: x\n"


@dataclass(frozen=True, slots=True)
class Curve:
    power: int = 3


@dataclass(frozen=True, slots=True)
class Skip:
    """Skip something."""

    name: ClassVar[str] = "skip_ffn"
    model: str
    layers: tuple[int, ...] | Literal["auto"] = "auto"
    budget: float = 0.5
    curve: Curve | None = None

    def __post_init__(self) -> None:
        if self.budget > 1:
            raise ValueError("budget must be from 0 to 1")
        if self.budget < 0:
            raise PassError("a budget below 0 buys nothing")


@pytest.fixture(autouse=True)
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (spec_passes, schema):
        monkeypatch.setattr(module, "known_passes", lambda: {"skip_ffn": Skip})


def built(spec: Spec) -> tuple[object, ...]:
    return build_passes(spec)


def faults(text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "model.yaml", overrides)
    return str(caught.value).splitlines()


def test_the_shortest_spec_gets_every_default() -> None:
    assert parse_spec(HEAD) == Spec(
        version=1,
        models={"lm": ModelSpec(source="x", revision=None, dtype="float32", trust_remote_code=False)},
        passes=(),
        target=TargetSpec(backend="onnxruntime", weights="int4", block_size=32, max_tokens=2048, batch=1),
        calibration=None,
    )


def test_everything_can_be_given() -> None:
    spec = parse_spec(
        """
version: 1
name: demo
models: {lm: {source: org/name, revision: main, dtype: bfloat16, trust_remote_code: false}}
passes: [skip_ffn: {model: lm, layers: [1, 2], curve: {power: 8}}]
target: {backend: onnxruntime, weights: fp16, block_size: 64, max_tokens: 64, batch: 4}
calibration: {text: a.txt, tokens: 10}
"""
    )
    assert spec.name == "demo"
    assert spec.models["lm"] == ModelSpec(source="org/name", revision="main", dtype="bfloat16")
    assert spec.passes == (PassEntry("skip_ffn", {"model": "lm", "layers": [1, 2], "curve": {"power": 8}}),)
    assert built(spec) == (Skip("lm", (1, 2), 0.5, Curve(8)),)
    assert spec.calibration == CalibrationSpec(text="a.txt", tokens=10)


def test_sections_left_empty_are_as_if_left_out() -> None:
    assert parse_spec(HEAD + "passes:\n  # none yet\ntarget:\nquantize:\ncalibration:\n") == parse_spec(HEAD)


def test_anchors_and_merges_work() -> None:
    text = "version: 1\nmodels:\n  a: &a {source: x, dtype: float16}\n  b: {<<: *a, source: y}\n"
    assert parse_spec(text).models["b"] == ModelSpec(source="y", dtype="float16")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "version: 1\nmodels:\n  lm:\n    sorce: x\n",
            [":4: models.lm.sorce: unknown key; did you mean 'source'?"],
        ),
        ("version: 2\nmodels: {lm: {source: x}}", [":1: version: expected 1, got 2"]),
        ("models: {lm: {source: x}}", [":1: key 'version' is missing"]),
        ("{}", [":1: keys 'version', 'models' are missing"]),
        (
            HEAD + "frobnicate: 1",
            [":5: frobnicate: unknown key; there are: calibration, models, name, passes, quantize, target, version"],
        ),
        (
            HEAD + "target:\n  weights: int5\n  max_tokens: '22'\n  batch: true\n",
            [
                ":6: target.weights: expected one of fp32, fp16, bf16, int8, int4, source, got 'int5'",
                ":7: target.max_tokens: expected a whole number, got '22'",
                ":8: target.batch: expected a whole number, got true",
            ],
        ),
        (HEAD + "    trust_remote_code: true", [":5: models.lm.trust_remote_code: expected false, got true"]),
        (HEAD + "target: {batch: 0}", [":5: target.batch: must be at least 1, got 0"]),
        (
            HEAD + "target: {max_tokens: 9999999}",
            [":5: target.max_tokens: must be at most 1048576, got 9999999"],
        ),
        (
            HEAD + "target: {block_size: 33}",
            [":5: target.block_size: expected one of 16, 32, 64, 128, 256, got 33"],
        ),
        (HEAD + "target: 3", [":5: target: expected a mapping, got 3"]),
        (HEAD + "quantize: {method: awq}", [":5: quantize.method: expected one of gptq, nearest, hqq, got 'awq'"]),
        (
            HEAD + "target: {weights: int8}\nquantize: {method: hqq}",
            [":6: quantize: the target has int8 weights; with int4 it is right, else leave it out"],
        ),
        (
            HEAD + "calibration: {tokens: 2.5}",
            [
                ":5: calibration: key 'text' is missing",
                ":5: calibration.tokens: expected a whole number, got 2.5",
            ],
        ),
        ("version: 1\nmodels: {}", [":2: models: must not be empty"]),
        ("version: 1\nmodels: {a: }", [":2: models.a: expected a mapping, got nothing"]),
        ("version: 1\nmodels: {a: {source: ''}}", [":2: models.a.source: must not be empty"]),
        (
            "version: 1\nmodels: {a b: {source: x}}",
            [":2: models.a b: 'a b' is not a name: letters, digits and _, not starting with a digit"],
        ),
        (
            HEAD + "    dtype: 2024-01-01",
            [":5: models.lm.dtype: expected one of float32, bfloat16, float16, got '2024-01-01'"],
        ),
        (HEAD + "    source: y", [":5: models.lm.source: the key stands twice; it is on line 4 already"]),
        (
            HEAD + "name: !!binary x",
            [":5: name: the tag tag:yaml.org,2002:binary is not understood; write a plain value"],
        ),
        (HEAD + "name: !!int x", [":5: name: 'x' is not a value of its tag tag:yaml.org,2002:int"]),
        pytest.param(
            HEAD + "target: {max_tokens: 0x" + "f" * 5000 + "}",
            [":5: target.max_tokens: a whole number of 20000 bits; no key takes one"],
            id="a number that Python does not print",
        ),
        (HEAD + "? [a]\n: 1", [":5: a key must be a name, not a list or mapping"]),
        (HEAD + "name: &n [*n]", [":5: an alias that contains itself; a spec has neither"]),
        ("", [":1: the file is empty; a spec begins with 'version: 1'"]),
        ("# nothing\n", [":1: the file is empty; a spec begins with 'version: 1'"]),
        ("- a", [":1: expected keys and values, beginning with 'version: 1'"]),
        ("a: b: c", [":1:5: not valid YAML: mapping values are not allowed here"]),
        ("a: 1\n\tb: 2", [":2:1: not valid YAML: found character '\\t' that cannot start any token"]),
        ("a: 1\nb: \x00", [":2: not valid YAML: a control character, 0x00"]),
        ("[" * 5000, [": nested too deeply to be a spec"]),
    ],
)
def test_each_fault_is_one_line(text: str, expected: list[str]) -> None:
    assert faults(text) == ["model.yaml" + line for line in expected]


def test_aliases_of_aliases_do_not_explode() -> None:
    layers = [
        f"{new}: &{new} [{', '.join(['*' + old] * 9)}]" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
    ]
    assert faults("a: &a [1]\n" + "\n".join(layers)) == ["model.yaml:1: more than 20,000 values; a spec has neither"]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("skip_ffn", "passes.0.skip_ffn: key 'model' is missing"),
        ("skip_fnn: {model: lm}", "passes.0: no pass 'skip_fnn'; did you mean 'skip_ffn'?"),
        ("xyz", "passes.0: no pass 'xyz'; there are: skip_ffn"),
        ("skip_ffn: {modle: lm}", "passes.0.skip_ffn.modle: unknown key; did you mean 'model'?"),
        (
            "skip_ffn: {model: lm, curve: {powers: 1}}",
            "passes.0.skip_ffn.curve.powers: unknown key; did you mean 'power'?",
        ),
        ("skip_ffn: {model: lm, layers: 1}", "passes.0.skip_ffn.layers: expected a list or auto, got 1"),
        (
            "skip_ffn: {model: lm, layers: [a]}",
            "passes.0.skip_ffn.layers.0: expected a whole number, got 'a'",
        ),
        ("skip_ffn: {model: lm, budget: '1'}", "passes.0.skip_ffn.budget: expected a number, got '1'"),
        ("skip_ffn: {model: lm, budget: 2}", "passes.0.skip_ffn: budget must be from 0 to 1"),
        ("skip_ffn: {model: lm, budget: -2}", "passes.0.skip_ffn: a budget below 0 buys nothing"),
        ("skip_ffn: 3", "passes.0.skip_ffn: expected a mapping of options"),
        ("{a: 1, b: 2}", "passes.0: expected one pass: 'name' or 'name: {option: value}'"),
    ],
)
def test_options_come_from_yaml_and_are_checked(entry: str, expected: str) -> None:
    assert faults(HEAD + "passes:\n  - " + entry) == [f"model.yaml:6: {expected}"]


def test_passes_must_be_a_list() -> None:
    assert faults(HEAD + "passes: {skip_ffn: {}}") == [
        "model.yaml:5: passes: expected a list; begin each pass with '- '"
    ]


def test_a_pass_of_another_package_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([
        EntryPoint("outside", f"{__name__}:Skip", "adaptc.passes"),
        EntryPoint("broken", "no_such_module:Skip", "adaptc.passes"),
    ])  # fmt: skip
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[Skip.__module__])
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)
    assert built(parse_spec(HEAD + "passes: [outside: {model: lm}]")) == (Skip("lm"),)
    [broken] = faults(HEAD + "passes: [broken]")
    assert broken.endswith("'broken' of package no_such_module:Skip cannot be loaded: No module named 'no_such_module'")
    assert faults(HEAD + "passes: [outsid]") == ["model.yaml:5: passes.0: no pass 'outsid'; did you mean 'outside'?"]


def test_set_changes_values_and_makes_what_is_missing() -> None:
    spec = parse_spec(
        HEAD + "passes:\n  - skip_ffn\n  - skip_ffn:\n",
        overrides=[
            "target.weights=int8",
            "target.max_tokens=64",
            "models.other.source=y",
            "passes.0.skip_ffn.model=lm",
            "passes.0.skip_ffn.budget=1e-1",
            "passes.1.skip_ffn={model: b, layers: [0, 1]}",
            "calibration.text=2024-01-01",
        ],
    )
    assert (spec.target.weights, spec.target.max_tokens) == ("int8", 64)
    assert spec.models["other"].source == "y"
    assert built(spec) == (Skip("lm", budget=0.1), Skip("b", (0, 1)))
    assert spec.calibration is not None
    assert spec.calibration.text == "2024-01-01"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("target.wieghts=int4", "target.wieghts: unknown key; did you mean 'weights'?"),
        ("target.batch=x", "target.batch: expected a whole number, got 'x'"),
        ("target=3", "target: expected a mapping, got 3"),
        ("models.lm=", "models.lm: expected a mapping, got nothing"),
        ("version.x=1", "version is 1, which has no keys"),
        ("passes.3.a=1", "passes is a list; '3' is not one of its entries (0 to 0)"),
        ("passes.x=1", "passes is a list; 'x' is not one of its entries (0 to 0)"),
        ("target", "expected KEY.KEY=VALUE, e.g. target.weights=int8"),
        ("a..b=1", "expected KEY.KEY=VALUE, e.g. target.weights=int8"),
        ("target.batch=[", "not valid YAML: expected the node content, but found '<stream end>'"),
    ],
)
def test_faults_of_set_name_it(override: str, expected: str) -> None:
    assert faults(HEAD + "passes: [skip_ffn: {model: lm}]", override) == [f"--set {override}: {expected}"]


def test_a_set_value_replaces_a_faulty_one() -> None:
    assert (
        parse_spec(HEAD + "target: {weights: int5, weights: int4}", overrides=["target.weights=int8"]).target.weights
        == "int8"
    )


def test_read_spec_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(HEAD + "naem: x\n")
    with pytest.raises(SpecError, match=rf"^{path}:5: naem: unknown key.*'name'"):
        read_spec(path)


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    missing, latin, large = tmp_path / "no.yaml", tmp_path / "latin.yaml", tmp_path / "large.yaml"
    latin.write_bytes("version: 1\nname: caf\xe9\n".encode("latin-1"))
    large.write_bytes(b" " * 1_000_001)
    for path, expected in (
        (missing, f"{missing}: no such file; give the path of a model.yaml"),
        (tmp_path, f"{tmp_path}: a folder; give the path of the model.yaml in it"),
        (latin, f"{latin}:2: not UTF-8: byte 0xe9; save it as UTF-8"),
        (large, f"{large}: larger than 1,000,000 bytes; give the model.yaml, not the model"),
    ):
        with pytest.raises(SpecError) as caught:
            read_spec(path)
        assert str(caught.value) == expected


def test_a_byte_order_mark_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.encode())
    assert read_spec(path) == parse_spec(HEAD)


NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=8)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    models = st.builds(
        ModelSpec,
        source=TEXTS,
        revision=st.none() | TEXTS,
        dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    )
    options = st.fixed_dictionaries({"model": TEXTS, "budget": st.floats(0, 1), "layers": st.lists(st.integers(0, 99))})
    return Spec(
        version=1,
        name=draw(st.none() | TEXTS),
        models=draw(st.dictionaries(NAMES, models, min_size=1, max_size=3)),
        passes=tuple(PassEntry("skip_ffn", each) for each in draw(st.lists(options, max_size=2))),
        target=TargetSpec(max_tokens=draw(st.integers(1, 1 << 20)), batch=draw(st.integers(1, 1024))),
        quantize=draw(st.none() | st.builds(QuantizeSpec, method=st.sampled_from(["gptq", "nearest", "hqq"]))),
        calibration=draw(st.none() | st.builds(CalibrationSpec, text=TEXTS, tokens=st.integers(1, 1 << 40))),
    )


@settings(max_examples=60, deadline=None)
@given(specs())
def test_the_effective_spec_reads_back_equal(spec: Spec) -> None:
    assert parse_spec(effective(spec)) == spec


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab:-[]{}&*!#|>'\"%@`,?0 \n\t\x00é<="), max_size=40))
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "model.yaml")
    assert all(line.startswith("model.yaml") for line in str(caught.value).splitlines())


def test_json_schema_describes_every_key_and_the_passes() -> None:
    made = schema.json_schema()
    assert set(made["properties"]) == set(Spec.model_fields)
    assert made["additionalProperties"] is False
    assert made["$defs"]["skip_ffn"]["required"] == ["model"]
    assert made["$defs"]["skip_ffn"]["additionalProperties"] is False
    assert json.loads(json.dumps(made)) == made
    for name in ("ModelSpec", "TargetSpec", "CalibrationSpec"):
        missing = [key for key, value in made["$defs"][name]["properties"].items() if not value.get("description")]
        assert missing == []
    assert _dangling(made, made["$defs"]) == []


def _dangling(node: Any, definitions: Mapping[str, Any]) -> list[str]:
    if isinstance(node, list):
        return [found for each in node for found in _dangling(each, definitions)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"]] if "$ref" in node and node["$ref"].removeprefix("#/$defs/") not in definitions else []
    return own + [found for each in node.values() for found in _dangling(each, definitions)]


def test_the_reference_page_is_up_to_date() -> None:
    page = ROOT / "docs" / "spec.md"
    assert page.read_text() == schema.spec_markdown(), "adaptc schema --markdown > docs/spec.md"


def test_reading_a_spec_without_passes_imports_no_torch() -> None:
    code = (
        f"import sys; from adaptc.spec.reading import parse_spec; parse_spec({HEAD!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
