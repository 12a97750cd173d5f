"""Make the bundles of the GPU tests: python -m tests.gpu.prepare OUT [NAME …]; all of them without names."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.gpu.large_bundles import write_llama, write_smollm2
from tests.gpu.small_bundles import write_gated, write_routes, write_tiny, write_views

BUNDLES = {
    "smollm2": write_smollm2,
    "llama": write_llama,
    "routes": write_routes,
    "gated": write_gated,
    "tiny": write_tiny,
    "views": write_views,
}


def main(into: Path, names: list[str]) -> None:
    """Write bundles, each with what a CPU says of it beside it."""
    into.mkdir(parents=True, exist_ok=True)
    for name in names or BUNDLES:
        for old in (into / name, into / "scratch", into / "cpu", into / f"{name}.weights"):
            shutil.rmtree(old, ignore_errors=True)
        BUNDLES[name](into)
        print(name, "written", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
