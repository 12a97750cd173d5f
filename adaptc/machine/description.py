"""What figures are measured on, as their reports say it."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from adaptc.machine.processor import cpu_name
from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine.

    Attributes:
        cpu: Name of the processor.
        cores: Physical cores that this process may use.
        system: Operating system and architecture.
        python: Version of Python.
    """

    cpu: str
    cores: int
    system: str
    python: str

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        return cls(
            cpu_name() or platform.machine(),
            physical_cores(),
            f"{platform.system()} {platform.machine()}",
            platform.python_version(),
        )
