"""Build and time a bundle's engines on the GPU at hand, and keep what was found. Needs only the runtime.

usage: python -m tests.gpu.measure STAGE --out DIR [--bundle DIR] [--expected FILE] [--batch N …]

stages: device      what the machine is, and what a copy moves
        build       every engine the bundle needs, with --whole also the dense model in one piece
        check       against what eager float32 said (prepare.py wrote it): tokens, KL, masks
        time        steps: dense, in one piece, and with shares of the blocks skipped; the host's part; memory
        partitions  where a step's time goes
        routes      steps of each route of a stitched bundle, and of rows of several routes
        answers     a session's answers beside those of a CPU (prepare.py wrote them)
        infer       subsets of modalities beside what the model says, and their times
        leaks       many times: load, read a prompt, write two tokens, close
Each stage adds to DIR/results.json, so that what was measured is there if a later one fails.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.tensorrt.build import BuildProgress, build_engines
from adaptc.runtime.backends.tensorrt.engines import EngineFolder
from adaptc.runtime.bundle.folder import open_bundle
from tests.gpu.answers import check_answers, infer_bundle
from tests.gpu.leaks import load_often
from tests.gpu.partition_times import partitions_bundle
from tests.gpu.route_times import routes_bundle
from tests.gpu.steps import check_bundle, time_bundle


def device(_: argparse.Namespace) -> dict[str, object]:
    cuda = Cuda()
    size, stream = 4 << 30, cuda.stream()
    a, b = cuda.alloc(size), cuda.alloc(size)
    begin, end = cuda.event(timing=True), cuda.event(timing=True)
    times = []
    for _round in range(10):
        cuda.record(begin, stream)
        cuda.copy_rows((b, size >> 2), (a, size >> 2), size >> 2, 4, stream)
        cuda.record(end, stream)
        cuda.wait(end)
        times.append(cuda.seconds(begin, end))
    found: dict[str, object] = {
        "gpu": cuda.device.name,
        "sm": cuda.device.sm,
        "driver": cuda.device.driver,
        "copy_bytes_per_second": 2 * size / sorted(times)[5],
    }
    cuda.close()
    return found


def build(given: argparse.Namespace) -> dict[str, object]:
    began = time.perf_counter()
    records = []

    def tell(progress: BuildProgress) -> None:
        record = progress.record
        how = "cached" if progress.cached else f"{record.seconds:.1f} s"
        about = f"{record.name} {record.sizes} {record.bytes / 1e6:.1f} MB {how}"
        print(f"{progress.done}/{progress.total} {about}", flush=True)
        records.append({"name": record.name, "sizes": record.sizes, "bytes": record.bytes, "seconds": record.seconds})

    bundle = open_bundle(given.bundle, verify=False)
    built = build_engines(
        bundle,
        "tensorrt",
        batches=given.batch,
        kv_buckets=given.kv_buckets,
        chunk=given.chunk,
        whole=given.whole,
        mode=given.mode,
        observe=tell,
    )
    layers = {f"{record.name} {record.sizes}": record.layers for record in built}
    report = EngineFolder(given.bundle, "tensorrt").report()
    return {"engines": records, "seconds": time.perf_counter() - began, "layers": layers, "report": asdict(report)}


def check(given: argparse.Namespace) -> dict[str, object]:
    return check_bundle(open_bundle(given.bundle, verify=False), dict(np.load(given.expected)))


def time_(given: argparse.Namespace) -> dict[str, object]:
    bundle = open_bundle(given.bundle, verify=False)
    return {f"batch {batch}": time_bundle(bundle, batch, given.whole, given.mode) for batch in given.batch}


def partitions(given: argparse.Namespace) -> dict[str, object]:
    bundle = open_bundle(given.bundle, verify=False)
    return {f"batch {batch}": partitions_bundle(bundle, batch) for batch in given.batch}


def routes(given: argparse.Namespace) -> dict[str, object]:
    bundle = open_bundle(given.bundle, verify=False)
    return {f"batch {batch}": routes_bundle(bundle, batch) for batch in given.batch}


def answers(given: argparse.Namespace) -> dict[str, object]:
    return check_answers(open_bundle(given.bundle, verify=False), given.expected)


def infer(given: argparse.Namespace) -> dict[str, object]:
    return infer_bundle(open_bundle(given.bundle, verify=False), given.expected)


def leaks(given: argparse.Namespace) -> dict[str, object]:
    return {**load_often(open_bundle(given.bundle, verify=False), given.loads, given.seconds)}


STAGES = {
    "device": device,
    "build": build,
    "check": check,
    "time": time_,
    "partitions": partitions,
    "routes": routes,
    "answers": answers,
    "infer": infer,
    "leaks": leaks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--expected", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--kv-buckets", type=int, nargs="+", default=[])
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--whole", action="store_true", help="also the dense model in one piece")
    modes = ["auto", "on_device", "one_step_late"]
    parser.add_argument("--mode", choices=modes, default="on_device", help="who follows the gates")
    parser.add_argument("--loads", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--label", help="what the results are filed under; by default the stage and the bundle's name")
    given = parser.parse_args()
    label = given.label or " ".join([given.stage, *([given.bundle.name] if given.bundle else [])])
    found = STAGES[given.stage](given)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(results | {label: found}, indent=1) + "\n")
    with (given.out / "results.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({label: found}) + "\n")
    shown = {key: value for key, value in found.items() if key not in ("layers", "answers", "each")}
    print(label, json.dumps(shown, indent=1), flush=True)


if __name__ == "__main__":
    main()
