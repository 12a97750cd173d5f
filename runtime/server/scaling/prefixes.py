"""Which replica has read the beginning of a prompt: its KV entries are there, so the prompt is best read there.

The entrance has no tokenizer, so blocks are of characters, not of tokens. A block's key is a hash of it and of all
before it, as in `prefix_cache`, and the table remembers where requests with these keys went. Nothing is asked of the
replicas: a table that is wrong, since a replica dropped what it had read, costs time and nothing else.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

BLOCK = 64
"""Characters of a block: about a block of the prefix cache, which has 16 tokens."""

_BLOCKS = 128  # of a prompt; what comes after these decides nothing
_ENTRIES = 1 << 16


def prefix_keys(body: Mapping[str, Any], salt: str = "") -> tuple[bytes, ...]:
    """The keys of the blocks that a request's prompt begins with.

    Args:
        body: Of a chat or a completion; of several prompts the first counts.
        salt: What sets prompts of one text apart, such as the model and its route.

    Returns:
        A key of 8 bytes for each whole block, at most 128; one for a prompt that is shorter, none without a prompt.
    """
    text = _text_of(body)[: BLOCK * _BLOCKS]
    keys: list[bytes] = []
    key = salt.encode("utf-8", "surrogatepass")
    for end in range(BLOCK, len(text) + 1, BLOCK) or ((len(text),) if text else ()):
        block = text[max(0, end - BLOCK) : end].encode("utf-8", "surrogatepass")
        key = blake2b(key + block, digest_size=8).digest()
        keys.append(key)
    return tuple(keys)


def _text_of(body: Mapping[str, Any]) -> str:
    """A prompt as text that begins alike where prompts begin alike."""
    if isinstance(messages := body.get("messages"), list):
        # Tools and documents stand at the beginning of most chat templates.
        before = [body[name] for name in ("tools", "chat_template_kwargs") if body.get(name)]
        return "".join(json.dumps(each, ensure_ascii=False, sort_keys=True) for each in [*before, *messages])
    prompt = body.get("prompt")
    while isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else "" if prompt is None else json.dumps(prompt)


class PrefixTable:
    """Where requests went, by the keys of their prompts; the entries unused for longest are dropped first.

    Attributes:
        matched: Blocks that were known to the replica which a request was sent to.
        asked: Blocks of all requests.
    """

    def __init__(self, slack: int = 4, entries: int = _ENTRIES) -> None:
        """Know nothing.

        Args:
            slack: A replica with so many requests more than the idlest one gets none for the sake of a prefix.
            entries: The largest number of blocks that are remembered.
        """
        self.matched = 0
        self.asked = 0
        self._slack = slack
        self._entries = entries
        self._homes: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def ranked(self, keys: Sequence[bytes], loads: Mapping[str, int]) -> list[str]:
        """The replicas, the one to ask first at the head.

        The first is the one that knows the longest beginning, unless it has too much to do; without any that knows
        one, the idlest. Among equals a hash of the prompt decides, so that several entrances agree.

        Args:
            keys: Of the prompt, from `prefix_keys`.
            loads: Requests of each replica, by its name.
        """
        least = min(loads.values(), default=0)
        known = dict.fromkeys(loads, 0)
        for count, key in enumerate(keys, 1):
            for home in self._homes.get(key, ()):
                if known.get(home) == count - 1:
                    known[home] = count

        def order(name: str) -> tuple[int, int, bytes]:
            fits = loads[name] - least <= self._slack
            tie = blake2b(b"".join(keys[:1]) + name.encode(), digest_size=8).digest()
            return (-known[name] if fits else 0, loads[name], tie)

        return sorted(loads, key=order)

    def note(self, keys: Sequence[bytes], home: str) -> None:
        """Remember that a prompt was sent to a replica."""
        self.asked += len(keys)
        for key in keys:
            homes = self._homes.get(key, ())
            self.matched += home in homes
            # Two homes are enough for a prefix that all share; more would spread every prompt over all replicas.
            self._homes[key] = (home, *(each for each in homes if each != home))[:2]
            self._homes.move_to_end(key)
        while len(self._homes) > self._entries:
            self._homes.popitem(last=False)
