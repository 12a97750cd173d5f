"""Replicas behind one entrance on Ray Serve: one is killed under load, all are replaced, their number follows the load.

    python -m tests.attacks.replicas BUNDLE --seconds 30

Needs `ray[serve]`. Clients ask without a pause, every other one for a stream. Every greedy answer must be what the
prompt gives alone; --any-text leaves that out, for kernels whose last digits depend on how many rows a step has. When a
replica is killed, only requests that had sent tokens may fail; when all are replaced, none may. It prints what came of
it, and the exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from adaptc import runtime
from tests.attacks.cluster import Cluster

PROMPTS = ("the cat sat", "on the mat", "1, 2, 3,", "Once upon a time, ", "naïve café", "a", "The capital of France is")
RANDOM_ROUTER = "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"


@dataclass
class Load:
    """Clients that ask again as soon as they have an answer.

    Attributes:
        url: Whom they ask.
        right: What each prompt gives alone.
        tokens: Of an answer.
        any_text: Whether answers are not compared.
        copies: Of its prompt in each request: how long a replica is busy with it.
        outcomes: Requests by what came of them.
        faults: What was wrong, a line each.
        lost: How many events each failed stream had sent.
    """

    url: str
    right: dict[str, str]
    tokens: int
    any_text: bool = False
    copies: int = 1
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)

    async def run(self, clients: int, seconds: float) -> None:
        """Ask for so long."""
        ends = time.monotonic() + seconds
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=httpx.Limits(max_connections=None)) as http:

            async def client(number: int) -> None:
                while time.monotonic() < ends:
                    prompt = PROMPTS[(number + self.outcomes.total()) % len(PROMPTS)]
                    await (self._stream(http, prompt) if number % 2 else self._whole(http, prompt))

            await asyncio.gather(*map(client, range(clients)))

    async def _whole(self, http: httpx.AsyncClient, prompt: str) -> None:
        try:
            answer = await http.post("/v1/completions", json=self._body(prompt))
        except httpx.HTTPError as error:
            self._wrong("whole", f"{type(error).__name__} {error}")
            return
        if answer.status_code != 200:
            self._wrong("whole", f"{answer.status_code} {answer.text[:200]}")
        else:
            self._compare("whole", prompt, [each["text"] for each in answer.json()["choices"]])

    async def _stream(self, http: httpx.AsyncClient, prompt: str) -> None:
        texts, count, error = [""] * self.copies, 0, ""
        try:
            async with http.stream("POST", "/v1/completions", json={**self._body(prompt), "stream": True}) as answer:
                if answer.status_code != 200:
                    self._wrong("stream", f"{answer.status_code} {(await answer.aread())[:200]!r}")
                    return
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line.removeprefix("data: "))
                        error = error or str(event.get("error", ""))
                        for choice in event.get("choices", ()):
                            texts[choice["index"]] += choice["text"]
                            count += 1
        except httpx.HTTPError as caught:
            error = f"{type(caught).__name__} {caught}"
        if not error:
            self._compare("stream", prompt, texts)
        elif count and "'lost'" in error:
            self.outcomes["stream: lost after it had sent tokens"] += 1
            self.lost.append(count)
            if not self.any_text and not all(map(self.right[prompt].startswith, texts)):
                self.faults.append(f"what a lost stream had sent: {texts!r}")
        else:
            self._wrong("stream", f"{count} texts, then {error}")

    def _body(self, prompt: str) -> dict[str, Any]:
        return {"prompt": [prompt] * self.copies, "max_tokens": self.tokens, "temperature": 0}

    def _compare(self, kind: str, prompt: str, texts: list[str]) -> None:
        if texts == [self.right[prompt]] * self.copies or (self.any_text and all(texts)):
            self.outcomes[f"{kind}: right"] += 1
        else:
            self._wrong(kind, f"{prompt!r} gave {texts!r}")

    def _wrong(self, kind: str, what: str) -> None:
        self.outcomes[f"{kind}: WRONG"] += 1
        self.faults.append(f"{kind}: {what}")


@dataclass
class Told:
    """What was found.

    Attributes:
        lines: For people.
        faults: What was wrong.
    """

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, text: str, load: Load | None = None) -> None:
        """Tell something, and what came of a load."""
        self.lines.append(text)
        if load is not None:
            self.lines += [f"{count:6} {outcome}" for outcome, count in sorted(load.outcomes.items())]
            self.faults += load.faults
        print("\n".join(self.lines[-1 - (len(load.outcomes) if load else 0) :]), flush=True)


async def kill(cluster: Cluster, load: Load, told: Told, clients: int, seconds: float) -> None:
    """Kill one of two replicas after a third of the time."""
    before, names, at = cluster.counts(), cluster.replicas(), seconds / 3
    running = asyncio.ensure_future(load.run(clients, seconds))
    await asyncio.sleep(at)
    victim = await asyncio.to_thread(cluster.kill_one)

    def back() -> bool:
        return len(cluster.processes()) == 2 and len(cluster.replicas()) == 2 and cluster.replicas() != names

    seconds_back = await asyncio.to_thread(cluster.wait, back, 120)
    await running
    counts = {name: count - before.get(name, 0) for name, count in cluster.counts().items()}
    told.add(f"killed process {victim} after {at:.0f} s of {seconds:.0f} s, {clients} clients", load)
    told.add(f"entrance: {counts}; lost streams had sent {load.lost} texts; replica back after {seconds_back:.1f} s")
    if not counts.get("retried"):
        told.faults.append("kill: nothing was asked again; was there any load?")
    if counts.get("lost", 0) != len(load.lost):
        told.faults.append(f"kill: the entrance counts {counts.get('lost', 0)} lost streams, clients {len(load.lost)}")


def replaced(cluster: Cluster, names: AbstractSet[str]) -> bool:
    """Whether two replicas answer, and none of these."""
    found = cluster.replicas()
    return len(found) == 2 and not found & names


async def replace(cluster: Cluster, load: Load, told: Told, clients: int, seconds: float) -> None:
    """Have both replicas replaced by ones with another option, under load: each drains before it ends."""
    names = cluster.replicas()
    cluster.application["args"]["max_queue"] = 65
    running = asyncio.ensure_future(load.run(clients, seconds))
    await asyncio.sleep(1)
    await asyncio.to_thread(cluster.deploy)

    took = await asyncio.to_thread(cluster.wait, partial(replaced, cluster, names), 180)
    await running
    told.add(f"replaced both replicas in {took:.1f} s", load)
    if load.lost:
        told.faults.append(f"replace: {len(load.lost)} streams were lost, and none may be")


async def scale(cluster: Cluster, load: Load, told: Told, clients: int, seconds: float) -> None:
    """From one replica to two and back, with the load."""
    cluster.pool.pop("num_replicas")
    cluster.pool["autoscaling_config"] = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 1,
        "downscale_delay_s": 5,
        "metrics_interval_s": 1,
        "look_back_period_s": 2,
    }
    cluster.deploy()
    cluster.wait(lambda: len(cluster.replicas()) == 1, 90)
    running = asyncio.ensure_future(load.run(clients, seconds))
    up = await asyncio.to_thread(cluster.wait, lambda: len(cluster.replicas()) == 2, 90)
    await running
    down = await asyncio.to_thread(cluster.wait, lambda: len(cluster.replicas()) == 1, 120)
    told.add(f"scaled from 1 to 2 replicas {up:.1f} s after the load came, and back {down:.1f} s after it left", load)
    if load.lost:
        told.faults.append(f"scale: {len(load.lost)} streams were lost, and none may be")


async def share_of_known(url: str, prefix_tokens: int, chats: int, turns: int, seed: str) -> tuple[int, int]:
    """Tokens of prompts, and those that were known: chats of several turns, each with a beginning of its own."""
    asked = known = 0
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        texts = [
            f"Chat {seed} {number}: " + "the cat sat on the mat " * (prefix_tokens // 6) for number in range(chats)
        ]

        async def ask(number: int, turn: int) -> None:
            nonlocal asked, known
            texts[number] += f"turn {turn} of {number}, then "
            body = {"prompt": texts[number], "max_tokens": 2, "temperature": 0}
            usage = (await http.post("/v1/completions", json=body)).json()["usage"]
            asked += usage["prompt_tokens"]
            known += usage["prompt_tokens_details"]["cached_tokens"]

        for turn in range(turns):
            for first in range(0, chats, 4):
                await asyncio.gather(*(ask(each, turn) for each in range(first, min(chats, first + 4))))
    return asked, known


async def prefixes(cluster: Cluster, told: Told, prefix_tokens: int, chats: int = 12, turns: int = 6) -> None:
    """Share of prompt tokens that were known, by our router and by Ray's own."""
    shares = []
    for router in ("ours", "Ray's"):
        if router == "Ray's":
            before = frozenset(cluster.replicas())
            cluster.pool["request_router_config"] = {"request_router_class": RANDOM_ROUTER}
            cluster.application["args"]["max_queue"] = 66  # new replicas: nothing is known
            cluster.deploy()
            cluster.wait(partial(replaced, cluster, before), 180)
        asked, known = await share_of_known(cluster.url, prefix_tokens, chats, turns, router)
        shares.append(known / asked)
        told.add(f"{router} router: {known} of {asked} prompt tokens were known ({known / asked:.1%})")
    if shares[0] <= shares[1]:
        told.faults.append("prefixes: our router finds no more than a random one")


async def attack(cluster: Cluster, right: dict[str, str], options: argparse.Namespace) -> Told:
    """All of it."""
    told = Told()
    told.add(f"two replicas took {cluster.wait(lambda: cluster.ready() and len(cluster.replicas()) == 2, 180):.1f} s")
    loads = [Load(cluster.url, right, options.tokens, options.any_text, options.copies) for _ in range(3)]
    await kill(cluster, loads[0], told, options.clients, options.seconds)
    if options.all:
        await replace(cluster, loads[1], told, options.clients, options.seconds)
        await prefixes(cluster, told, options.prefix_tokens)
        await scale(cluster, loads[2], told, options.clients, options.seconds)
    return told


def main(arguments: list[str]) -> int:
    """Attack; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=30, help="of load, each time")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--prefix-tokens", type=int, default=240)
    parser.add_argument("--max-batch", type=int, default=8, help="of a replica")
    parser.add_argument("--copies", type=int, default=1, help="of its prompt in each request")
    parser.add_argument("--any-text", action="store_true")
    parser.add_argument("--only-kill", dest="all", action="store_false")
    options = parser.parse_args(arguments)
    with runtime.load(options.bundle, threads=1) as session:
        right = {prompt: session.generate(prompt, max_tokens=options.tokens).text for prompt in PROMPTS}
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(options.bundle, Path(folder), max_batch=options.max_batch)
        try:
            told = asyncio.run(attack(cluster, right, options))
        finally:
            cluster.close()
    print("\n".join(f"WRONG: {fault}" for fault in told.faults[:20]))
    return int(bool(told.faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
