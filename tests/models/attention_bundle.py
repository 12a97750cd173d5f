"""A whole bundle around the tiny attention model: real graph, real tokenizer, nothing pretrained."""

from __future__ import annotations

from pathlib import Path

from adaptc.runtime.bundle.folder import Bundle, write_bundle
from adaptc.runtime.bundle.manifest import DecoderSpec, GraphSpec, Manifest, ModelRecord, TargetRecord
from adaptc.runtime.bundle.plan import Run
from tests.models import tiny_tokenizer
from tests.models.attention_lm import AttentionLm

LM = AttentionLm(vocab=330, max_tokens=96)
SPEC = "version: 1\nmodels:\n  lm: {source: lm.gguf}\n"


def write(into: Path, weights: str = "fp32", tokenizer: bool = True, eos: tuple[int, ...] = (1,)) -> Bundle:
    """Write it."""
    decoder = DecoderSpec(LM.vocab, LM.max_tokens, ((LM.kv_heads, LM.head_dim),) * LM.layers, 0, eos, None)
    files: dict[str, Path | bytes] = {"graphs/lm.onnx": LM.model().SerializeToString(), "spec.yaml": SPEC.encode()}
    if tokenizer:
        spelled = tiny_tokenizer.files(tiny_tokenizer.byte_level())
        files |= {f"tokenizer/{name}": content for name, content in spelled.items()}
    manifest = Manifest(
        adaptc="0",
        models={"lm": ModelRecord("lm.gguf", None, None, "llama", "0" * 64)},
        passes=(),
        plan=(Run("lm"),),
        graphs={"lm": GraphSpec("graphs/lm.onnx", (), (), (), decoder)},
        gates={},
        target=TargetRecord("onnxruntime", weights, LM.max_tokens, 1),
        versions={},
        bytes_per_token=1234,
    )
    return write_bundle(into, files, manifest)
