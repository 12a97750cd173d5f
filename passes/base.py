"""Pass and Pipeline: a pass is a value, the pipeline keeps it honest."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from adaptc.errors import PassError
from adaptc.ir.program import Program
from adaptc.passes.store import PROCESS, Store
from adaptc.runtime.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class Pass(ABC):
    """A rewrite. Its fields are its options in YAML.

    A pass whose option got another name says so in `renamed` (old name to new name), so that a spec with the old name
    is refused with a sentence that tells the new one.

    `apply` never changes its input: it edits a fork and returns a new program, or *the same object* if nothing
    matched.
    """

    name: ClassVar[str]
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @abstractmethod
    def apply(self, program: Program) -> Program:
        """The rewritten program, or `program` itself if there was nothing to do.

        Raises:
            PassError: the options ask for what this program cannot give.
        """

    def apply_with(self, program: Program, store: Store, progress: Progress = SILENT) -> Program:
        """`apply`, for a pass whose work comes in pieces; most have none.

        Args:
            program: Stays as it is.
            store: Has the pieces of earlier runs, and gets those of this one.
            progress: Told of each piece.

        Raises:
            PassError: as `apply`.
        """
        return self.apply(program)

    def at(self, base: Path) -> Pass:
        """This pass with file names in its options made paths that start from `base`, the spec's folder."""
        return replace(self, **{name: str(base / value) for name, value in self.files().items()})

    def files(self) -> dict[str, str]:
        """Options that name files the result depends on; an option that is not set is left out."""
        return {}

    def options(self) -> dict[str, Any]:
        """The options as plain values, for the manifest and for cache keys."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class Step:
    """What happened when one pass ran."""

    pass_: Pass
    before: Program
    after: Program
    seconds: float

    @property
    def changed(self) -> bool:
        """Whether the pass rewrote anything."""
        return self.after is not self.before


Observer = Callable[[Step], None]
"""Called after each pass."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Passes in the order they run; the program is verified before the first and after each.

    Attributes:
        passes: In order.
        store: Where passes keep pieces of their work; by default in this process.
    """

    passes: tuple[Pass, ...]
    store: Store = PROCESS

    def run(self, program: Program, *observers: Observer, progress: Progress = SILENT) -> Program:
        """Run every pass.

        Args:
            program: Stays as it is.
            observers: Called after each pass: printing, timing and checking live there.
            progress: Told of each pass as a stage.

        Raises:
            PassError: a pass refused or left an ill-formed program; the message names it and those before it.
        """
        program.verify()
        for pass_ in self.passes:
            progress.stage(pass_.name)
            began = time.perf_counter()
            try:
                after = pass_.apply_with(program, self.store, progress)
                if after is not program:
                    after.verify()
            except PassError as error:
                ran = f" (after {', '.join(program.history)})" if program.history else ""
                raise PassError(f"pass '{pass_.name}'{ran}: {error}") from error
            if after is not program:
                after = replace(after, history=(*program.history, pass_.name))
            step = Step(pass_, program, after, time.perf_counter() - began)
            for observe in observers:
                observe(step)
            program = after
        return program
