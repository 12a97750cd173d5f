"""From a folder of a multimodal language model to a bundle that writes with images and without."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from adaptc import runtime
from adaptc.cli import main
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import LoadError, RequestError, SpecError
from adaptc.families.table import decoders_within
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.multimodal.images import fit
from adaptc.sources.find import find_source
from adaptc.sources.images import image_spec
from adaptc.spec.reading import read_spec
from adaptc.spec.schema import ModelSpec
from adaptc.verification.kinds.verify import verify_bundle
from tests import touched
from tests.close import ENGINE, assert_close
from tests.models import vlm
from tests.opened_files import opened_with_planted

FAMILIES = ("llava", "smolvlm", "qwen2_vl", "qwen2_5_vl", "gemma3")
TEXT = "the cat sat on"
ENCODERS = ("clip_vision_model", "siglip_vision_model")


class Made(NamedTuple):
    """A family's model, and the bundle it was compiled into."""

    model: Any
    folder: Path
    bundle: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    known: dict[str, Made] = {}

    def make(family: str) -> Made:
        if family not in known:
            folder = tmp_path_factory.mktemp(family)
            model = vlm.write(folder, family)
            compiled(folder)
            known[family] = Made(model, folder, folder / "bundle")
        return known[family]

    return make


def compiled(folder: Path) -> Path:
    compile_spec(read_spec(folder / "model.yaml"), folder, folder / "bundle", Cache(folder / "cache"))
    return folder / "bundle"


def ids_of(session: runtime.Session, images: Any, *, wide: bool = True) -> list[int]:
    """A prompt with images, with a token for each place as a processor writes it, or with one for each image."""
    assert session.images is not None
    spec, pictures = session.images.spec, session.images.read(images)
    parts = [[*spec.before, *[spec.token] * each.places, *spec.after] if wide else [spec.token] for each in pictures]
    return [5, 6, *(token for place, part in enumerate(parts) for token in (*part, 40 + place)), 33]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_alone_equals_eager_and_runs_no_image_encoder(family: str, made: Callable[[str], Made]) -> None:
    model, _, bundle = made(family)
    words = vlm.tokenizer().encode(TEXT).ids
    with runtime.load(bundle, threads=1) as session:
        assert list(session.generate(TEXT, max_new_tokens=12).ids) == vlm.greedy(model, words, 12)
        found = session.score(words).values
        assert session.images is not None
        assert not session.images.graphs.loaded
        assert not session.images.graphs.ran
    logits = vlm.logits(model, words)[:-1].astype(np.float64)
    expected = logits[range(len(words) - 1), words[1:]] - np.log(np.exp(logits).sum(1))
    assert np.abs(found - expected).max() < 1e-4


def test_only_files_that_the_manifest_names_are_opened(made: Callable[[str], Made], tmp_path: Path) -> None:
    _, _, whole = made("llava")
    bundle = shutil.copytree(whole, tmp_path / "b")
    images: Any = vlm.two_images("llava")
    with runtime.load(whole, threads=1) as session:
        ids = ids_of(session, images, wide=False)
    np.savez(tmp_path / "images.npz", **images)
    opened = opened_with_planted(
        bundle,
        f"import numpy as np\nfrom adaptc import runtime\nimages = dict(np.load({str(tmp_path / 'images.npz')!r}))\n"
        f"with runtime.load({str(bundle)!r}, threads=1) as session:\n"
        f"    assert session.generate({list(map(int, ids))}, images=images, max_new_tokens=2).ids",
    )
    assert "images.json" in opened


@pytest.mark.parametrize("family", FAMILIES)
def test_images_equal_eager(family: str, made: Callable[[str], Made]) -> None:
    model, _, bundle = made(family)
    images = vlm.two_images(family)
    with runtime.load(bundle, threads=1) as session:
        wide, short = ids_of(session, images), ids_of(session, images, wide=False)
        expected = vlm.greedy(model, wide, 10, images)
        assert list(session.generate(wide, images=images, max_new_tokens=10).ids) == expected
        assert session.images is not None
        ran = dict(session.images.graphs.ran)
        assert ran == {"lm.encode.image": 2 if family in vlm.ANY_SIZE else 1}
        assert list(session.generate(short, images=images, max_new_tokens=10).ids) == expected
        assert session.images.graphs.ran == ran  # the second time they come from the cache
        values = list(images["pixel_values"].reshape(2, 3, vlm.SIDE, vlm.SIDE)) if family not in vlm.ANY_SIZE else None
        if values is not None:
            assert list(session.generate(short, images=values, max_new_tokens=10).ids) == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [512, 5])
def test_every_logit_equals_eager(family: str, chunk: int, made: Callable[[str], Made]) -> None:
    """Of a prompt with images, read at once or in pieces that cut images apart, beside a row of text alone."""
    model, _, bundle = made(family)
    images, words, more = vlm.two_images(family), [7, 8, 9], [50, 61, 72, 83]
    with runtime.load(bundle, threads=1) as session:
        wide = ids_of(session, images)
        assert session.images is not None
        encoded = [session.images.insert(np.array(wide), each)[1] for each in (images, vlm.two_images(family, 1))]
        graph = runtime.open_bundle(bundle).manifest.graphs["lm"]
        assert graph.decoder is not None
        decoder = HostDecoder(runtime.OrtEngine(bundle / graph.file, 1), graph.decoder, 2, chunk)
        first, other = (decoder.prefill(1, np.array(wide), inserts=encode()) for encode in encoded if encode)
        assert np.abs(first - other).max() > 0.01  # a negative control
        decoder.prefill(0, np.array(words))
        found = [decoder.prefill(1, np.array(wide), inserts=encoded[0]() if encoded[0] else None)]
        for token in more[:2]:
            both = decoder.decode([token, token]).copy()
            found.append(both[1])
        assert_close(both[0], vlm.logits(model, [*words, *more[:2]])[-1], **ENGINE)
        decoder.move(1, 0)
        found += [decoder.decode([token])[0].copy() for token in more[2:]]
    assert_close(np.stack(found), vlm.logits(model, [*wide, *more], images)[-5:], **ENGINE)


def test_a_batch_has_images_of_its_own(made: Callable[[str], Made]) -> None:
    model, _, bundle = made("llava")
    images = vlm.pixels(3)
    given: list[Any] = [images[:1], None, images[1:], []]
    with runtime.load(bundle, threads=1) as session:
        prompts = [ids_of(session, [] if each is None else each) for each in given]
        found = session.generate(prompts, images=given, max_new_tokens=6)
        for answer, prompt, each in zip(found, prompts, given, strict=True):
            values = None if each is None or not len(each) else {"pixel_values": each}
            assert list(answer.ids) == vlm.greedy(model, prompt, 6, values)
        with pytest.raises(RequestError, match=r"^images: a list for each of the 4 prompts is needed"):
            session.generate(prompts, images=images)


def test_texts_streams_and_chats_take_images(made: Callable[[str], Made]) -> None:
    _, _, bundle = made("smolvlm")
    images = vlm.pixels(1)
    with runtime.load(bundle, threads=1) as session:
        whole = session.generate("the <image> cat", images=images, max_new_tokens=6)
        assert "".join(session.generate("the <image> cat", images=images, max_new_tokens=6, stream=True)) == whole.text
        message = {"role": "user", "content": "the <image> cat"}
        assert session.chat([message], images=images, max_new_tokens=2).prompt_tokens > whole.prompt_tokens

        async def pieces() -> list[str]:
            return [each async for each in session.generate_async("the <image> cat", images=images, max_new_tokens=6)]

        assert "".join(asyncio.run(pieces())) == whole.text


def test_bytes_are_normalized_as_the_folder_says(made: Callable[[str], Made]) -> None:
    _, _, bundle = made("llava")
    raw = np.random.default_rng(1).integers(0, 256, (vlm.SIDE, vlm.SIDE, 3), np.uint8)
    pixels = ((raw / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]).transpose(2, 0, 1).astype(np.float32)
    with runtime.load(bundle, threads=1) as session:
        assert session.images is not None
        [found], [expected] = session.images.read([raw]), session.images.read(pixels)
    assert_close(found.pixels, expected.pixels, **ENGINE)
    assert np.ptp(found.pixels) > 1


def test_images_of_any_size_are_cut_as_the_processor_does(made: Callable[[str], Made]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    random = np.random.default_rng(0)
    raw = [random.integers(0, 256, (*size, 3), np.uint8) for size in ((8, 12), (16, 4))]
    settings = {"patch_size": 2, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 1, "max_pixels": 10_000}
    processor = Qwen2VLImageProcessorPil(**settings, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    given = processor(images=[Image.fromarray(each) for each in raw], return_tensors="np")
    with runtime.load(made("qwen2_vl").bundle, threads=1) as session:
        assert session.images is not None
        for found, expected in zip(session.images.read(raw), session.images.read(dict(given)), strict=True):
            assert (found.places, found.rows) == (expected.places, expected.rows)
            assert_close(found.pixels, expected.pixels, **ENGINE)


@pytest.mark.parametrize("family", vlm.ANY_SIZE)
@pytest.mark.parametrize("size", [(4, 4), (4, 28), (20, 12), (32, 24)])
def test_encoders_of_any_size_equal_eager(family: str, size: tuple[int, int], made: Callable[[str], Made]) -> None:
    """One place, a row, and images that cut windows off; windows of Qwen2.5-VL's encoder are 2 · 2 places."""
    model, _, bundle = made(family)
    rows, columns = (each // 2 for each in size)
    patches = np.random.default_rng(sum(size)).normal(size=(rows * columns, 24)).astype(np.float32)
    given = {"pixel_values": patches, "image_grid_thw": np.array([[1, rows, columns]])}
    with runtime.load(bundle, threads=1) as session, torch.no_grad():
        assert session.images is not None
        pictures = session.images.read(given)
        ids = np.full(pictures[0].places, session.images.spec.token)
        found = session.images.encode(ids, pictures).values
        [expected] = model.model.get_image_features(*map(torch.from_numpy, given.values())).pooler_output
    assert_close(found, expected.numpy(), **ENGINE)


def test_windows_count(made: Callable[[str], Made]) -> None:
    """A negative control: an encoder whose layers all see the whole image says something else."""
    model = made("qwen2_5_vl").model
    patches = torch.from_numpy(np.random.default_rng(0).normal(size=(80, 24)).astype(np.float32))
    with torch.no_grad():
        [first] = model.model.get_image_features(patches, torch.tensor([[1, 10, 8]])).pooler_output
        whole, model.model.visual.fullatt_block_indexes = model.model.visual.fullatt_block_indexes, [0, 1, 2]
        [other] = model.model.get_image_features(patches, torch.tensor([[1, 10, 8]])).pooler_output
        model.model.visual.fullatt_block_indexes = whole
    assert (first - other).abs().max() > 0.01


def test_an_image_of_gemma3_sees_itself_whole(made: Callable[[str], Made]) -> None:
    """A negative control: without token_type_ids transformers' mask is causal, and its logits are others."""
    model, images = made("gemma3").model, vlm.two_images("gemma3")
    token = model.config.image_token_id
    ids = [5, 6, *[token] * 4, 7, *[token] * 4, 8]
    with torch.no_grad():
        causal = model(torch.tensor([ids]), pixel_values=torch.from_numpy(images["pixel_values"])).logits[0].numpy()
    assert np.abs(vlm.logits(model, ids, images) - causal).max() > 0.01


def gemma3_processor() -> Any:
    """transformers' own, over the tiny tokenizer."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    names = {"image_token": "<image>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    words = PreTrainedTokenizerFast(tokenizer_object=vlm.tokenizer(), extra_special_tokens=names)
    numbers = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    images = Gemma3ImageProcessorPil(size={"height": vlm.SIDE, "width": vlm.SIDE}, **numbers)
    return Gemma3Processor(images, words, image_seq_length=4)


def test_texts_and_images_of_gemma3_are_read_as_its_processor_reads_them(made: Callable[[str], Made]) -> None:
    """Lines before and after an image join those of the text; files of another size are resized as it resizes."""
    _, _, bundle = made("gemma3")
    text = "the\n<start_of_image>cat <start_of_image>\n\n sat"
    random = np.random.default_rng(3)
    files = [Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)) for size in ((8, 8), (21, 13))]
    expected = gemma3_processor()(images=files, text=text, return_tensors="np")
    with runtime.load(bundle, threads=1) as session:
        assert session.images is not None
        raw = [fit(each, session.images) for each in files]
        for picture, pixels in zip(session.images.read(raw), expected["pixel_values"], strict=True):
            assert_close(picture.pixels, pixels, **ENGINE)
        given = {"pixel_values": expected["pixel_values"]}
        whole = session.generate(expected["input_ids"][0], images=given, max_new_tokens=8)
        found = session.generate(text, images=raw, max_new_tokens=8)
        assert found.prompt_tokens == len(expected["input_ids"][0])
        assert found.ids == whole.ids
        chat = [{"role": "user", "content": text}]
        template = {"chat_template": "{{ messages[0].content }}"}
        assert session.chat(chat, template=template, images=raw, max_new_tokens=8).ids == whole.ids
        assert session.generate(text, images=raw, modalities=["text"], max_new_tokens=1).prompt_tokens == len(
            vlm.tokenizer().encode(text).ids
        )
        with pytest.raises(RequestError, match=r"^prompt: 2 image tokens \(id \d+\) and 1 images; one for each image"):
            session.generate(text, images=raw[:1])
        with pytest.raises(RequestError, match=r"^prompt: 0 image tokens \(id \d+\) and 2 images; one for each image"):
            session.generate(vlm.tokenizer().encode(text).ids, images=raw)


def test_the_command_takes_image_files(made: Callable[[str], Made], tmp_path: Path) -> None:
    _, _, bundle = made("gemma3")
    pixels = np.random.default_rng(4).integers(0, 256, (vlm.SIDE, vlm.SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    text = "the <start_of_image> cat"
    with runtime.load(bundle, threads=1) as session:
        expected = session.generate(text, images=[pixels], max_new_tokens=6)
    asked = ["generate", str(bundle), "-p", text, "-n", "6", "--threads", "1", "--image"]
    done = CliRunner().invoke(main, [*asked, str(tmp_path / "a.png"), "--json"])
    assert json.loads(done.stdout)["ids"] == list(expected.ids), done.output
    streamed = CliRunner().invoke(main, [*asked, str(tmp_path / "a.png")])
    assert streamed.stdout.rstrip("\n") == expected.text.rstrip("\n")
    for more, message in (
        ([str(tmp_path / "b.png")], "b.png: no image that Pillow reads, or a damaged one"),
        ([str(tmp_path / "a.png"), "-p", "more"], "--image: of one prompt; give one"),
    ):
        wrong = CliRunner().invoke(main, [*asked, *more])
        assert wrong.exit_code
        assert message in " ".join(wrong.output.split())


def test_a_dropped_image_touches_nothing_of_the_image_encoder(made: Callable[[str], Made], tmp_path: Path) -> None:
    """With every weight of the encoder broken a request without its image says the same; with it, it fails."""
    model, _, bundle = made("llava")
    shutil.copytree(bundle, tmp_path / "b")
    touched.break_weights(tmp_path / "b/graphs/lm.encode.image.onnx", tmp_path / "b/graphs/lm.data")
    with runtime.load(tmp_path / "b", threads=1, verify=False) as session:
        short, images = ids_of(session, vlm.pixels(1), wide=False), vlm.pixels(1)
        answer = session.generate(short, images=images, modalities=["text"], max_new_tokens=8)
        assert list(answer.ids) == vlm.greedy(model, short, 8)
        assert session.images is not None
        assert not session.images.graphs.loaded
        with pytest.raises(runtime.EngineError):
            session.generate(short, images=images, max_new_tokens=8)


def test_no_node_of_the_image_encoder_is_executed_without_images(made: Callable[[str], Made], tmp_path: Path) -> None:
    """By ONNX Runtime's own profile of the one graph that a text runs."""
    _, _, bundle = made("llava")
    engine = touched.profiled(bundle / "graphs/lm.onnx", tmp_path / "p")
    sizes = {"batch": 1, "tokens": 4, "places": 0}
    kinds = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}
    feeds = {
        given.name: np.zeros(
            [size if isinstance(size, int) else sizes[size] for size in given.shape], kinds[given.type]
        )
        for given in engine.get_inputs()
    }
    feeds |= {"seqlens_k": np.array([3], np.int32), "total_sequence_length": np.array(4, np.int32)}
    engine.run(None, feeds)
    ran = touched.executed(engine)
    assert any("language_model" in name for name in ran)
    assert not any("vision_tower" in name or "projector" in name for name in ran)


def test_weights_are_held_once(made: Callable[[str], Made]) -> None:
    model, _, bundle = made("llava")
    held: dict[str, set[int]] = {}
    for graph in ("lm", "lm.encode.image"):
        loaded = onnx.load(bundle / f"graphs/{graph}.onnx", load_external_data=False)
        for tensor in loaded.graph.initializer:
            places = [int(entry.value) for entry in tensor.external_data if entry.key == "offset"]
            held.setdefault(graph, set()).update(places)
    assert held["lm"]
    assert held["lm.encode.image"]
    assert not held["lm"] & held["lm.encode.image"]
    # vision_feature_layer is -2: the last layer and the norm after it are read by nothing.
    unused = sum(
        p.numel() for n, p in model.named_parameters() if re.search(r"vision.*(layers\.2\.|post_layernorm)", n)
    )
    weights = sum(p.numel() for p in model.parameters()) - unused
    size = (bundle / "graphs/lm.data").stat().st_size
    assert size < 1.3 * 4 * weights  # each starts on a page
    manifest = runtime.open_bundle(bundle).manifest
    assert [step.graphs for step in manifest.plan] == [("lm.encode.image",), ("lm",)]
    assert manifest.bytes_per_token < 4 * sum(
        p.numel() for n, p in model.named_parameters() if "language_model" in n or "lm_head" in n
    )


def test_what_cannot_be_is_a_sentence(made: Callable[[str], Made]) -> None:
    _, _, bundle = made("llava")
    images = vlm.pixels(2)
    with runtime.load(bundle, threads=1) as session:
        assert session.images is not None
        token, places = session.images.spec.token, session.images.places
        wide = ids_of(session, vlm.pixels(1))
        each = "one for each image is needed"
        room = "this bundle holds 96: shorten it, or compile with a larger target.max_tokens"
        for prompt, options, message in (
            (
                wide,
                {"images": images},
                f"prompt: {places} image tokens (id {token}) and 2 images; {each}, or {2 * places}",
            ),
            (
                wide,
                {"images": np.zeros((3, 9, 8), np.float32)},
                "images[0]: float32[3, 9, 8]; uint8[8, 8, 3], or float32[3, 8, 8] as its processor gives it, is needed",
            ),
            (
                wide,
                {"images": np.full((3, 8, 8), np.nan, np.float32)},
                "images[0]: has values that are not finite; is its file damaged?",
            ),
            (wide, {"modalities": ["image", "text"]}, "modalities: image: the request has no images"),
            (wide, {"modalities": ["sound"]}, "modalities: no 'sound'; there are: image, text"),
            (
                wide,
                {"images": images[:1], "modalities": ["image"]},
                "modalities: image was not compiled; there are: text, image+text",
            ),
            (
                [*[5] * 93, token],
                {"images": images[:1]},
                f"prompt: {93 + places} tokens; {room}",
            ),
        ):
            with pytest.raises(RequestError) as caught:
                session.generate(prompt, **options)
            assert str(caught.value) == message


def test_commands_for_classifiers_say_so(made: Callable[[str], Made]) -> None:
    with pytest.raises(runtime.BundleError, match="a language model: load, and generate with images= or without"):
        runtime.load_modal(made("llava").bundle)


def test_verify_compares_with_the_source(made: Callable[[str], Made]) -> None:
    _, folder, bundle = made("llava")
    parity = verify_bundle(runtime.open_bundle(bundle), folder, threads=1).parity[""]
    assert parity.same_tokens == 20
    assert parity.max_logit_error < 1e-3


def test_a_spec_must_say_what_becomes_of_images(made: Callable[[str], Made], tmp_path: Path) -> None:
    shutil.copytree(made("llava").folder / "model", tmp_path / "model")
    (tmp_path / "model.yaml").write_text("version: 1\nmodels:\n  lm: {source: model}\ntarget: {max_tokens: 96}\n")
    needed = (
        "llava takes images, and no pass says what becomes of them; drop_modality: {modalities: {image: "
        "[pixel_values], text: [input_ids]}, stand_in: empty} is right"
    )
    with pytest.raises(SpecError) as caught:
        compiled(tmp_path)
    assert str(caught.value) == f"models.lm: {needed}"
    done = CliRunner().invoke(main, ["check", str(tmp_path / "model.yaml")])
    assert done.exit_code == 1
    assert needed in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (
            "gemma3",
            {"mm_tokens_per_image": 5},
            "mm_tokens_per_image is 5; a square number whose root divides 4, the patches of an image's side, is right",
        ),
        ("gemma3", {"image_token_index": 9999}, "the image token's id is 9999; a number below vocab_size"),
        ("qwen2_5_vl", {"vision_config": {"window_size": 3}}, "window_size is 3; at least 4, the pixels of a place's"),
        (
            "gemma3",
            {"text_config": {"use_bidirectional_attention": True}},
            "config.json: text_config.use_bidirectional_attention is True, which makes another model than adaptc",
        ),
    ],
)
def test_configs_of_another_model_are_refused(
    family: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = vlm.config(family).to_dict()
    for name, value in change.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError) as caught:
        find_source(ModelSpec(source="."), tmp_path).config()
    assert str(caught.value).startswith(f".: {message}")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_mark_is_refused(tmp_path: Path) -> None:
    vlm.write(tmp_path, "gemma3", num_hidden_layers=1)
    file = tmp_path / "model/tokenizer.json"
    file.write_text(file.read_text().replace("<start_of_image>", "<another>"))
    with pytest.raises(LoadError, match=r"^tokenizer.json: no <start_of_image>, which gemma3 needs; fetch the model"):
        image_spec(find_source(ModelSpec(source="model"), tmp_path))


@pytest.mark.parametrize("crops", [True, False, None])
def test_a_processor_that_cuts_crops_takes_pixels_only(crops: bool | None, tmp_path: Path) -> None:
    vlm.write(tmp_path, "gemma3", num_hidden_layers=1)
    file = tmp_path / "model/preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_pan_and_scan": crops}))
    spec = image_spec(find_source(ModelSpec(source="model"), tmp_path))
    assert spec is not None
    assert bool(spec.mean) is not bool(crops)
    assert (spec.whole, spec.resample) == (True, 2)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (
            "text_config",
            {"model_type": "gpt2"},
            f"llava with a language model of kind 'gpt2' is not supported; supported: {', '.join(decoders_within())}",
        ),
        (
            "vision_config",
            {"model_type": "vit"},
            f"llava with an image encoder of kind 'vit' is not supported; supported: {', '.join(ENCODERS)}",
        ),
    ],
)
def test_parts_that_are_not_captured_are_named(part: str, values: dict[str, str], message: str, tmp_path: Path) -> None:
    config = vlm.config("llava").to_dict() | {part: values}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError) as caught:
        find_source(ModelSpec(source="."), tmp_path).config()
    assert str(caught.value) == f".: {message}"
