"""Room for long texts that nobody writes: it takes no memory, and neither do its tables of RoPE."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.report.page import kv_bytes
from adaptc.spec.reading import read_spec
from tests.models import folder

LONG, SHORT = 1 << 17, 2048
READ = """
import json, pathlib, sys
from adaptc import runtime

def resident():
    return int(pathlib.Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024

with runtime.load(sys.argv[1], threads=1) as session:
    loaded = resident()
    ids = session.generate(list(range(2, 42)), max_new_tokens=8).ids
    print(json.dumps({"loaded": loaded, "used": resident(), "ids": ids}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process has")
def test_room_that_no_text_uses_takes_no_memory(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path, head_dim=64, num_key_value_heads=4, max_position_embeddings=LONG)
    found = {}
    for tokens in (SHORT, LONG):
        path = tmp_path / str(tokens)
        more = read_spec(spec, [f"target.max_tokens={tokens}", "target.batch=2"])
        bundle = compile_spec(more, tmp_path, path, Cache(tmp_path / "cache")).bundle
        run = subprocess.run([sys.executable, "-c", READ, path], check=True, capture_output=True, text=True)
        found[tokens] = json.loads(run.stdout)
    assert kv_bytes(bundle.manifest) == 2 * 3 * 4 * 64 * 4 * LONG  # 805 MB for each of two sequences
    assert found[LONG]["ids"] == found[SHORT]["ids"]
    tables = 2 * LONG * 32 * 4  # 34 MB, which are mapped from the bundle
    for when in ("loaded", "used"):
        assert found[LONG][when] - found[SHORT][when] < tables / 2
