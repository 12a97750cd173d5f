"""drop_modality: a graph for each useful subset of a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.runtime.bundle.manifest import ModalitySpec, ModalSpec, SubsetSpec
from adaptc.runtime.bundle.plan import Run, Switch

if TYPE_CHECKING:
    import torch
    from torch import fx

    from adaptc.passes.drop_modality.graph import Cut


@dataclass(frozen=True, slots=True)
class DropModality(Pass):
    """Let a multimodal model run without some of its inputs.

    Before:  y = fuse(image_encoder(image), text_encoder(text), speech_encoder(speech))
    After:   a graph for each encoder, and one for each subset: y = fuse(image_features, text_features, stand-in)

    What only one modality reaches becomes its encoder; the rest, once for each subset, has stand-ins for the features
    of the others. An encoder whose modality is left out is not run and its weights are not read. Weights are held once.

    Stand-ins: `learned` is the model's own parameter `missing.NAME` (`missing.NAME.0` and so on for several features).
    `mean` is the feature's mean over `data`. `refit` is `mean`, and the last linear layer is fitted anew for each
    subset on the labels in `data`. `empty` is nothing: `cat` and `stack` leave the feature out, so a transformer sees
    fewer tokens.

    A language model that takes images is cut into their encoder and one decoder, which keeps the model's name and takes
    images' features as an input of any number of rows: no image is no row. Its stand-in is `empty`, its inputs are
    `pixel_values` and `input_ids`, and what leaves the text out is left out itself.

    Needs: FX level, before skip_ffn, gptq and lower.
    Shapes: unchanged; a subset's graph has the features of its modalities as inputs.
    Cost: a graph of the part after the encoders for each subset. `refit` takes seconds for each.

    Attributes:
        modalities: Names of the model's inputs by modality; each input belongs to one.
        model: Which model; not needed if there is one.
        keep: The subsets, or `all` that are not empty. A modality that is in none of them is gone for good.
        stand_in: What stands for the features of a modality that is left out.
        data: An .npz file: the inputs by name, [rows, ...], and `labels` int64[rows]; for `mean` and `refit`, and only
            there.

    Raises:
        PassError: an input or a modality is unknown, a modality cannot be left out, or the data does not fit.

    Reference: Hu et al., "MOSEL", arXiv:2310.18481.
    """

    name: ClassVar[str] = "drop_modality"
    modalities: dict[str, tuple[str, ...]]
    model: str | None = None
    keep: Literal["all"] | tuple[tuple[str, ...], ...] = "all"
    stand_in: Literal["learned", "mean", "refit", "empty"] = "learned"
    data: str | None = None

    def __post_init__(self) -> None:
        if len(self.modalities) < 2:
            raise PassError(
                f"modalities: {len(self.modalities)}; two or more are right, or there is nothing to leave out"
            )
        for name, inputs in self.modalities.items():
            if not name.isidentifier():
                raise PassError(f"modalities: {name!r} is not a name: letters, digits and _, not starting with a digit")
            if not inputs:
                raise PassError(f"modalities: {name}: no inputs; names of the model's inputs are right")
        for subset in self.keep if self.keep != "all" else ():
            unknown = [name for name in subset if name not in self.modalities]
            if unknown:
                raise PassError(f"keep: no modality {unknown[0]!r}; there are: {', '.join(self.modalities)}")
            if not subset or len(set(subset)) != len(subset):
                raise PassError(f"keep: {list(subset)}; one or more modalities, each once, are right")
        needs = self.stand_in in ("mean", "refit")
        if needs != (self.data is not None):
            raise PassError(
                f"data: stand_in: {self.stand_in} needs an .npz file of inputs"
                if needs
                else f"data: stand_in: {self.stand_in} reads none; stand_in: mean or refit do"
            )

    def files(self) -> dict[str, str]:
        return {"data": self.data} if self.data is not None else {}

    def subsets(self) -> tuple[tuple[str, ...], ...]:
        """The subsets in the model's order of modalities, smaller ones first."""
        whole = tuple(self.modalities)
        if self.keep == "all":
            return tuple(s for size in range(1, len(whole) + 1) for s in combinations(whole, size))
        kept = {tuple(name for name in whole if name in subset) for subset in self.keep}
        return tuple(sorted(kept, key=lambda s: (len(s), [whole.index(name) for name in s])))

    def apply(self, program: Program) -> Program:
        graphs = program.at_level(FxGraph)
        if self.model is not None:
            return self._split(program, self.model, program.graph(self.model, FxGraph))
        if not graphs:
            return program
        if len(graphs) > 1:
            raise PassError(f"model: which of {', '.join(graphs)}? name one")
        [(name, graph)] = graphs.items()
        return self._split(program, name, graph)

    def _split(self, program: Program, model: str, graph: FxGraph) -> Program:
        from adaptc.passes.drop_modality import decoder as modal_decoder

        if modal_decoder.is_decoder(graph):
            return self._split_decoder(program, model, graph)
        from adaptc.passes.drop_modality.graph import cut, encoder, feature_names, narrowed
        from adaptc.passes.drop_modality.stand_ins import missing_shape

        divided = cut(graph.fork(), self.modalities)
        if self.stand_in == "learned":
            for name in self.modalities:
                divided = narrowed(divided, name, missing_shape(divided, name))
        graphs = {name: each for name, each in program.graphs.items() if name != model}
        specs = {}
        used = {name for subset in self.subsets() for name in subset}
        for name, inputs in self.modalities.items():
            if name not in used:
                continue
            part = encoder(divided, name)
            specs[name] = ModalitySpec(
                tuple(inputs), f"{model}.encode.{name}" if part is not None else None, feature_names(divided, name)
            )
            if part is not None:
                graphs[f"{model}.encode.{name}"] = part
        subsets = []
        for subset, part in self._heads(divided).items():
            subsets.append(SubsetSpec(subset, f"{model}.fuse.{'+'.join(subset)}"))
            graphs[subsets[-1].graph] = part
        # The largest first: it is taken where nothing picks.
        routes = {"+".join(each.modalities): each.graph for each in reversed(subsets)}
        encoders = tuple(Run(spec.encoder) for spec in specs.values() if spec.encoder is not None)
        plan = [step for step in program.plan if step != Run(model)]
        return replace(
            program,
            graphs=graphs,
            plan=(
                *plan,
                *encoders,
                Switch(f"{model}.modalities", routes) if len(subsets) > 1 else Run(subsets[0].graph),
            ),
            modal={**program.modal, model: ModalSpec(specs, tuple(subsets))},
            model_of={**program.model_of, **dict.fromkeys(graphs.keys() - program.graphs.keys(), model)},
        )

    def _split_decoder(self, program: Program, model: str, graph: FxGraph) -> Program:
        """A language model: its images' encoder, and one decoder for all subsets."""
        from adaptc.passes.drop_modality import decoder as modal_decoder

        if self.stand_in != "empty":
            raise PassError(f"stand_in: {self.stand_in}; nothing stands for a language model's image: empty is right")
        subsets = modal_decoder.subsets_of(self.modalities, self.subsets(), named=self.keep != "all")
        parts, spec = modal_decoder.split(graph, model, self.modalities, subsets)
        plan = [each for step in program.plan for each in (map(Run, parts) if step == Run(model) else [step])]
        return replace(
            program,
            graphs={name: each for name, each in program.graphs.items() if name != model} | parts,
            plan=tuple(plan),
            modal={**program.modal, model: spec},
            model_of={**program.model_of, **dict.fromkeys(parts, model)},
        )

    def _heads(self, cut: Cut) -> dict[tuple[str, ...], FxGraph]:
        """The graph of each subset."""
        from adaptc.passes.drop_modality import stand_ins
        from adaptc.passes.drop_modality.graph import StandIn, head
        from adaptc.passes.drop_modality.refit import features_of, read_data, refitted

        features: dict[str, torch.Tensor] = {}
        if self.data is not None:
            arrays, labels = read_data(Path(self.data), self.modalities, labelled=self.stand_in == "refit")
            features = features_of(cut, arrays)
        made: dict[str, Mapping[fx.Node, StandIn]] = {}
        whole = tuple(self.modalities)
        heads = {}
        for subset in self.subsets():
            without = [name for name in whole if name not in subset]
            for name in without:
                if name not in made:
                    make = {"learned": stand_ins.learned, "empty": stand_ins.empty}.get(self.stand_in)
                    made[name] = make(cut, name) if make is not None else stand_ins.mean(cut, name, features)
            try:
                part = head(cut, subset, {node: each for name in without for node, each in made[name].items()})
                part = stand_ins.without_absent(part) if self.stand_in == "empty" else part
            except PassError as error:
                raise PassError(f"keep: {'+'.join(subset)}: {error}") from error
            refit = self.stand_in == "refit" and without
            heads[subset] = refitted(part, features, labels, f"refit.{'+'.join(subset)}") if refit else part
        return heads
