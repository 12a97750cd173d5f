"""skip_ffn: feed-forward blocks that run only for the tokens that need them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from adaptc.errors import LoadError, PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.runtime.bundle.skip_gates import SkipGates

if TYPE_CHECKING:
    from adaptc.passes.quantize.calibrate import Ids

    Levels = tuple[tuple[float, float], ...]

LOW_RANK = re.compile(r"low_rank\( *([0-9]{1,4}) *\)")


@dataclass(frozen=True, slots=True)
class SkipFfn(Pass):
    """Let each token skip the feed-forward blocks it does not need.

    Before:  h = h + mlp(norm h)
    After:   h = h + skip(logit, threshold, mlp(norm h), cheap(norm h)): where logit < threshold, `cheap` stands in

    A gate's logit comes from the state before attention, so the answer is there in time. Attention always runs, so
    the cache is what a dense model's would be. `threshold` is a new input, one number for each token: -inf runs every
    block. `branch` gives the choice a form that reads no weight of a skipped block.

    Policies: `learned` gates and cheap paths are trained by `adaptc train`. `static` skips the same blocks for every
    token, the least important first. `cosine` is FFN-SkipLLM's: where a block hardly turns its state, the next k are
    skipped. `off` changes nothing.

    Needs: FX level, before gptq and lower. `static` and `cosine` need calibration text.
    Shapes: new input threshold float32[batch, tokens].
    Cost: `static` and `cosine` run the model over some calibration text, about a minute for 135 M parameters.

    Attributes:
        policy: How gates decide.
        gates: The file of trained gates; for `learned`, and only there.
        layers: Which layers get a gate; `auto` is those of the gates file, else those that matter least.
        cheap: What `adaptc train` makes to stand in for a skipped block: `low_rank(N)` is a block of N inner neurons,
            `identity` nothing: the block gives zero, and the state passes unchanged.
        warmup: Positions at the start of a sequence where every block runs.
        batch: With several rows in a step: with `rows` each row runs the blocks that it wants, so its answer does not
            depend on the others; `any` runs a block for all rows if one of them wants it, `group` if they want it on
            average (a row may then lose a block that it wanted), `off` runs all. `auto` is `rows` on a CPU, unless
            `any` is much quicker (for a target of one row: quicker), and `any` elsewhere. How many rows still gain is
            measured when compiling; more run dense.
        budget: Default budget for requests without one: 0 skips as much as the gates can, 1 nothing.
        tau: For `cosine`: from this similarity on, 0 to 1, blocks are skipped.
        k: For `cosine`: how many.
        model: Which model's blocks, in a spec of several; None for all.

    Raises:
        PassError: the model has no such blocks, the gates are of another model, or an option does not fit.

    Reference: Jaiswal et al., "FFN-SkipLLM", arXiv:2404.03865.
    """

    name: ClassVar[str] = "skip_ffn"
    policy: Literal["learned", "static", "cosine", "off"] = "learned"
    gates: str | None = None
    layers: Literal["auto"] | tuple[int, ...] = "auto"
    cheap: str = "low_rank(64)"
    warmup: int = 28
    batch: Literal["auto", "rows", "any", "group", "off"] = "auto"
    budget: float = 1.0
    tau: float = 0.95
    k: int = 2
    model: str | None = None

    def __post_init__(self) -> None:
        if self.gates is not None and self.policy != "learned":
            raise PassError(f"gates: policy '{self.policy}' has none; policy: learned takes a file")
        if self.cheap != "identity" and not 1 <= self.rank <= 4096:
            raise PassError(f"cheap: {self.cheap!r}; identity, or low_rank(N) with N from 1 to 4096, is right")
        if self.warmup < 0:
            raise PassError(f"warmup: {self.warmup}; a number of tokens from 0 is right")
        if not 0 <= self.budget <= 1:
            raise PassError(f"budget: {self.budget}; a number from 0 (cheapest) to 1 (dense) is right")
        if not 0 < self.tau <= 1:
            raise PassError(f"tau: {self.tau}; a cosine above 0, at most 1, is right")
        if self.k < 1:
            raise PassError(f"k: {self.k}; a number of blocks from 1 is right")
        if self.layers != "auto" and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise PassError(f"layers: {list(self.layers)}; 'auto' or a rising list of layer indices is right")

    @property
    def rank(self) -> int:
        """Inner neurons of a cheap path; 0 for `identity`."""
        form = LOW_RANK.fullmatch(self.cheap)
        return int(form[1]) if form else 0

    def files(self) -> dict[str, str]:
        return {"gates": self.gates} if self.gates is not None else {}

    def apply(self, program: Program) -> Program:
        graphs = {name: graph for name, graph in program.at_level(FxGraph).items() if name not in program.encoders}
        if self.model is not None and graphs:
            graphs = {self.model: program.graph(self.model, FxGraph)}
        if self.policy == "off" or not graphs:
            return program
        for name, graph in graphs.items():
            fork, gates = self._gated(program, name, graph)
            program = replace(program.with_graph(name, fork), gates={**program.gates, name: gates})
        return program

    def _gated(self, program: Program, name: str, graph: FxGraph) -> tuple[FxGraph, SkipGates]:
        # Imported here: these need this package's calibration, and may be what is imported first.
        from adaptc.passes.skip_ffn import gating
        from adaptc.passes.skip_ffn.importance import ffn_cosines, ffn_importance

        blocks = len(gating.ffn_blocks(graph))
        if self.layers != "auto" and not 0 <= self.layers[0] <= self.layers[-1] < blocks:
            raise PassError(f"layers: {list(self.layers)}; this model's layers are 0 to {blocks - 1}")
        if self.policy == "learned":
            return self._learned(program, name, graph, blocks)
        ids = self._sample(program, name)
        if self.policy == "static":
            importance = ffn_importance(graph, ids)
            order = sorted(self.layers if self.layers != "auto" else _half(importance), key=lambda i: importance[i])
            fork = gating.static(graph, {layer: float(place) for place, layer in enumerate(order)}, {})
            levels = tuple(((place + 1) / blocks, place + 0.5) for place in range(len(order)))
            return fork, self._gates("static", tuple(sorted(order)), blocks, levels)
        layers = self.layers if self.layers != "auto" else region(ffn_cosines(graph, ids), self.tau)
        if len(layers) < 2:
            raise PassError(f"tau: {self.tau}; no two neighbouring layers are that similar, a lower value is right")
        fork = gating.cosine(graph, layers, self.tau, self.k)
        levels = tuple(
            (share, -left - 0.5)
            for left in reversed(range(self.k))
            if (share := _skipped(fork, ids, -left - 0.5, self.warmup) / blocks) > 0
        )
        return fork, self._gates("cosine", tuple(layers), blocks, levels)

    def _learned(self, program: Program, name: str, graph: FxGraph, blocks: int) -> tuple[FxGraph, SkipGates]:
        from adaptc.ir.stored.gates_file import load_gates
        from adaptc.passes.skip_ffn import gating

        if self.gates is None:
            raise PassError("gates: policy 'learned' needs a file; `adaptc train` makes one")
        path = Path(self.gates)
        try:
            metadata, weights = load_gates(path)
        except LoadError as error:
            raise PassError(str(error)) from error
        backbone = program.backbones.get(program.model(name))
        if metadata.blocks != blocks:
            raise PassError(f"{path.name}: gates of a model with {metadata.blocks} layers; this one has {blocks}")
        if backbone is not None and backbone.sha256 and metadata.sha256 != backbone.sha256:
            raise PassError(
                f"{path.name}: gates of {metadata.model}, other weights than {backbone.origin}; train again"
            )
        if self.layers not in ("auto", metadata.layers):
            raise PassError(f"layers: {list(self.layers)}; the gates in {path.name} are for {list(metadata.layers)}")
        places = gating.ffn_blocks(graph)
        wanted = {n: s for layer in metadata.layers for n, s in gating.parameters(places[layer], metadata.rank).items()}
        wrong = [n for n, shape in wanted.items() if n not in weights or tuple(weights[n].shape) != shape]
        if wrong:
            found = list(weights[wrong[0]].shape) if wrong[0] in weights else "missing"
            raise PassError(f"{path.name}: {wrong[0]}: {found}; shape {list(wanted[wrong[0]])} is right")
        fork = gating.learned(graph, metadata.layers, weights)
        gates = self._gates("learned", metadata.layers, blocks, metadata.thresholds)
        written = ((0.0, float("-inf")), *metadata.written) if metadata.written else ()
        warmup, losses = max(self.warmup, metadata.warmup), metadata.written_loss
        return fork, replace(gates, warmup=warmup, written=written, written_loss=losses)

    def _gates(self, policy: str, layers: tuple[int, ...], blocks: int, levels: Levels) -> SkipGates:
        table = ((0.0, float("-inf")), *levels)
        return SkipGates(policy, layers, blocks, self.warmup, self.batch, table, budget=self.budget)

    def _sample(self, program: Program, name: str) -> Ids:
        from adaptc.passes.quantize.calibrate import calibration_ids

        if name not in program.samples:
            raise PassError(f"no calibration text for '{name}'; policy: {self.policy} is chosen by it")
        return calibration_ids(program.samples[name], tokens=2048)


def _half(importance: list[float]) -> list[int]:
    """The layers that matter least, half of them."""
    order = sorted(range(len(importance)), key=lambda layer: importance[layer])
    return order[: len(order) // 2]


def region(cosines: list[float], tau: float) -> tuple[int, ...]:
    """The longest run of neighbouring layers that turn their state little: between the cold start and the cold end."""
    longest: tuple[int, ...] = ()
    run: tuple[int, ...] = ()
    for layer, cosine in enumerate(cosines):
        run = (*run, layer) if cosine >= tau else ()
        longest = max(longest, run, key=len)
    return longest


def _skipped(graph: FxGraph, ids: Ids, threshold: float, warmup: int) -> float:
    """Blocks skipped for a token, after the warm-up."""
    from adaptc.passes.skip_ffn.importance import decisions

    ran = decisions(graph, ids, threshold, warmup)
    return float((~ran).sum(0).mean())
