"""What compiling a model of some size takes: seconds, processor seconds and memory, with weights drawn at random.

    python -m tests.bench.measure_compile FOLDER --layers 32 --width 4096 --inner 11008 --heads 32 --method nearest

The model is a Llama in bfloat16, written to FOLDER/model unless it is there. The compile is a process of its own with a
cache of its own, `FOLDER/cache`, which is removed before; its memory is looked at ten times a second (Linux). What the
weights are changes no figure, as every code is searched alike.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import torch
from safetensors.torch import save_file

from adaptc.sources.calibration_text import OWN
from tests.models import tiny_tokenizer

LAYERS_OF_A_FILE = 4


def write_model(into: Path, layers: int, width: int, inner: int, heads: int, vocabulary: int) -> None:
    """Write a Llama of random weights as transformers would, a few layers a file."""
    into.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    (into / "config.json").write_text(json.dumps(config))
    index: dict[str, str] = {}

    def put(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, into / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).mul_(0.02).bfloat16()

    ends = {"model.embed_tokens.weight": drawn(vocabulary, width), "lm_head.weight": drawn(vocabulary, width)}
    put("ends.safetensors", {**ends, "model.norm.weight": torch.ones(width).bfloat16()})
    for first in range(0, layers, LAYERS_OF_A_FILE):
        part: dict[str, torch.Tensor] = {}
        for layer in range(first, min(first + LAYERS_OF_A_FILE, layers)):
            stem = f"model.layers.{layer}"
            part |= {f"{stem}.self_attn.{name}_proj.weight": drawn(width, width) for name in "qkvo"}
            part |= {f"{stem}.mlp.{name}_proj.weight": drawn(inner, width) for name in ("gate", "up")}
            part[f"{stem}.mlp.down_proj.weight"] = drawn(width, inner)
            for name in ("input_layernorm", "post_attention_layernorm"):
                part[f"{stem}.{name}.weight"] = torch.ones(width).bfloat16()
        put(f"layers-{first}.safetensors", part)
    (into / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    tiny_tokenizer.save(tiny_tokenizer.byte_level(), into)


def timed(command: list[str]) -> tuple[float, float, dict[str, int]]:
    """Run a command; seconds, processor seconds, and its peaks of memory in MB by Linux's names."""
    began, peaks = time.monotonic(), {"VmRSS": 0, "RssAnon": 0}
    process = subprocess.Popen(command)
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            lines = []
        for name, _, value in (line.partition(":") for line in lines):
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]) // 1000)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - began, used.ru_utime + used.ru_stime, peaks


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layers", default=28)
@click.option("--width", default=1536)
@click.option("--inner", default=8960)
@click.option("--heads", default=12)
@click.option("--vocabulary", default=151936)
@click.option("--method", type=click.Choice(["gptq", "nearest", "hqq"]), default="nearest")
@click.option("--tokens", default=5504, help="Calibration tokens of gptq.")
def main(
    folder: Path, layers: int, width: int, inner: int, heads: int, vocabulary: int, method: str, tokens: int
) -> None:
    """Make the model if it is not there, compile it, and print what that took."""
    if not (folder / "model").exists():
        write_model(folder / "model", layers, width, inner, heads, vocabulary)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    command = [sys.executable, "-m", "adaptc", "-v", "compile", str(folder / "model"), "-o", str(folder / "bundle")]
    command += ["--cache-dir", str(folder / "cache"), "--quantize", method]
    command += [f"--set=calibration.text={OWN}", f"--set=calibration.tokens={tokens}"]
    wall, processor, peaks = timed(command)
    print(f"{method}: {wall:.0f} s, {processor:.0f} s of processors, {peaks} MB, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
