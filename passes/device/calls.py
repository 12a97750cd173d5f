"""From atoms to calls: what can run at the same place becomes one kernel over rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from adaptc.errors import PassError
from adaptc.passes.device.atoms import (
    Alternative,
    Atom,
    Attention,
    Gemm,
    Line,
    Operand,
    Region,
    StateInput,
    TableLookup,
    Weight,
)
from adaptc.passes.device.pairs import paired
from adaptc.passes.device.reading import Atoms
from adaptc.runtime.bundle.gpu_steps.device_step import (
    VERSION,
    AttentionLayer,
    DeviceStep,
    GemmWeight,
    Half,
    LookupTable,
    RowKernel,
    RowLine,
    RowOutput,
    StepCall,
    StepValue,
)
from adaptc.runtime.bundle.names import HIDDEN, INPUT_IDS, LOGITS

Stage = tuple[bool, int, Region]
"""Whether it lies in the head, after how many kernels, and where it runs: lines of one stage are one kernel."""


def device_step(atoms: Atoms) -> DeviceStep:
    """The calls of a step; where its weights lie is left open.

    Raises:
        PassError: the atoms cannot be put into an order of calls.
    """
    writer = _Writer(atoms)
    writer.place()
    writer.name_values()
    body = tuple(writer.calls(head=False))
    head = tuple(writer.calls(head=True))
    is_trunk = not isinstance(writer.result, Gemm) and not head
    return DeviceStep(
        version=VERSION,
        source=HIDDEN if any(isinstance(atom, StateInput) for atom in atoms.order) else INPUT_IDS,
        result=HIDDEN if is_trunk else LOGITS,
        row_kernels=tuple(writer.row_kernels),
        gemms=tuple(writer.gemms),
        attentions=tuple(writer.attentions),
        lookups=tuple(writer.lookups),
        body=body,
        head=head,
        values=dict(writer.values),
        weights={},
        leaders=atoms.leaders,
    )


@dataclass
class _Writer:
    atoms: Atoms
    stages: dict[Atom, Stage] = field(default_factory=dict)
    names: dict[tuple[Atom, Half], str] = field(default_factory=dict)
    values: dict[str, StepValue] = field(default_factory=dict)
    row_kernels: list[RowKernel] = field(default_factory=list)
    gemms: list[GemmWeight] = field(default_factory=list)
    attentions: list[AttentionLayer] = field(default_factory=list)
    lookups: list[LookupTable] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.order = paired(self.atoms.order)
        self.result: Atom = self.atoms.result
        self._insert_copies()
        self.gates: dict[Atom, int] = {}
        for index, logit in enumerate(self.atoms.logits):
            if self.atoms.leaders[index] != index:
                continue
            if not isinstance(logit, Line):  # the same for every token: a number or a weight
                logit = Line(1, (logit,), op="slice", numbers=(0.0,))
                self.order.insert(0, logit)
            self.gates[logit] = index
        self.choice = {arg: atom for atom in self.order if isinstance(atom, Alternative) for arg in atom.args}
        self.readers: dict[Atom, list[Atom]] = {}
        for atom in self.order:
            for arg in atom.args:
                if isinstance(arg, Atom):
                    self.readers.setdefault(arg, []).append(atom)

    def _insert_copies(self) -> None:
        """Products and attention read what lines or attention give: a line stands between two products."""
        for atom in list(self.order):
            if not isinstance(atom, (Gemm, Attention)):
                continue
            good = (Line, Attention) if isinstance(atom, Gemm) else (Line, Gemm, Alternative)
            args: list[Operand] = []
            for arg in atom.args:
                if isinstance(arg, Atom) and not isinstance(arg, good) and not _is_paired(arg):
                    line = Line(arg.width, (arg,), atom.region, atom.head, op="slice", numbers=(0.0,))
                    self.order.insert(self.order.index(atom), line)
                    arg = line
                args.append(arg)
            atom.args = tuple(args)
        # A value that the host or another graph reads is written under its own name.
        if isinstance(self.result, (Alternative, StateInput, TableLookup)):
            line = Line(self.result.width, (self.result,), head=self.result.head, op="slice", numbers=(0.0,))
            self.order.append(line)
            self.result = line

    # Places

    def place(self) -> None:
        """Say of each atom after how many kernels it runs."""
        for atom in self.order:
            stage = 0
            for arg in atom.args:
                if isinstance(arg, Atom) and arg in self.stages:
                    stage = max(stage, self.stages[arg][1] + self._cuts(arg, atom))
            self.stages[atom] = atom.head, stage, atom.region

    @staticmethod
    def _cuts(before: Atom, after: Atom) -> int:
        """Kernels from an atom to one that reads it: none between lines that run at the same place."""
        if isinstance(after, Alternative) or isinstance(before, StateInput):
            return 0
        together = isinstance(before, Line) and isinstance(after, Line)
        return 0 if together and before.region == after.region and before.head == after.head else 1

    # Values

    def name_values(self) -> None:
        """A name and a type for each value that one kernel writes and another reads."""
        for index, atom in enumerate(self.order):
            if isinstance(atom, StateInput):
                self.names[atom, "float32"] = HIDDEN
                continue
            for dtype in self._types(atom):
                name = f"v{index}" if dtype == "float32" else f"h{index}"
                if atom is self.result and dtype == "float32":
                    name = LOGITS if isinstance(atom, Gemm) or atom.head else HIDDEN
                self.names[atom, dtype] = name
                self.values[name] = StepValue(atom.width, dtype)

    def _types(self, atom: Atom) -> Iterator[Half]:
        """As what a value is stored."""
        if atom in self.choice:
            return  # it is written under the choice's name
        readers = self.readers.get(atom, [])
        if isinstance(atom, Attention) or _is_paired(atom):
            yield "float16"
        elif not isinstance(atom, Line):
            yield "float32"
        else:
            elsewhere = [each for each in readers if self.stages[each] != self.stages[atom]]
            if atom is self.result or any(not isinstance(each, Gemm) for each in elsewhere):
                yield "float32"
            if any(isinstance(each, Gemm) for each in elsewhere):
                yield "float16"

    def _written(self, atom: Atom) -> Atom:
        """Under whose name an atom's value is written."""
        return self.choice.get(atom, atom)

    def _name(self, atom: Atom, dtype: Half = "float32") -> str:
        return self.names[self._written(atom), dtype]

    # Calls

    def calls(self, *, head: bool) -> Iterator[StepCall]:
        """The calls of the body or of the head, in order."""
        here = [atom for atom in self.order if atom.head is head and not isinstance(atom, (Alternative, StateInput))]
        for stage in sorted({self.stages[atom][1] for atom in here}):
            at = [atom for atom in here if self.stages[atom][1] == stage]
            lines: dict[Region, list[Line]] = {}
            for atom in at:
                if isinstance(atom, Line):
                    lines.setdefault(atom.region, []).append(atom)
            for region, group in lines.items():
                yield from self._rows(region, group)
            for atom in at:
                if not isinstance(atom, Line):
                    yield from self._other(atom)

    def _other(self, atom: Atom) -> Iterator[StepCall]:
        if isinstance(atom, TableLookup):
            assert atom.table is not None
            yield self._call("lookup", atom, self._entry(self.lookups, atom.table), (INPUT_IDS,), (self._name(atom),))
        elif isinstance(atom, Attention):
            assert atom.about is not None
            reads = tuple(self._name(arg) for arg in atom.args if isinstance(arg, Atom))
            which = self._entry(self.attentions, atom.about)
            yield self._call("attention", atom, which, reads, (self._name(atom, "float16"),))
        else:
            assert isinstance(atom, Gemm)
            [given] = atom.args
            assert isinstance(given, Atom)
            for weight in atom.weights:
                which = self._entry(self.gemms, weight)
                dtype: Half = "float16" if weight.pair else "float32"
                yield self._call("gemm", atom, which, (self._name(given, "float16"),), (self._name(atom, dtype),))

    def _call(self, kind: str, atom: Atom, which: int, reads: tuple[str, ...], writes: tuple[str, ...]) -> StepCall:
        gate, otherwise = atom.region
        choice = self.choice.get(atom)
        zeros = isinstance(choice, Alternative) and len(choice.args) == 1
        leader = self.atoms.leaders[gate] if gate >= 0 else None
        return StepCall(kind, which, reads, writes, None, leader, otherwise, zeros)  # type: ignore[arg-type]

    @staticmethod
    def _entry(table: list, entry: object) -> int:  # type: ignore[type-arg]
        if entry not in table:
            table.append(entry)
        return table.index(entry)

    def _rows(self, region: Region, group: Sequence[Line]) -> Iterator[StepCall]:
        """One kernel for lines of a stage, or one for each gate's logit among them."""
        deciding = [line for line in group if line in self.gates]
        if not deciding:
            yield self._row_call(group, None)
            return
        for line in deciding[1:]:  # a kernel decides one gate
            yield self._row_call([line], line)
        yield self._row_call([line for line in group if line not in deciding[1:]], deciding[0])

    def _row_call(self, group: Sequence[Line], gate: Line | None) -> StepCall:
        program = _RowProgram(self, frozenset(group))
        writes, ends = [], []
        for line in group:
            choice = self.choice.get(line)
            kinds: list[Half] = ["float32"] if choice is not None else list(self._types(line))
            for dtype in kinds:
                ends.append(RowOutput(program.line(line), dtype))
                writes.append(self._name(line, dtype))
        logit = None if gate is None else program.line(gate)
        kernel = RowKernel(
            tuple(program.inputs),
            tuple(weight.width for weight in program.weights),
            tuple(program.lines),
            tuple(ends),
            logit,
        )
        reads = (*program.reads, *(weight.name for weight in program.weights))
        last = next((line for line in group if line in self.choice), group[0])
        call = self._call("rows", last, self._entry(self.row_kernels, kernel), tuple(reads), tuple(writes))
        return call if gate is None else _deciding(call, self.gates[gate])


def _is_paired(atom: Atom) -> bool:
    """Whether an atom is a product whose halves are joined, in half precision."""
    return isinstance(atom, Gemm) and bool(atom.weights[0].pair)


def _deciding(call: StepCall, gate: int) -> StepCall:
    return replace(call, decides=gate)


@dataclass
class _RowProgram:
    """The lines of one kernel, each once."""

    writer: _Writer
    group: frozenset[Line]
    lines: list[RowLine] = field(default_factory=list)
    inputs: list[RowOutput] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    known: dict[object, int] = field(default_factory=dict)

    def line(self, atom: Operand) -> int:
        """The number of a line for an operand; it and what it needs are added."""
        key: object = ("number", atom) if isinstance(atom, float) else atom
        if key not in self.known:
            self.known[key] = self._new(atom)
        return self.known[key]

    def _new(self, atom: Operand) -> int:
        if isinstance(atom, float):
            return self._add(RowLine("number", (), (atom,), 1))
        if isinstance(atom, Weight):
            self.weights.append(atom)
            return self._add(RowLine("weight", (len(self.weights) - 1,), (), atom.width))
        if isinstance(atom, Line) and (atom in self.group or self._constant(atom)):
            args = tuple(self.line(arg) for arg in atom.args)
            return self._add(RowLine(atom.op, args, atom.numbers, atom.width))
        written = self.writer._written(atom)
        dtype: Half = "float16" if isinstance(atom, Attention) or _is_paired(atom) else "float32"
        if (written, dtype) not in self.writer.names:
            raise PassError(f"a line reads a value of {type(atom).__name__.lower()} that no kernel writes")
        self.reads.append(self.writer.names[written, dtype])
        index = self._add(RowLine("input", (len(self.inputs),), (), atom.width))
        self.inputs.append(RowOutput(index, dtype))
        return index

    def _constant(self, atom: Line) -> bool:
        """Whether a line is made of weights alone; it is computed where it is read."""
        return all(not isinstance(arg, Atom) or (isinstance(arg, Line) and self._constant(arg)) for arg in atom.args)

    def _add(self, line: RowLine) -> int:
        self.lines.append(line)
        return len(self.lines) - 1
