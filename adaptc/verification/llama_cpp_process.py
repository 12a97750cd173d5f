"""A process that asks llama.cpp about one GGUF file: `python -m adaptc.verification.llama_cpp_process FILE < job.json`.

llama.cpp prints what it likes, and ends its process on files that it does not take. So it has one of its own, which
imports nothing of adaptc; its answer is one line of JSON after `MARK` on stdout.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any

MARK = "adaptc-llama.cpp: "


def main(file: str, job: dict[str, Any]) -> dict[str, Any]:
    """Answer a job.

    Args:
        file: The GGUF file.
        job: `texts` are turned into ids; `prompts`, lists of ids, are continued by `new_tokens` each.

    Returns:
        `version`; `special` and `plain`, the ids of each text with and without what is added around a text; and for
        each prompt in `written` the token ids and in `top` the likeliest tokens [id, log probability] at each of them.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.n_ctx = job["tokens"]
    parameters.port = 0
    parameters.warmup = False
    # As much of it in float32 as llama.cpp can.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.cpuparams.n_threads = job["threads"]
    server = xllamacpp.Server(parameters)

    def ask(path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def ids(text: str, special: bool) -> list[int]:
        found = ask("/tokenize", {"content": text, "add_special": special, "parse_special": True})
        return [int(each) for each in found["tokens"]]

    answer: dict[str, Any] = {"version": f"xllamacpp {xllamacpp.__version__}", "written": [], "top": []}
    answer["special"] = [ids(text, True) for text in job["texts"]]
    answer["plain"] = [ids(text, False) for text in job["texts"]]
    for prompt in job["prompts"]:
        options = {"n_predict": job["new_tokens"], "n_probs": job["top"], "temperature": 0, "ignore_eos": True}
        found = ask("/completion", {"prompt": prompt, "cache_prompt": False, **options})
        steps = found["completion_probabilities"]
        answer["written"].append([step["id"] for step in steps])
        answer["top"].append([[[each["id"], each["logprob"]] for each in step["top_logprobs"]] for step in steps])
    return answer


if __name__ == "__main__":
    sys.stdout.write(MARK + json.dumps(main(sys.argv[1], json.load(sys.stdin))) + "\n")
