"""A running multimodal bundle: inputs in, outputs out, from the modalities that are worth their time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from adaptc.runtime.backends.engine import Array
from adaptc.runtime.bundle.manifest import ModalSpec, TensorSpec
from adaptc.runtime.errors import RequestError
from adaptc.runtime.multimodal.inputs import Inputs, ModalInputs, batch_size, blank_inputs, read_inputs
from adaptc.runtime.multimodal.jobs import JobQueue
from adaptc.runtime.multimodal.modality_gate import choose_subsets, gate_features, modality_options, probabilities
from adaptc.runtime.multimodal.prices import Prices
from adaptc.runtime.multimodal.profile import ModalProfile
from adaptc.runtime.multimodal.strategy import ModalityOption, rows_seconds
from adaptc.runtime.multimodal.subsets import BatchOutput, ModalGraphs
from adaptc.runtime.multimodal.times import MeasuredTimes
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.runtime.validation import check_elements, check_milliseconds, check_share, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self


@dataclass(frozen=True, slots=True)
class ModalTrace:
    """What was decided for a request.

    Attributes:
        option: The option that ran: a subset, `image+text`, or the modality gate at a level, `gate@3`.
        modalities: The modalities that each row's outputs come from.
        accuracy: Expected share of correct outputs, 0 to 1; None if the bundle was never profiled.
        confidence: P(correct) of each row, if the modality gate decided.
        predicted_ms: Predicted milliseconds; None if the bundle was never profiled.
        ms: Milliseconds that it took.
    """

    option: str
    modalities: tuple[tuple[str, ...], ...]
    accuracy: float | None
    confidence: tuple[float, ...] | None
    predicted_ms: float | None
    ms: float


@dataclass(frozen=True, slots=True)
class Inference:
    """The result of a request.

    Attributes:
        outputs: The model's outputs by name, [rows, ...] each.
        trace: What was decided.
    """

    outputs: dict[str, Array]
    trace: ModalTrace


class ModalSession:
    """A loaded multimodal model; threads may share it, and their runs take turns.

    Attributes:
        modal: Its modalities and subsets.
        graphs: What runs them; `graphs.ran` counts the runs of each graph.
        profile: Measured accuracy and time; None if `adaptc profile` never ran on the bundle.
        verified: Whether the bundle's files were compared with their hashes.
        inputs: What each input of the graphs is, by name.
    """

    def __init__(
        self,
        modal: ModalSpec,
        graphs: ModalGraphs,
        inputs: dict[str, TensorSpec],
        tokenizer: Tokenizer | None = None,
        profile: ModalProfile | None = None,
        *,
        verified: bool = False,
    ) -> None:
        """Put the parts together; most callers want `load`.

        Args:
            modal: The model's modalities and subsets.
            graphs: Closed with the session.
            inputs: Inputs of all modalities, by name.
            tokenizer: Without one, texts must come as token ids.
            profile: Without one, no accuracy or deadline can be asked for.
            verified: Whether the bundle's files were compared with their hashes.
        """
        self.modal = modal
        self.graphs = graphs
        self.profile = profile
        self.verified = verified
        self.inputs = inputs
        self._tokenizer = tokenizer

    @cached_property
    def prices(self) -> Prices:
        """What was measured in this process, by requests and by jobs, and what plans cost by it."""
        return Prices(MeasuredTimes(), self.unused)

    @cached_property
    def options(self) -> tuple[ModalityOption, ...]:
        """The ways to process a request; empty without a profile."""
        return () if self.profile is None else modality_options(self.profile)

    def read(self, inputs: Inputs) -> ModalInputs:
        """Check inputs and bring them into the graphs' form.

        Raises:
            RequestError: see `read_inputs`.
        """
        return read_inputs(inputs, self.modal, self.inputs, self._tokenizer)

    def infer(
        self,
        inputs: Inputs,
        accuracy: float | None = None,
        deadline_ms: float | None = None,
        modalities: Sequence[str] | None = None,
    ) -> Inference:
        """Process one request, of one row or several.

        Args:
            inputs: By the name of an input, or of a modality that has one input or reads text; with or without a batch
                axis. A modality may be missing.
            accuracy: The lowest acceptable share of correct outputs, 0 to 1; the quickest option that reaches it runs.
            deadline_ms: Milliseconds, above 0; of the options that keep it (and `accuracy`) the most accurate runs.
            modalities: The only modalities to use.

        Raises:
            RequestError: the inputs are wrong, or no option fulfils the request.
            EngineError: a graph fails.
        """
        rows = self.read(inputs)
        count = batch_size(rows)
        if modalities is not None:
            if accuracy is not None or deadline_ms is not None:
                raise RequestError("modalities: together with accuracy or deadline_ms; one or the other is needed")
            option, subset = None, self._asked(modalities, rows)
        elif self.profile is None:
            if accuracy is not None or deadline_ms is not None:
                raise RequestError("accuracy, deadline_ms: this bundle was never profiled; adaptc profile BUNDLE does")
            option, subset = None, self._largest(rows)
        else:
            option = self._chosen(rows, count, accuracy, deadline_ms)
            subset = option.subset
        predicted = None if option is None else self._seconds(option, count) * 1e3
        first = 0 if option is None else self.unused(option)
        began = perf_counter()
        done = self.execute(option, rows) if option is not None else self._run(subset, rows, count)
        seconds = perf_counter() - began
        ms = seconds * 1e3
        if option is not None and count <= len(option.seconds):
            self.prices.times.record(option, count, seconds, None, first)
        known = None if option is None else option.accuracy
        name = "+".join(subset) if option is None else option.name
        return Inference(done.outputs, ModalTrace(name, done.modalities, known, done.confidence, predicted, ms))

    def execute(self, option: ModalityOption, rows: ModalInputs) -> BatchOutput:
        """Run an option on inputs that have all of its modalities.

        Raises:
            EngineError: a graph fails.
        """
        count = batch_size(rows)
        if option.level is None:
            return self._run(option.subset, rows, count)
        return self._gated(option.level, rows, count)

    def unused(self, option: ModalityOption) -> int:
        """How many graphs of an option have not run yet; each takes longer when it first runs."""
        gate = None if self.profile is None or option.level is None else self.profile.gate
        subsets = (option.subset,) if gate is None else gate.subsets
        return self.graphs.unused(subsets)

    def blank(self, subset: Sequence[str]) -> ModalInputs:
        """One row of zeros for some modalities, as `execute` takes it."""
        return blank_inputs(self.modal, self.inputs, subset)

    def jobs(self, policy: str = "auto", *, warm: bool = False) -> JobQueue:
        """A queue of jobs on this session; close it before the session.

        Args:
            policy: What jobs may choose from: "table", "gate", or "auto" for whichever is worth it.
            warm: Run the quickest option once, so that what a first use costs is known before the first job.

        Raises:
            RequestError: the bundle was never profiled, or there is no such policy.
        """
        return JobQueue(self, policy, warm=warm)

    def close(self) -> None:
        """Free every graph."""
        self.graphs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """What it can run."""
        subsets = ", ".join("+".join(each.modalities) for each in self.modal.subsets)
        return f"<ModalSession of {subsets}{'' if self.profile is None else ', profiled'}>"

    def _run(self, subset: tuple[str, ...], rows: ModalInputs, count: int) -> BatchOutput:
        return BatchOutput(self.graphs.run(subset, rows), (subset,) * count, None)

    def _gated(self, level: int, rows: ModalInputs, count: int) -> BatchOutput:
        """Run the modality gate's first subset, and a larger one for the rows where it pays."""
        assert self.profile is not None
        gate = self.profile.gate
        assert gate is not None
        first = gate.subsets[0]
        features = {name: self.graphs.features(name, rows[name]) for name in first}
        feeds = {each: array for found in features.values() for each, array in found.items()}
        outputs = self.graphs.engine_run(self.graphs.head(first), feeds)
        reads = gate_features(feeds, next(iter(outputs.values())))
        chosen = choose_subsets(gate, reads, gate.levels[level].price)
        sure = probabilities(gate, reads)[np.arange(count), chosen]
        for index in set(chosen.tolist()) - {0}:
            picked = np.flatnonzero(chosen == index)
            larger = self._larger(gate.subsets[index], rows, features, picked)
            for name, array in larger.items():
                outputs[name][picked] = array
        modalities = tuple(gate.subsets[index] for index in chosen)
        return BatchOutput(outputs, modalities, tuple(map(float, sure)))

    def _larger(
        self, subset: tuple[str, ...], rows: ModalInputs, known: dict[str, dict[str, Array]], picked: Array
    ) -> dict[str, Array]:
        """Run a subset for some rows, with the features that are known already."""
        feeds: dict[str, Array] = {}
        for name in subset:
            if name in known:
                feeds |= {each: array[picked] for each, array in known[name].items()}
            else:
                feeds |= self.graphs.features(name, {each: a[picked] for each, a in rows[name].items()})
        return self.graphs.engine_run(self.graphs.head(subset), feeds)

    def _seconds(self, option: ModalityOption, count: int) -> float:
        """Seconds that rows take here and now, first uses included."""
        times = self.prices.times
        batches = rows_seconds(times.seconds(option, around=False), count)
        return batches * times.pace + times.first_use(self.unused(option), guess=0.0)

    def _asked(self, modalities: object, rows: ModalInputs) -> tuple[str, ...]:
        names = check_elements("modalities", modalities, "a list of names")
        for name in names:
            if not isinstance(name, str) or name not in self.modal.modalities:
                raise RequestError(f"modalities: no {shown(name)}; there are: {', '.join(self.modal.modalities)}")
            if name not in rows:
                raise RequestError(f"modalities: {name}: not among the inputs; there are: {', '.join(rows)}")
        subset = tuple(name for name in self.modal.modalities if name in names)
        if subset not in {each.modalities for each in self.modal.subsets}:
            raise RequestError(f"modalities: {'+'.join(subset)} was not compiled; there are: {self._names()}")
        return subset

    def _largest(self, rows: ModalInputs) -> tuple[str, ...]:
        fitting = [each.modalities for each in self.modal.subsets if set(each.modalities) <= set(rows)]
        if not fitting:
            raise RequestError(f"inputs: {'+'.join(rows)} alone was not compiled; there are: {self._names()}")
        return max(fitting, key=len)

    def _names(self) -> str:
        return ", ".join("+".join(each.modalities) for each in self.modal.subsets)

    def _chosen(
        self, rows: ModalInputs, count: int, accuracy: float | None, deadline_ms: float | None
    ) -> ModalityOption:
        floor = 0.0 if accuracy is None else check_share("accuracy", accuracy)
        if deadline_ms is not None:
            deadline_ms = check_milliseconds("deadline_ms", deadline_ms)
        fitting = [each for each in self.options if set(each.subset) <= set(rows)]
        if not fitting:
            self._largest(rows)  # says which subsets there are
        enough = [each for each in fitting if each.accuracy >= floor - 1e-9]
        if not enough:
            most = max(each.accuracy for each in fitting)
            raise RequestError(f"accuracy: {floor:.3f} cannot be reached with these inputs; at most {most:.3f} can")
        quickest = min(enough, key=lambda each: self._seconds(each, count))
        if deadline_ms is None:
            return quickest if accuracy is not None else max(enough, key=lambda each: each.accuracy)
        intime = [each for each in enough if self._seconds(each, count) * 1e3 <= deadline_ms]
        if not intime:
            least = self._seconds(quickest, count) * 1e3
            raise RequestError(f"deadline_ms: {deadline_ms:g} cannot be kept; {quickest.name} takes {least:.1f}")
        return max(intime, key=lambda each: each.accuracy)
