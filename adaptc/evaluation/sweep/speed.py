"""How fast a bundle writes under each budget, beside its dense twin and the ceiling that bytes set.

The dense twin is the bundle's graph without gates. All write the same tokens of a text after
the same prompt, in turns, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from adaptc.compiler.weights_file import read_bytes_per_token
from adaptc.errors import RequestError
from adaptc.evaluation.text import Ids
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.machine.turns import in_turns
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.model.budget import DENSE, Skips, threshold_at
from adaptc.runtime.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class Timing:
    """How to time.

    Attributes:
        context: Tokens that are read before; at least the gates' warm-up is.
        steps: Tokens that are written in a turn.
        turns: Turns of each budget and of the dense twin; one more warms up.
        threads: Threads of the engine; None for the physical cores.
    """

    context: int = 64
    steps: int = 64
    turns: int = 5
    threads: int | None = None


def speeds(
    bundle: Bundle, ids: Ids, shares: Sequence[float], timing: Timing, progress: Progress = SILENT
) -> dict[str, Any]:
    """Decoding speed at each share, batch 1, as `--json` prints it.

    Args:
        bundle: With gates, of any policy.
        ids: int64 [tokens] that are written, whatever the model would choose.
        shares: Shares of all feed-forward blocks; those beyond the bundle's largest are left out. 0 is budget 1.
        timing: How long and how often each kind is timed.
        progress: Told of stages and steps.

    Raises:
        RequestError: the text is too short, or the bundle has no gates or no dense twin.
    """
    name = bundle.manifest.reader
    gates, decoder = bundle.manifest.gates.get(name), bundle.manifest.graphs[name].decoder
    if gates is None or decoder is None:
        raise RequestError(f"{bundle.path}: no gates; its speed is the same under every budget")
    if not gates.dense:
        raise RequestError(f"{bundle.path}: no graph without gates in it; a bundle that is compiled again has one")
    context = max(timing.context, gates.warmup)
    needed = context + timing.steps
    if len(ids) < needed or decoder.max_tokens < needed:
        raise RequestError(f"text: {min(len(ids), decoder.max_tokens)} tokens; {needed} are needed for timing")
    most = gates.thresholds[-1][0]
    wanted = [share for share in shares if share <= most + 0.005]
    levels = {
        share: DENSE if share <= 0 else threshold_at(gates.thresholds, max(0.0, 1 - share / most)) for share in wanted
    }
    files = {graph: bundle.onnx(bundle.manifest.graphs[graph].file) for graph in (name, gates.dense)}
    gated = HostDecoder(OrtEngine(files[name], timing.threads), decoder, 1, context, gates)
    dense = HostDecoder(OrtEngine(files[gates.dense], timing.threads), decoder, 1, context)
    measurements: dict[float | None, Callable[[], tuple[list[float], list[bytes]]]] = {
        None: partial(_turn, dense, ids[:needed], context, DENSE)
    }
    for share in wanted:
        measurements[share] = partial(_turn, gated, ids[:needed], context, levels[share])
    progress.stage("speed")
    results = in_turns(measurements, timing.turns, progress)
    seconds = {share: _seconds([steps for steps, _ in turns]) for share, turns in results.items()}
    skips = {share: gated.skips(results[share][-1][1]) for share in wanted}
    gated.close()
    dense.close()
    skippable = np.array(bundle.manifest.graphs[name].skippable_bytes)
    whole = read_bytes_per_token(OnnxGraph(ir.load(files[gates.dense])))
    reads = _Reads(whole, bundle.manifest.bytes_per_token, skippable)
    rows = [
        {
            "share": share,
            "budget": round(max(0.0, 1 - share / most), 4),
            **_figures(skips[share], seconds[share], seconds[None], reads),
        }
        for share in wanted
    ]
    return {
        "dense_tokens_per_second": round(1 / seconds[None], 2),
        "dense_bytes_per_token": whole,
        "threads": timing.threads or physical_cores(),
        "context": context,
        "steps": timing.steps,
        "turns": timing.turns,
        "rows": rows,
    }


@dataclass(frozen=True, slots=True)
class _Reads:
    """Bytes of weights that a decode step reads.

    Attributes:
        dense: Bytes that the dense twin reads.
        gated: Bytes that the graph with gates reads when it runs every block.
        skippable: int64 [gates], bytes of each block with a gate.
    """

    dense: int
    gated: int
    skippable: npt.NDArray[np.int64]

    def saved(self, skips: Skips) -> float:
        """Bytes that a step does not read, on average, because blocks are skipped."""
        return float((~skips.ran @ self.skippable).mean())


def _figures(skips: Skips | None, seconds: float, dense_seconds: float, reads: _Reads) -> dict[str, float]:
    """What a row says of one share: how much is skipped, the speed, and the ratio that the saved bytes would allow."""
    assert skips is not None
    saved = reads.saved(skips)
    return {
        "ffn_skipped": round(skips.share, 5),
        "tokens_per_second": round(1 / seconds, 2),
        "ratio": round(dense_seconds / seconds, 4),
        "ceiling": round(reads.dense / (reads.gated - saved), 4),
        "bytes_not_read": round(saved),
    }


def _turn(decoder: HostDecoder, ids: Ids, context: int, level: float) -> tuple[list[float], list[bytes]]:
    """Seconds of each step, and which gated blocks ran."""
    decoder.prefill(0, ids[:context], level)
    seconds, ran = [], []
    for token in ids[context:].tolist():
        began = perf_counter()
        decoder.decode([token])
        seconds.append(perf_counter() - began)
        if (now := decoder.ran(0)) is not None:
            ran.append(now)
    return seconds, ran


def _seconds(turns: list[list[float]]) -> float:
    """Seconds of a step: of each step the lower quartile over turns, which do the same work; then the mean of steps."""
    each: npt.NDArray[np.float64] = np.quantile(np.array(turns), 0.25, axis=0)
    return float(each.mean())
