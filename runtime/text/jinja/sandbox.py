"""Jinja for chat templates: what transformers gives them, in a sandbox where every operation is counted.

Jinja's own sandbox keeps a template from Python; the meter keeps it from taking all of a machine. Loops, calls, filters
and operators are counted where they run; what a filter or a method will make is bounded before it is made.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from adaptc.runtime.text.jinja.counting import JOINED, LITERAL, MADE, SLICED, Counting
from adaptc.runtime.text.jinja.growth import FILTERS, METHODS, in_pairs, power, product, remainder
from adaptc.runtime.text.jinja.meter import Meter, weigh

METER = "the meter"
"""The variable that holds the meter: no name that a template can write."""

_TOKENS = 20_000
_CHARACTERS = 1 << 17
_FORMAT = 1000
"""Of a template's source, and of a date's format; real templates stay far below."""

_COMPARING = (
    "in",
    "eq",
    "equalto",
    "==",
    "ne",
    "!=",
    "gt",
    "greaterthan",
    ">",
    "ge",
    ">=",
    "lt",
    "lessthan",
    "<",
    "<=",
)
_OF_JINJA = frozenset({"loop", "caller", "varargs", "kwargs", "self", "super"})
_OF_MAPPINGS = frozenset(dir(dict))
_OF_LOOPS = frozenset(name for name in dir(LoopContext) if not name.startswith("_"))
_OF_TEXTS = frozenset(name for name in dir(str) if not name.startswith("_"))
"""Attributes that are found without Jinja's search, which is as long as all the rest of a rendering."""

_LIGHT = ("length", "count", "default", "d", "first", "last", "abs")
"""Filters that neither make nor read more than one value."""

_TAKES_MANY = ("join", "fromkeys", "from_bytes")
_HIDDEN = ("_loop_vars", "_block_vars")
"""Arguments that Jinja adds to calls."""

_BOUNDS = {"*": product, "**": power, "%": remainder}


def compiled(source: str) -> jinja2.Template:
    """Compile a template; render it with a `Meter` as the variable `METER`.

    Raises:
        jinja2.TemplateError: it is not valid Jinja, or too long.
    """
    environment = _Environment()
    if len(source) > _CHARACTERS:
        raise jinja2.TemplateError(f"of {len(source):,} characters; at most {_CHARACTERS:,}")
    if sum(1 for _ in itertools.islice(environment.lex(source), _TOKENS + 1)) > _TOKENS:
        raise jinja2.TemplateError(f"of more than {_TOKENS:,} words and signs")
    code = environment.compile(Counting().visit(environment.parse(source)))
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


def names_of(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names that a template reads, and those of them that nobody but a request gives a value.

    Raises:
        jinja2.TemplateError: it is not valid Jinja.
    """
    environment = _Environment()
    tree = environment.parse(source)
    names = list(tree.find_all(nodes.Name))
    read = frozenset(name.name for name in names if name.ctx == "load")
    own = {name.name for name in names if name.ctx != "load"} | {macro.name for macro in tree.find_all(nodes.Macro)}
    return read, read - own - set(environment.globals) - _OF_JINJA


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja with the settings and functions that templates of pretrained models rely on."""

    intercepted_binops = frozenset(_BOUNDS)

    def __init__(self) -> None:
        extensions = [_Generation, loopcontrols]
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=extensions,
            finalize=_written,
            optimized=False,  # it would compute constants while nothing counts, in the square of a template's depth
        )
        given = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        given.filters["tojson"] = _tojson
        self.filters |= {name: _metered(given, name) for name in given.filters if name not in _LIGHT}
        self.filters |= {
            MADE: _of_made,
            SLICED: _of_sliced,
            JOINED: _of_joined,
            LITERAL: _of_literal,
            "random": _by_chance,
        }
        self.tests |= {name: _metered_test(given, name) for name in _COMPARING}
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
            "lipsum": _by_chance,
        }

    def getattr(self, obj: Any, attribute: str) -> Any:
        """The attribute of a value; entries of mappings come by the short way."""
        if type(obj) is dict and attribute not in _OF_MAPPINGS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if type(obj) is LoopContext and attribute in _OF_LOOPS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether templates may use an attribute."""
        return (type(obj) is str and attr in _OF_TEXTS) or super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063
        """Call a function, a method or a macro."""
        meter: Meter = __context.parent[METER]
        method = __obj if type(__obj) is BuiltinMethodType else getattr(__obj, "__wrapped__", __obj)
        name = getattr(method, "__name__", "")  # Jinja wraps str.format, hence the line above
        if args and (name in _TAKES_MANY or isinstance(__obj, _Dict)):
            args = (_listed(args[0], meter), *args[1:])
        if name in METHODS or isinstance(__obj, _Dict):
            owner = getattr(method, "__self__", None)
            named = {key: value for key, value in kwargs.items() if key not in _HIDDEN}
            if isinstance(__obj, _Dict) or name == "fromkeys":
                meter.room(in_pairs(*args))
            elif isinstance(owner, (str, bytes, int)):
                meter.room(METHODS[name](owner, *args, **named))
        elif isinstance(__obj, Macro):
            # A macro gets what its signature does not name as one list, which may hold such lists in turn.
            unnamed = {key: value for key, value in kwargs.items() if key not in __obj.arguments}
            meter.room(weigh((args[len(__obj.arguments) :], unnamed), meter.largest))
        return meter.made(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute with an operator."""
        meter: Meter = context.parent[METER]
        meter.room(_BOUNDS[operator](left, right))
        return meter.made(self.binop_table[operator](left, right))


def _metered(environment: jinja2.Environment, name: str) -> Callable[..., Any]:
    """A filter of `environment`, counted."""
    bound = FILTERS.get(name)

    @jinja2.pass_context
    def metered(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter: Meter = context.parent[METER]
        meter.step()
        if isinstance(value, Iterator):
            value = _stepping(value, meter) if bound is None else list(_stepping(value, meter))
        if bound is not None:
            meter.room(bound(value, *args, **kwargs))
        return meter.made(environment.call_filter(name, value, args, kwargs, context=context))

    return metered


def _metered_test(environment: jinja2.Environment, name: str) -> Callable[..., Any]:
    """A test of `environment`, counted."""

    @jinja2.pass_context
    def metered(context: Any, value: Any, *args: Any, **kwargs: Any) -> bool:
        context.parent[METER].step()
        return bool(environment.call_test(name, value, args, kwargs, context=context))

    return metered


def _stepping(values: Iterable[Any], meter: Meter) -> Iterator[Any]:
    for value in values:
        meter.step()
        yield value


def _listed(values: Any, meter: Meter) -> Any:
    """An iterator as a list, so that it can be weighed; anything else as it is."""
    return list(_stepping(values, meter)) if isinstance(values, Iterator) else values


@jinja2.pass_context
def _written(context: Any, value: Any) -> Any:
    """What `{{ }}` writes."""
    return context.parent[METER].made(value)


@jinja2.pass_context
def _of_made(context: Any, value: Any) -> Any:
    return context.parent[METER].made(value)


@jinja2.pass_context
def _of_sliced(context: Any, value: Any) -> Any:
    # A part is no deeper than the whole, so that its length alone counts.
    context.parent[METER].step(8 * len(value) if isinstance(value, (list, tuple)) else len(value))
    return value


@jinja2.pass_context
def _of_joined(context: Any, *values: Any) -> str:
    """What `a ~ b` makes."""
    texts = [str(value) for value in values]
    context.parent[METER].step(sum(map(len, texts)))
    return "".join(texts)


@jinja2.pass_context
def _of_literal(context: Any, characters: int) -> None:
    context.parent[METER].step(max(0, characters))


def _by_chance(*_: Any, **__: Any) -> None:
    raise jinja2.TemplateError("random text is not for prompts; the same messages give the same prompt")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes for HTML, which models have not seen.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    if len(form) > _FORMAT:
        raise jinja2.TemplateError(f"a date's format of {len(form):,} characters; at most {_FORMAT:,}")
    return datetime.now().strftime(form)


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Dict:
    """`dict` without the methods of the class, which would change what they are given."""

    def __call__(self, *args: Any, **entries: Any) -> dict[Any, Any]:
        return dict(*args, **entries)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """`namespace`, whose names are plain and which is written without what it holds."""

    def __init__(*args: Any, **entries: Any) -> None:  # a namespace may hold a "self"
        self, *given = args
        values = dict(*given, **entries)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.TemplateError(f"namespace: {name!r}; a name without an underscore before it is right")
