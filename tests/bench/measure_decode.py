"""Decode steps of bundles, and of onnxruntime-genai and llama.cpp on the same model, in turns.

python -m tests.bench.measure_decode b32=adaptc:FOLDER b128=adaptc:FOLDER theirs=onnxruntime-genai:FOLDER \\
    llama=llama.cpp:FILE.gguf --batch 8

Each turn is a process of its own, which loads the model, warms up and answers. What is printed is tokens a second from
the first token of an answer on, its median with quartiles over all turns, and over that of the first that is named.
Several sequences at once are of equal lengths; llama-cpp-python writes one at a time and is left out then.
onnxruntime-genai's folder is what its own builder wrote; `adaptc bench --against onnxruntime-genai` keeps it in the
cache folder, under genai/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from time import perf_counter

from adaptc.bench.peer_loaders import Job, endless_session, genai_model
from adaptc.bench.peers import PEERS

Steps = Callable[[int], float]
"""Number of new tokens -> seconds from the first of them to the last, all sequences together."""


def adaptc_steps(model: str, prompts: list[list[int]], threads: int) -> Steps:
    session = endless_session(model, threads, len(prompts))

    def steps(new_tokens: int) -> float:
        answers = session.generate(prompts, max_new_tokens=new_tokens, speculate="off")
        return max(answer.trace.decode_seconds for answer in answers)

    return steps


def genai_steps(model: str, prompts: list[list[int]], threads: int) -> Steps:
    genai, loaded = genai_model(model, threads)

    def steps(new_tokens: int) -> float:
        params = genai.GeneratorParams(loaded)
        length = len(prompts[0]) + new_tokens
        params.set_search_options(do_sample=False, min_length=length, max_length=length + 1, batch_size=len(prompts))
        generator = genai.Generator(loaded, params)
        generator.append_tokens(prompts if len(prompts) > 1 else prompts[0])
        generator.generate_next_token()
        began = perf_counter()
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        return perf_counter() - began

    return steps


def llama_steps(model: str, prompts: list[list[int]], threads: int) -> Steps:
    (prompt,) = prompts
    write = PEERS["llama.cpp"].load(Job(model, prompt, [], 512, threads, 1))
    return lambda new_tokens: write(prompt, new_tokens).decode_seconds


ENGINES = {"adaptc": adaptc_steps, "onnxruntime-genai": genai_steps, "llama.cpp": llama_steps}


def turn(engine: str, model: str, given: argparse.Namespace) -> list[float]:
    """Tokens a second of each answer of one process."""
    prompts = [[1000 + 7 * (row + place) for place in range(given.prompt_tokens)] for row in range(given.batch)]
    steps = ENGINES[engine](model, prompts, given.threads)
    steps(8)
    return [given.batch * (given.new_tokens - 1) / steps(given.new_tokens) for _ in range(given.samples)]


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", metavar="NAME=ENGINE:PATH")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    given = parsed()
    if given.once:
        (what,) = given.what
        engine, model = what.split("=", 1)[1].split(":", 1)
        print(json.dumps(turn(engine, model, given)))
        return
    options = [each for each in sys.argv[1:] if each not in given.what]
    speeds: dict[str, list[float]] = {what: [] for what in given.what}
    for _ in range(given.turns):
        for what, found in speeds.items():
            command = [sys.executable, "-m", "tests.bench.measure_decode", what, *options, "--once"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found += json.loads(done.stdout.splitlines()[-1])
    first = median(speeds[given.what[0]])
    for what, found in speeds.items():
        low, _, high = quantiles(found)
        print(f"{what.split('=')[0]:16} {median(found):7.1f} ({low:.1f}-{high:.1f})  x{median(found) / first:.3f}")


if __name__ == "__main__":
    main()
