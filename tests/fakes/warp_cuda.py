"""A GPU made of host memory whose blocks have all their threads, in warps that wait for each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakes import cpu_kernels
from tests.fakes.cuda import FakeCuda, FakeKernel, FakeStream


@dataclass(eq=False)
class WarpCuda(FakeCuda):
    """See `FakeCuda`; kernels run as a GPU's warps run them, which takes much longer."""

    def launch(
        self,
        kernel: FakeKernel,
        grid: tuple[int, ...],
        threads: int,
        args: Sequence[Any],
        stream: FakeStream,
        *,
        early: bool = False,
        shared: int = 0,
    ) -> None:
        """See `Cuda.launch`."""
        assert shared <= cpu_kernels.MOST_SHARED
        given = list(args)
        more = "" if kernel.name.startswith("pack_") else cpu_kernels.WARPS
        few = threads if more else 1
        self.submit(stream, kernel.name, lambda: cpu_kernels.run(kernel.source, kernel.name, grid, few, given, more))
