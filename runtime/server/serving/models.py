"""What is served: sessions by name, and the policies that a name may carry."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Generic, TypeVar

from adaptc.runtime.bundle.folder import open_bundle
from adaptc.runtime.bundle.names import TOKENIZER
from adaptc.runtime.encoding.session import EncoderSession
from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.load_control import LoadTargets
from adaptc.runtime.generation.session import Session
from adaptc.runtime.loading import load, served_batch
from adaptc.runtime.model.plan import decoder_graph, is_encoder, is_modal, takes_budget
from adaptc.runtime.multimodal.session import ModalSession
from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.text.grammars import Grammars
from adaptc.runtime.text.template_files import templates_of
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.runtime.text.tool_calls import ToolFormat, tool_format_of
from adaptc.runtime.validation import shown

BUDGETS: Mapping[str, float] = MappingProxyType({"fast": 0.0, "balanced": 0.5, "dense": 1.0})
"""The budgets of `model: "NAME@POLICY"`, for bundles with gates or a router."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a model's name says beside the model: `NAME@fast`, `NAME@ROUTE`, `NAME:ADAPTER` or `NAME:ADAPTER@fast`.

    Attributes:
        budget: The budget it stands for.
        route: The route it stands for.
        adapter: The adapter it stands for.
    """

    budget: float | None = None
    route: str | None = None
    adapter: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TextModel:
    """A model that writes text.

    Attributes:
        name: What clients call it.
        session: Answers its requests.
        max_tokens: Positions of its KV cache: prompt and answer together.
        max_characters: Texts that are longer are too long, whatever their tokens are.
        vocab: Width of its logits.
        batch: The largest number of sequences that are decoded together.
        policies: What may stand after an @ in `model`.
        tools: How it writes tool calls; None if its template takes no tools.
        grammars: Makes rules that keep its answers to a grammar.
        created: Seconds since the epoch when it was loaded.
    """

    name: str
    session: Session
    max_tokens: int
    max_characters: int
    vocab: int
    batch: int
    policies: Mapping[str, Policy]
    tools: ToolFormat | None
    grammars: Grammars
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def adapters(self) -> tuple[str, ...]:
        """What may stand after a colon in `model`, before an @."""
        return self.session.adapters

    def close(self) -> None:
        """Free it."""
        self.session.close()


S = TypeVar("S", ModalSession, EncoderSession)


@dataclass(frozen=True, slots=True, eq=False)
class _Unbudgeted(Generic[S]):
    """A model that answers each request by itself, and has no budgets that names could stand for.

    Attributes:
        name: What clients call it.
        session: Answers its requests.
        created: Seconds since the epoch when it was loaded.
    """

    name: str
    session: S
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def policies(self) -> Mapping[str, Policy]:
        """None: requests for modalities say `accuracy` and `deadline_ms`, and an encoder always runs whole."""
        return {}

    @property
    def adapters(self) -> tuple[str, ...]:
        """None: they are of models that write."""
        return ()

    def close(self) -> None:
        """Free it."""
        self.session.close()


class InputModel(_Unbudgeted[ModalSession]):
    """A model that answers each input by itself, from the modalities that are worth their time."""

    __slots__ = ()


class EncoderModel(_Unbudgeted[EncoderSession]):
    """A model that makes vectors of texts."""

    __slots__ = ()


Model = TextModel | InputModel | EncoderModel


class Models:
    """The models of a server, by name."""

    def __init__(self, models: Sequence[Model]) -> None:
        """Take models.

        Args:
            models: Closed with this.

        Raises:
            RequestError: two have one name.
        """
        self.by_name: dict[str, Model] = {}
        for model in models:
            if model.name in self.by_name:
                raise RequestError(f"serve: two bundles are called {shown(model.name)}; NAME=BUNDLE names one")
            self.by_name[model.name] = model
        for name, model in self.by_name.items():
            for each in model.adapters:
                if (taken := f"{name}:{each}") in self.by_name:
                    raise RequestError(
                        f"serve: {shown(taken)} is a bundle, and an adapter of {name}; NAME=BUNDLE renames"
                    )

    def text(self, asked: object) -> tuple[TextModel, Policy]:
        """The model that a request names, and its policy; the only one if it names none.

        Raises:
            ApiError: there is no such model or policy, or it writes no text.
        """
        model, policy = self._find(asked)
        if isinstance(model, EncoderModel):
            text = f"model: {model.name} makes vectors and writes no text; /v1/embeddings is for it"
            raise ApiError(400, text, param="model")
        if not isinstance(model, TextModel):
            raise ApiError(
                400, f"model: {model.name} answers inputs and writes no text; /v1/infer is for it", param="model"
            )
        return model, policy

    def inputs(self, asked: object, path: str) -> InputModel:
        """The same for a model that answers inputs.

        Args:
            asked: See `text`.
            path: The endpoint, which the message names.

        Raises:
            ApiError: there is no such model, or it writes text.
        """
        model, _ = self._find(asked)
        if isinstance(model, EncoderModel):
            text = f"model: {model.name} makes vectors; /v1/embeddings is for it, not {path}"
            raise ApiError(400, text, param="model")
        if not isinstance(model, InputModel):
            classifiers = [each.name for each in self.by_name.values() if isinstance(each, InputModel)]
            there = f"of those {', '.join(classifiers)} is served" if classifiers else "none is served here"
            raise ApiError(
                400,
                f"model: {model.name} writes text, and {path} is for classifiers of several modalities; {there}, "
                f"and prompts for {model.name} go to /v1/chat/completions",
                param="model",
            )
        return model

    def encoder(self, asked: object, path: str) -> EncoderModel:
        """The same for a model that makes vectors of texts; arguments as for `inputs`.

        Raises:
            ApiError: there is no such model, or it makes no vectors.
        """
        model, _ = self._find(asked)
        if not isinstance(model, EncoderModel):
            known = [each.name for each in self.by_name.values() if isinstance(each, EncoderModel)]
            there = f"of those {', '.join(known)} is served" if known else "none is served here"
            text = f"model: {model.name} makes no vectors, and {path} is for encoders of texts; {there}"
            raise ApiError(400, text, param="model")
        return model

    def close(self) -> None:
        """Free all."""
        for model in self.by_name.values():
            model.close()

    def _find(self, asked: object) -> tuple[Model, Policy]:
        there = ", ".join(self.by_name)
        if asked is None:
            if len(self.by_name) != 1:
                raise ApiError(400, f"model: missing; there are: {there}", param="model")
            return next(iter(self.by_name.values())), Policy()
        whole, _, suffix = str(asked).partition("@")
        name, _, adapter = (whole, "", "") if whole in self.by_name else whole.rpartition(":")
        if name not in self.by_name:
            raise _not_found(f"no model {shown(asked)}; there are: {there}")
        model = self.by_name[name]
        if (adapter or whole != name) and adapter not in model.adapters:
            known = ", ".join(f"{name}:{each}" for each in model.adapters)
            raise _not_found(f"no adapter {shown(adapter)}; {f'there are: {known}' if known else f'{name} has none'}")
        if suffix and suffix not in model.policies:
            known = ", ".join(f"{name}@{each}" for each in model.policies)
            raise _not_found(f"no policy {shown(suffix)}; there are: {known}")
        policy = model.policies[suffix] if suffix else Policy()
        return model, replace(policy, adapter=adapter or None)


def _not_found(text: str) -> ApiError:
    return ApiError(404, f"model: {text}", code="model_not_found", param="model")


def load_model(
    path: Path,
    name: str,
    *,
    device: str = "auto",
    batch: int | None = None,
    threads: int | None = None,
    verify: bool = True,
    targets: LoadTargets | None = None,
    routes: Sequence[str] | None = None,
    speculate: str | None = None,
    max_loss: float | None = None,
) -> Model:
    """Load a bundle under a name, and answer one request, so that the first client waits for nothing.

    Args:
        path: The bundle's folder.
        name: What clients call it.
        device: As for `load`.
        batch: As for `load`; None for what the bundle was compiled for, on a CPU 8 or more.
        threads: As for `load`.
        verify: As for `load`.
        targets: What is kept under load by lowering budgets; a bundle whose cost no budget changes takes no notice.
        routes: As for `load`.
        speculate: As for `load`; a bundle that answers inputs takes no notice.
        max_loss: As for `load`; a bundle without gates takes no notice.

    Raises:
        AdaptcError: as `load`.
    """
    bundle = open_bundle(path, verify=False)
    alone = is_modal(bundle.manifest) or is_encoder(bundle.manifest)
    if batch is None and not alone:
        batch = served_batch(bundle)
    kept = targets if takes_budget(bundle.manifest, routes) else None
    session: object = load(
        path,
        device,
        batch=batch,
        threads=threads,
        verify=verify,
        load_targets=kept,
        routes=routes,
        speculate=None if alone else speculate,
        max_loss=max_loss if bundle.manifest.gates and not alone else None,
    )
    if isinstance(session, ModalSession):
        return InputModel(name, session)
    if isinstance(session, EncoderSession):
        return _encoder(path, name, session)
    assert isinstance(session, Session)
    spec = decoder_graph(bundle)[1]
    files = bundle.below(TOKENIZER)
    templates = templates_of(files, TOKENIZER) if files else {}
    for budget in (None,) if kept is None else (None, 0.0):  # each form of its graphs
        for adapter in (None, *session.adapters[:1]):  # all adapters share a graph
            session.generate([spec.bos_token_id or 0], max_tokens=2, budget=budget, adapter=adapter)
    return TextModel(
        name=name,
        session=session,
        max_tokens=spec.max_tokens,
        max_characters=max_characters(session.tokenizer, spec.max_tokens),
        vocab=spec.vocab_size,
        batch=batch or 1,
        policies=_policies(session),
        tools=tool_format_of([each.text for each in templates.values()]),
        grammars=Grammars(files.get("tokenizer.json", b""), spec.vocab_size, spec.eos_token_ids),
    )


def _encoder(path: Path, name: str, session: EncoderSession) -> EncoderModel:
    """A model of an encoder that has made its first vector.

    Raises:
        RequestError: it makes no vectors of texts.
    """
    if session.spec.text is None or session.spec.gives != "vectors":
        session.close()
        raise RequestError(
            f"{path}: an encoder that gives {session.spec.gives}, which no endpoint serves; load it in Python"
        )
    session.embed([[session.spec.text.pad_token_id]])
    return EncoderModel(name, session)


def max_characters(tokenizer: Tokenizer | None, max_tokens: int) -> int:
    """The length from which a text needs no tokenizer to be known as too long.

    A normalizer may make a text shorter before it is cut into tokens: by composing characters, to a third at most.
    """
    return 0 if tokenizer is None else 4 * max_tokens * tokenizer.longest


def _policies(session: Session) -> dict[str, Policy]:
    named = {route: Policy(route=route) for route in session.routes}
    if not session.takes_budget:
        return named | {"dense": Policy()}  # it always runs whole
    return named | {name: Policy(budget=budget) for name, budget in BUDGETS.items()}
