"""Exports to Triton: against Triton's own schema where its client is installed, and run in a stand-in for Triton."""

from __future__ import annotations

import importlib.util
import json
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptc import runtime
from adaptc.exports.folder import write_export
from adaptc.exports.options import ExportOptions
from adaptc.exports.pbtxt import Word, message_text, parameters
from adaptc.exports.triton import model_name, triton_export
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.runtime.errors import RequestError
from adaptc.runtime.triton.subsets import SubsetModel, chosen
from tests.close import ENGINE, assert_close
from tests.exports.fake_triton import Repository, TritonModelException, read_pbtxt
from tests.models import attention_bundle, views_bundle, views_model

ODD = ("che ap", 'd"ea\\r\n')
"""Names of modalities as a bundle may have them: Triton's files must hold them."""


def exported(bundle: Path, into: Path, **options: Any) -> Path:
    given = {"name": "m", "threads": 1, **options}
    write_export(into, triton_export(open_bundle(bundle), ExportOptions(**given)), "triton")
    return into / "models"


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views") / "bundle"
    views_bundle.write(folder)
    return folder


@pytest.fixture
def repository(views: Path, tmp_path: Path) -> Repository:
    return Repository(exported(views, tmp_path / "out"))


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "bundle"
    attention_bundle.write(folder)
    return folder


@pytest.fixture
def writer(text_bundle: Path, tmp_path: Path) -> Iterator[Repository]:
    made = Repository(exported(text_bundle, tmp_path / "out", max_batch=4))
    yield made
    made.close()


def test_every_subset_gives_the_session_s_numbers(views: Path, repository: Repository) -> None:
    rows = views_model.rows(5)
    with runtime.load_modal(views) as session:
        for subset in (["cheap"], ["dear"], ["cheap", "dear"]):
            given = {name: rows[name] for name in subset}
            expected = session.infer(given, modalities=subset).outputs["logits"]
            entry = repository.infer("m", given)
            assert_close(entry["logits"], expected, **ENGINE)
            assert set(entry["modalities"].reshape(-1)) == {"+".join(subset).encode()}
            model = {"dear": "m.fuse.dear"}.get("+".join(subset), f"m.{'_'.join(subset)}")
            assert_close(repository.infer(model, given)["logits"], expected, **ENGINE)
    assert ("m.encode.cheap", 5) in repository.ran


def test_a_request_says_how_sure_it_must_be(views: Path, repository: Repository) -> None:
    rows = views_model.rows(2)
    with runtime.load_modal(views) as session:
        for floor in (0.5, 0.82, 0.9):
            option = session.infer(rows, accuracy=floor).trace.option
            assert repository.infer("m", rows, accuracy=str(floor))["modalities"][0, 0] == option.encode()
        assert session.infer(rows).trace.option == "cheap+dear"
    assert repository.infer("m", rows)["modalities"][0, 0] == b"cheap+dear"
    assert repository.infer("m", rows, modalities="dear")["modalities"][0, 0] == b"dear"
    for asked, said in (
        ({"accuracy": "0.99"}, r"^accuracy: 0\.990 cannot be reached with these inputs; at most 0.900 can$"),
        ({"accuracy": "much"}, r"^accuracy: 'much'; a number from 0 to 1 is needed$"),
        ({"modalities": "smell"}, r"^modalities: 'smell'; not compiled or not sent, there are: cheap, dear, cheap\+d"),
    ):
        with pytest.raises(TritonModelException, match=said):
            repository.infer("m", rows, **asked)


def test_subsets_without_a_profile() -> None:
    two = (SubsetModel(("a",), "m.a", ("a",)), SubsetModel(("a", "b"), "m.a_b", ("a", "b")))
    assert chosen(two, ["a", "b"]) is two[1]
    assert chosen(two, ["a"]) is two[0]
    with pytest.raises(RequestError, match=r"^accuracy: this bundle was never profiled"):
        chosen(two, ["a"], accuracy=0.5)
    with pytest.raises(RequestError, match=r"^inputs: b; no subset reads these alone, there are: a, a\+b$"):
        chosen(two, ["b"])


def sent(sender: Any) -> list[Any]:
    """All responses of a request, to its final one."""
    return list(iter(lambda: sender.responses.get(timeout=20), None))


def texts(responses: list[Any]) -> list[str]:
    return [each.output_tensors[0].as_numpy()[0].decode() for each in responses]


def asked(prompt: str, stream: bool | None = None, **options: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"text_input": np.array([prompt.encode()], object)}
    if options:
        inputs["sampling_parameters"] = np.array([json.dumps(options).encode()], object)
    if stream is not None:
        inputs["stream"] = np.array([stream])
    return inputs


@pytest.mark.parametrize("stream", [None, False, True])
def test_a_decoder_writes_as_the_session_does(text_bundle: Path, writer: Repository, stream: bool | None) -> None:
    with runtime.load(text_bundle, threads=1) as session:
        solo = session.generate("the cat sat", max_tokens=12)
    responses = sent(writer.begin("m", asked("the cat sat", stream, max_tokens=12)))
    assert "".join(texts(responses)) == solo.text
    assert (len(responses) > 2) == bool(stream)
    [told] = [json.loads(each.output_tensors[1].as_numpy()[0]) for each in responses if len(each.output_tensors) > 1]
    assert told["new_tokens"] == len(solo.ids)
    assert told["finish_reason"] == solo.finish_reason


def test_requests_to_a_decoder_run_side_by_side(text_bundle: Path, writer: Repository) -> None:
    prompts = [f"{number} the cat" for number in range(12)]
    senders = [writer.begin("m", asked(prompt, True, max_tokens=8)) for prompt in prompts]
    with runtime.load(text_bundle, threads=1) as session:
        for prompt, sender in zip(prompts, senders, strict=True):
            assert "".join(texts(sent(sender))) == session.generate(prompt, max_tokens=8).text


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (asked("x", max_tokens=0), "max_tokens: 0; a whole number from 1"),
        (asked("x", nonsense=1), "nonsense"),
        (asked("x", images=[1]), "sampling_parameters: no option 'images' here; leave it out"),
        ({**asked("x"), "sampling_parameters": np.array([b"{"], object)}, "sampling_parameters: not JSON: "),
        ({**asked("x"), "sampling_parameters": np.array([b"[]"], object)}, "sampling_parameters: a JSON object of"),
    ],
)
def test_what_a_decoder_cannot_do_is_an_error_of_one_response(
    writer: Repository, inputs: dict[str, Any], said: str
) -> None:
    [response] = sent(writer.begin("m", inputs))
    assert said in response.error.message()
    assert len(sent(writer.begin("m", asked("x", max_tokens=2)))) == 1  # it goes on


def test_a_client_that_goes_away_ends_its_request(writer: Repository) -> None:
    reasons: list[str] = []
    while "cancelled" not in reasons and len(reasons) < 20:  # a tiny model may have written all before it is seen
        sender = writer.begin("m", asked("the cat", True, max_tokens=80))
        sender.responses.get(timeout=20)
        sender.cancelled = True
        *_, last = sent(sender)
        reasons.append(json.loads(last.output_tensors[1].as_numpy()[0])["finish_reason"])
    assert reasons[-1] == "cancelled"


def test_more_requests_than_may_wait_are_refused(text_bundle: Path, tmp_path: Path) -> None:
    made = Repository(exported(text_bundle, tmp_path / "out", max_batch=1, max_queue=0))
    try:
        model = made.python("m")
        hold = threading.Event()
        model._threads.submit(hold.wait)  # the one thread has something else to do
        first = made.begin("m", asked("x", max_tokens=2))
        [refused] = sent(made.begin("m", asked("x", max_tokens=2)))
        assert refused.error.message() == "server: 1 requests run or wait; ask again later"
        with pytest.raises(queue.Empty):
            first.responses.get(timeout=0.05)
        hold.set()
        assert len(sent(first)) == 1
    finally:
        made.close()


def test_a_bundle_may_stay_where_it_is(text_bundle: Path, tmp_path: Path) -> None:
    models = exported(text_bundle, tmp_path / "out", copy=False)
    assert sorted(each.name for each in (models / "m/1").iterdir()) == ["model.py"]
    made = Repository(models)
    try:
        assert len(sent(made.begin("m", asked("x", max_tokens=2)))) == 1
    finally:
        made.close()


def test_names_of_any_kind_are_escaped(tmp_path: Path) -> None:
    views_bundle.write(tmp_path / "bundle", ODD)
    made = Repository(exported(tmp_path / "bundle", tmp_path / "out", name='my model\'s "x" é'))
    rows = dict(zip(ODD, views_model.rows(2).values(), strict=True))
    answer = made.infer("my_model_s_x_", rows)
    assert answer["modalities"][0, 0].decode() == "+".join(ODD)
    assert len(made.configs) == len({name.lower() for name in made.configs}) == 7
    assert all(name.isascii() and " " not in name for name in made.configs)


def test_a_message_as_text() -> None:
    text = message_text({"a": ['x"\\\n\u00e9\x7f'], "b": Word("KIND_CPU"), "c": {"d": [1, 2], "e": True}, "f": {}})
    assert text == 'a: "x\\"\\\\\\012é\\177"\nb: KIND_CPU\nc {\n  d: 1\n  d: 2\n  e: true\n}\nf {\n}\n'
    assert read_pbtxt(text)["a"] == ['x"\\\n\u00e9\x7f']
    assert parameters({"a": 1, "b": None}) == [{"key": "a", "value": {"string_value": "1"}}]
    assert [model_name(each) for each in ("a b", "..", "é", "a.b-c_d")] == ["a_b", "model", "_", "a.b-c_d"]


def model_config() -> Any:
    """`ModelConfig` of Triton's schema, without the rest of its client, which wants gRPC."""
    pytest.importorskip("tritonclient", reason="Triton's schema comes with `pip install --no-deps tritonclient`")
    found = importlib.util.find_spec("tritonclient")
    assert found is not None
    assert found.submodule_search_locations
    file = Path(next(iter(found.submodule_search_locations))) / "grpc/model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("triton_model_config_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig


@pytest.mark.parametrize("kind", ["views", "odd", "text"])
def test_configurations_are_of_triton_s_schema(kind: str, views: Path, text_bundle: Path, tmp_path: Path) -> None:
    schema = model_config()
    from google.protobuf import text_format  # type: ignore[import-untyped]

    views_bundle.write(tmp_path / "odd", ODD)
    models = exported({"views": views, "odd": tmp_path / "odd", "text": text_bundle}[kind], tmp_path / "out")
    files = sorted(models.glob("*/config.pbtxt"))
    assert len(files) == (1 if kind == "text" else 7)
    for file in files:
        config = text_format.Parse(file.read_text(encoding="utf-8"), schema())
        own = read_pbtxt(file.read_text(encoding="utf-8"))
        assert config.name == own["name"][0] == file.parent.name
        for side in ("input", "output"):
            said = [(each["name"][0], each.get("dims", [])) for each in own[side]]
            assert [(each.name, list(each.dims)) for each in getattr(config, side)] == said
        if kind == "text":
            assert config.model_transaction_policy.decoupled
            assert config.parameters["max_batch"].string_value == "8"
    with pytest.raises(text_format.ParseError):
        text_format.Parse('nonsense: "x"', schema())
