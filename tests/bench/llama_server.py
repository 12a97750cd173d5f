"""llama.cpp's server on a GGUF file, until the input ends: python -m tests.bench.llama_server FILE THREADS SLOTS TOKENS

Its address is the first line that it writes. Everything else is as llama.cpp has it: sequences share steps, keys and
values are float16, prompts that begin alike are read once.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def start(path: str, threads: int, slots: int, tokens: int) -> Any:
    """The server, listening on a free port of this machine; each slot holds so many tokens."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_parallel = slots
    parameters.n_ctx = slots * tokens
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.port = 0
    parameters.ui = False
    return xllamacpp.Server(parameters)


def main() -> None:
    told = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # its log
    server = start(sys.argv[1], *map(int, sys.argv[2:]))
    told.write(f"{server.listening_address}\n")
    told.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
