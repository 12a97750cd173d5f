"""llama.cpp's server that drafts, until the input ends: python -m tests.bench.llama_speculation_server JSON

JSON has `path`, `threads`, `tokens` (of its one slot), `way` and, for the way "draft", `draft`, a GGUF file. Ways are
"off"; the n-gram drafters of llama.cpp by their names there, such as "ngram-simple", each as it is or with the sizes of
the n-gram and of the draft: "ngram-simple:3:8"; and "draft", alone or with the most tokens to draft: "draft:5". The
server's address is the first line that it writes. Prompts are not kept for those that begin alike.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

GRAMS = ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache")
"""The ways that ask no model."""


def parameters_of(told: Mapping[str, Any]) -> Any:
    """The parameters of a server.

    Raises:
        SystemExit: there is no such way.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = told["path"]
    parameters.n_parallel = 1
    parameters.n_ctx = told["tokens"]
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = told["threads"]
    parameters.port = 0
    parameters.ui = False
    parameters.cache_ram_mib = 0
    draft(xllamacpp, parameters.speculative, told)
    return parameters


def draft(xllamacpp: Any, speculative: Any, told: Mapping[str, Any]) -> None:
    """Set how it drafts.

    Raises:
        SystemExit: there is no such way.
    """
    name, *sizes = told["way"].split(":")
    kinds = xllamacpp.common_speculative_type
    if name == "draft":
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path = told["draft"]
        cpu = speculative.draft
        cpu.cpuparams.n_threads = cpu.cpuparams_batch.n_threads = told["threads"]
        if sizes:
            speculative.draft.n_max = int(sizes[0])
    elif name in GRAMS:
        speculative.types = [kinds[f"COMMON_SPECULATIVE_TYPE_{name.replace('-', '_').upper()}"]]
        if sizes and name == "ngram-mod":
            speculative.ngram_mod.n_match, speculative.ngram_mod.n_max = map(int, sizes)
            speculative.ngram_mod.n_min = 1
        elif sizes:
            grams = getattr(speculative, name.replace("-", "_"))
            grams.size_n, grams.size_m = map(int, sizes)
    elif name != "off":
        raise SystemExit(f"no way {name!r}; there are: off, {', '.join(GRAMS)}, draft")


def main() -> None:
    told = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # its log
    import xllamacpp

    server = xllamacpp.Server(parameters_of(told))
    answers.write(f"{server.listening_address}\n")
    answers.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
