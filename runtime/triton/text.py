"""A bundle that writes text, as a model of Triton's Python backend.

Inputs and outputs are called as those of Triton's other language models, so its `generate` and `generate_stream`
work: `text_input`, `sampling_parameters` with a JSON object of request options, `stream`, and `text_output`. Requests
run side by side: each has a thread, and the session has them share steps.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adaptc.runtime.errors import AdaptcError, RequestError
from adaptc.runtime.generation.result import Result
from adaptc.runtime.loading import load

_ASIDE = ("bundle", "max_batch", "threads", "max_queue")
"""Parameters of a model's configuration that are for us."""


class TritonText:
    """The form that Triton's Python backend asks of a `TritonPythonModel`.

    Attributes:
        utils: The module `triton_python_backend_utils`, which is there inside Triton only; a subclass sets it.
    """

    utils: ClassVar[Any]

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle: beside the model's file, or where the parameter `bundle` says.

        Args:
            args: Of Triton: `model_config` as JSON, `model_repository`, `model_version`.

        Raises:
            AdaptcError: as `load`.
        """
        given = json.loads(args["model_config"]).get("parameters", {})
        told = {name: given[name]["string_value"] for name in _ASIDE if name in given}
        here = Path(args["model_repository"]) / args["model_version"]
        batch = int(told["max_batch"]) if "max_batch" in told else None
        threads = int(told["threads"]) if "threads" in told else None
        self._session = load(here / told.get("bundle", "bundle"), batch=batch, threads=threads)
        self._most = (batch or 1) + int(told.get("max_queue", 64))
        self._inside = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(self._most, "request")

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin to answer requests; responses are sent as they come, so this returns at once."""
        for request in requests:
            sender = request.get_response_sender()
            with self._lock:
                full = self._inside >= self._most
                self._inside += not full
            if full:
                self._fail(sender, RequestError(f"server: {self._most} requests run or wait; ask again later"))
            else:
                self._threads.submit(self._answer, request, sender)

    def finalize(self) -> None:
        """Finish what runs, and free the bundle."""
        self._threads.shutdown(wait=True)
        self._session.close()

    def _answer(self, request: Any, sender: Any) -> None:
        try:
            prompt, stream, options = self._asked(request)
            pieces = self._session.generate(prompt, stream=True, **options)
            written = []
            for piece in pieces:
                if sender.is_cancelled():
                    pieces.close()
                    break
                if stream:
                    sender.send(self._response(piece))
                else:
                    written.append(piece)
            self._send_last(sender, "".join(written), pieces.result)
        except AdaptcError as error:
            self._fail(sender, error)
        except Exception as error:  # Triton shall tell its client, and go on
            self._fail(sender, error)
            raise
        finally:
            with self._lock:
                self._inside -= 1

    def _asked(self, request: Any) -> tuple[str, bool, dict[str, Any]]:
        """The prompt, whether it is answered piece by piece, and the options."""
        prompt = self._input(request, "text_input")
        if prompt is None:
            raise RequestError("text_input: missing; a text is needed")
        stream = self._input(request, "stream")
        text = self._input(request, "sampling_parameters")
        try:
            options = {} if text is None else json.loads(text)
        except ValueError as error:
            raise RequestError(f"sampling_parameters: not JSON: {error}") from error
        if not isinstance(options, dict):
            raise RequestError("sampling_parameters: a JSON object of request options is needed")
        for name in ("stream", "prompt", "images", "rules"):
            if name in options:
                raise RequestError(f"sampling_parameters: no option {name!r} here; leave it out")
        return prompt, bool(stream), options

    def _input(self, request: Any, name: str) -> Any:
        """The one element of an input; None if the request lacks it."""
        tensor = self.utils.get_input_tensor_by_name(request, name)
        if tensor is None or tensor.as_numpy().size == 0:
            return None
        value = tensor.as_numpy().reshape(-1)[0]
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def _response(self, text: str, **further: str) -> Any:
        outputs = {"text_output": text, **further}
        tensors = [self.utils.Tensor(name, np.array([value.encode()], object)) for name, value in outputs.items()]
        return self.utils.InferenceResponse(output_tensors=tensors)

    def _send_last(self, sender: Any, text: str, result: Result) -> None:
        trace = result.trace
        told: dict[str, Any] = {
            "finish_reason": result.finish_reason,
            "prompt_tokens": result.prompt_tokens,
            "new_tokens": len(result.ids),
            "cached_tokens": trace.cached_tokens,
        }
        if trace.routes:
            told["route"] = trace.route
        if trace.skips is not None:
            told["ffn_skipped"] = round(trace.ffn_skipped, 4)
        final = self.utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        sender.send(self._response(text, adaptc=json.dumps(told)), flags=final)

    def _fail(self, sender: Any, error: Exception) -> None:
        response = self.utils.InferenceResponse(output_tensors=[], error=self.utils.TritonError(str(error)))
        sender.send(response, flags=self.utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
