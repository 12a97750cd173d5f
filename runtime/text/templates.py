"""Chat templates: Jinja as transformers renders it, in a sandbox because a template is foreign code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from adaptc.runtime.errors import BundleError, RequestError

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]


class ChatTemplate:
    """Renders a conversation as the text a model was trained on."""

    def __init__(self, source: str, tokens: Mapping[str, str], where: str) -> None:
        """Compile a template.

        Args:
            source: The template.
            tokens: Special tokens by the names templates know: "bos_token", "eos_token".
            where: Where it comes from, for messages.

        Raises:
            BundleError: the template is not valid Jinja.
        """
        import jinja2

        self._tokens = dict(tokens)
        self._broken = jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise BundleError(f"{where}: not a chat template: {_one_line(error)}") from error

    def render(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        """The prompt, ready for the model's next message.

        Args:
            messages: Each with "role" and "content".
            options: More variables of the template, such as "tools" or "enable_thinking".

        Raises:
            RequestError: the messages are not of this form, or the template refuses them.
        """
        variables = {
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **self._tokens,
            **options,
            "messages": list(messages),
        }
        try:
            # A template sees plain data only: methods of richer objects would be a way out of the sandbox.
            plain: dict[str, Any] = json.loads(json.dumps(variables))
            _check(plain["messages"])
            return self._template.render(**plain)
        except self._broken as error:
            raise RequestError(f"chat: the model's template refuses this: {_one_line(error)}") from error


def _check(messages: list[Any]) -> None:
    if not messages:
        raise RequestError("messages: none; at least one is needed")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f'messages[{index}]: {{"role": ..., "content": ...}} is needed')


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _environment() -> jinja2.Environment:
    """Jinja with the settings and functions that templates of pretrained models rely on."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the model wrote, for training; here it only shows its body."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        # Jinja's own filter escapes for HTML, which models have not seen.
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment
