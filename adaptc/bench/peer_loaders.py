"""How each engine is loaded and timed; the module of an engine is imported in its function.

All get token ids, choose greedily, go on after an end token, and are timed by one clock around the same moments.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptc.runtime import Session


@dataclass(frozen=True, slots=True)
class Job:
    """What a process has to do.

    Attributes:
        model: What it loads: a bundle, a folder or a file, as `Peer.form` says.
        prompt: Token ids, at least 1.
        long_prompt: Token ids of a prompt that is only read; empty to leave this out.
        new_tokens: Tokens to write after `prompt`, at least 2.
        threads: Threads to compute with.
        samples: How often each prompt is answered, the warm-up aside.
        route: Route of a stitched bundle.
    """

    model: str
    prompt: list[int]
    long_prompt: list[int]
    new_tokens: int
    threads: int
    samples: int
    route: str | None = None

    @property
    def room(self) -> int:
        """Positions that the KV cache needs."""
        return max(len(self.prompt) + self.new_tokens, len(self.long_prompt) + 1)


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer.

    Attributes:
        prefill_seconds: From the ids of the prompt to the logits of the first token; where an engine does not
            separate the two, to the first token.
        first_seconds: From the ids of the prompt to the first token.
        decode_seconds: From the first token to the last.
        ids: The tokens written.
    """

    prefill_seconds: float
    first_seconds: float
    decode_seconds: float
    ids: list[int]


Write = Callable[[Sequence[int], int], Sample]
"""(prompt, new tokens) -> an answer of exactly that many tokens."""


def load_adaptc(job: Job) -> Write:
    """A bundle, through the session that users have."""
    session = endless_session(job.model, job.threads)

    def write(prompt: Sequence[int], new_tokens: int) -> Sample:
        answer = session.generate(prompt, max_new_tokens=new_tokens, route=job.route)
        trace = answer.trace
        first = trace.time_to_first_token_seconds
        return Sample(trace.prefill_seconds, first, trace.decode_seconds, list(answer.ids))

    return write


def endless_session(model: str, threads: int, batch: int = 1) -> Session:
    """A bundle's session in which no token ends an answer."""
    from adaptc.runtime import Session, open_bundle
    from adaptc.runtime.backends.backend import DecoderOptions
    from adaptc.runtime.loading import load_decoder

    decoder = load_decoder(open_bundle(model, verify=False), DecoderOptions(threads=threads, batch=batch))
    return Session(decoder, spec=dataclasses.replace(decoder.spec, eos_token_ids=()))


def genai_model(model: str, threads: int) -> tuple[Any, Any]:
    """onnxruntime-genai's module, and its model of a folder that its builder wrote."""
    genai: Any = importlib.import_module("onnxruntime_genai")
    config = genai.Config(model)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    return genai, genai.Model(config)


def load_onnxruntime_genai(job: Job) -> Write:
    """The folder that onnxruntime-genai's builder wrote."""
    genai, model = genai_model(job.model, job.threads)

    def write(prompt: Sequence[int], new_tokens: int) -> Sample:
        params = genai.GeneratorParams(model)
        # An end token counts as one only from min_length on.
        length = len(prompt) + new_tokens
        params.set_search_options(do_sample=False, min_length=length, max_length=max(job.room, length + 1))
        # Not timed: a generator allocates its KV cache, which adaptc and llama.cpp do when they load.
        generator = genai.Generator(model, params)
        start = perf_counter()
        generator.append_tokens(list(prompt))
        read = perf_counter()
        generator.generate_next_token()
        first = perf_counter()
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        end = perf_counter()
        ids = [int(token) for token in generator.get_sequence(0)[len(prompt) :]]
        return Sample(read - start, first - start, end - first, ids)

    return write


def load_llama_cpp(job: Job) -> Write:
    """A GGUF file by llama.cpp, through llama-cpp-python."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    model = llama_cpp.Llama(
        job.model,
        n_ctx=job.room + 1,
        n_batch=512,
        n_threads=job.threads,
        n_threads_batch=job.threads,
        verbose=False,
    )

    def write(prompt: Sequence[int], new_tokens: int) -> Sample:
        model.reset()  # else it would keep the part of the prompt it has read before
        start = perf_counter()
        tokens = model.generate(list(prompt), temp=0.0)
        ids = [next(tokens)]
        first = perf_counter()
        ids += [next(tokens) for _ in range(new_tokens - 1)]
        end = perf_counter()
        return Sample(first - start, first - start, end - first, ids)

    return write


def load_openvino_genai(job: Job) -> Write:
    """A GGUF file by OpenVINO GenAI."""
    openvino: Any = importlib.import_module("openvino")
    genai: Any = importlib.import_module("openvino_genai")
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # else a prompt would be read once, in the warm-up
    scheduler.max_num_batched_tokens = max(job.room, 256)
    pipeline = genai.LLMPipeline(job.model, "CPU", INFERENCE_NUM_THREADS=job.threads, scheduler_config=scheduler)
    times: list[float] = []

    class TokenTimes(genai.StreamerBase):  # type: ignore[misc]
        """Notes when each token comes."""

        def write(self, token: object) -> Any:
            times.append(perf_counter())
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            """Nothing is left to do."""

    def write(prompt: Sequence[int], new_tokens: int) -> Sample:
        times.clear()
        ids, mask = (openvino.Tensor(openvino.Type.i64, [1, len(prompt)]) for _ in range(2))
        ids.data[0], mask.data[0] = list(prompt), 1
        config = genai.GenerationConfig(max_new_tokens=new_tokens, ignore_eos=True, do_sample=False)
        start = perf_counter()
        out = pipeline.generate(genai.TokenizedInputs(ids, mask), config, TokenTimes())
        first = times[0] - start
        return Sample(first, first, times[-1] - times[0], list(out.tokens[0]))

    return write


def load_transformers(dtype: str) -> Callable[[Job], Write]:
    """A Hugging Face folder by transformers, eagerly, in a torch dtype."""

    def load(job: Job) -> Write:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(job.threads)
        model = transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, dtype))

        def write(prompt: Sequence[int], new_tokens: int) -> Sample:
            times: list[float] = []

            class TokenStreamer(transformers.generation.BaseStreamer):  # type: ignore[misc]
                """Notes when the prompt is read and when each token comes."""

                def put(self, value: object) -> None:
                    times.append(perf_counter())

                def end(self) -> None:
                    """Nothing is left to do."""

            ids = torch.tensor([list(prompt)])
            start = perf_counter()
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                streamer=TokenStreamer(),
            )
            first = times[1] - start
            return Sample(first, first, times[-1] - times[1], out[0, len(prompt) :].tolist())

        return write

    return load
