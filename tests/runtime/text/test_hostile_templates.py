"""Templates of strangers: whatever they do ends soon, as a text or as one line, and changes nothing outside."""

# ruff: noqa: E501  (a template on one line is read as one)

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import pytest

from adaptc.runtime.errors import AdaptcError, RequestError
from adaptc.runtime.text.jinja.meter import Meter, weigh
from adaptc.runtime.text.template_files import TemplateText
from adaptc.runtime.text.templates import ChatTemplates

SECONDS = 2.0
"""Of the thread's own time, in which each ends; a limit of half a second and the step that was running when it passed."""

TEXTS = {
    "repeat": "{{ ('a' * 10000000000) | length }}",
    "repeat from the left": "{{ (10000000000 * 'a') | length }}",
    "repeat repeated": "{% set a = 'a' * 100000 %}{% set b = a * 1000 %}{{ b | length }}",
    "doubling": "{% set ns = namespace(s='ab') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling joined": "{% set ns = namespace(s='ab') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling written": "{% set ns = namespace(s='ab') %}{% for i in range(64) %}{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}"
    "{% set ns.s = t %}{% endfor %}",
    "doubling by a macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}"
    "{% set ns = namespace(s='ab') %}{% for i in range(64) %}{% set ns.s = f(ns.s) %}{% endfor %}",
    "doubling by replace": "{% set ns = namespace(s='aa') %}"
    "{% for i in range(64) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) | length }}",
    "replace nothing": "{{ ('a' * 100000) | replace('', 'b' * 100000) | length }}",
    "translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) | length }}",
    "join": "{{ ('b' * 1000).join(['a' * 1000] * 1000) | length }}",
    "join a text": "{{ ('b' * 100000).join('a' * 100000) | length }}",
    "join filter": "{{ (['a' * 1000] * 1000) | join('b' * 100000) | length }}",
    "join lazily": "{{ ''.join(range(99999) | map('string') | map('center', 100000)) | length }}",
    "center": "{{ 'a'.center(3000000000) | length }}",
    "center filter": "{{ 'a' | center(3000000000) | length }}",
    "centers in a map": "{{ ['a'] | map('center', 3000000000) | list | length }}",
    "ljust": "{{ 'a'.ljust(3000000000) | length }}",
    "zfill": "{{ '1'.zfill(4000000000) | length }}",
    "tabs": "{{ ('\\t' * 100).expandtabs(1000000000) | length }}",
    "indent": "{{ 'a\\nb' | indent(2000000000) | length }}",
    "indent by a text": "{{ ('a\\n' * 10000) | indent('b' * 100000) | length }}",
    "wordwrap": "{{ ('a ' * 10000) | wordwrap(1, wrapstring='b' * 100000) | length }}",
    "percent": "{{ '%1000000000s' % 'a' }}",
    "percent of a number": "{{ '%01000000000d' % 5 }}",
    "percent star": "{{ '%*d' % (1000000000, 5) }}",
    "percent named": "{{ ('%(a)s' * 10000) % {'a': 'b' * 100000} }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:>1000000000}'.format('a') }}",
    "format nested": "{{ '{:>{w}}'.format('a', w=1000000000) }}",
    "format repeated": "{{ ('{0}' * 10000).format('a' * 100000) | length }}",
    "format_map": "{{ ('{a}' * 10000).format_map({'a': 'b' * 100000}) | length }}",
    "format precision": "{{ '{:.1000000000f}'.format(1.5) }}",
    "json indent": "{{ messages | tojson(indent=2000000000) }}",
    "json indent by a text": "{{ ([[1]] * 1000) | tojson(indent='b' * 100000) | length }}",
    "json separators": "{{ ([1] * 10000) | tojson(separators=('b' * 100000, ':')) | length }}",
    "bytes": "{{ ('a' * 100000).encode() * 100000 }}",
    "to_bytes": "{{ (5).to_bytes(10000000000, 'big') | length }}",
    "slices": "{% set a = 'a' * 1000000 %}{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}",
    "output": "{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
    "its own text": "{% for i in range(99999) %}" + "text " * 20000 + "{% endfor %}",
    "its own text in a macro": "{% macro f() %}"
    + "text " * 20000
    + "{% endmacro %}{% for i in range(99999) %}{{ f() }}{% endfor %}",
    "xmlattr": "{{ {'a': '<' * 1000000} | xmlattr | length }}",
    "date": "{{ strftime_now('%c' * 1000000) | length }}",
    "error message": "{{ raise_exception('a\\n' * 100000) }}",
}
LISTS = {
    "repeat": "{{ ([0] * 1000000000) | length }}",
    "repeat a tuple": "{{ ((0,) * 1000000000) | length }}",
    "range": "{% for i in range(1000000000) %}{% endfor %}",
    "ranges in ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered ranges": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
    "sums": "{% set ns = namespace(l=[1]) %}{% for i in range(64) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "nested": "{% set ns = namespace(l=[]) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "nested tuples": "{% set ns = namespace(l=()) %}{% for i in range(64) %}{% set ns.l = (ns.l, ns.l) %}{% endfor %}"
    "{{ {ns.l: 1} }}",
    "nested mappings": "{% set ns = namespace(l={}) %}{% for i in range(64) %}{% set ns.l = {1: ns.l, 2: ns.l} %}{% endfor %}"
    "{{ ns.l | tojson }}",
    "nested by dict": "{% set ns = namespace(l={}) %}{% for i in range(64) %}{% set ns.l = dict(a=ns.l, b=ns.l) %}{% endfor %}"
    "{{ ns.l == ns.l }}",
    "nested by a filter": "{% set ns = namespace(l=[1]) %}"
    "{% for i in range(64) %}{% set ns.l = [0, 0] | map('replace', 0, 0) | map('default', ns.l) | list %}{% endfor %}",
    "nested by varargs": "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}{% endmacro %}"
    "{{ f(60, 1) }}",
    "nested by kwargs": "{% macro f(n) %}{% if n %}{{ f(n - 1, a=kwargs, b=kwargs) }}{% else %}{{ kwargs }}{% endif %}{% endmacro %}"
    "{{ f(60, a=1) }}",
    "nested namespaces": "{% set ns = namespace(l=1) %}{% for i in range(64) %}{% set ns.l = namespace(a=ns.l, b=ns.l) %}{% endfor %}"
    "{{ ns.l }}{{ [ns.l] }}",
    "deep": "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
    "itself": "{% set ns = namespace() %}{% set ns.l = [ns] %}{% set ns.m = [ns.l, ns.l] %}{{ ns.m }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list | length }}",
    "slice": "{{ [1] | slice(100000000) | list | length }}",
    "split": "{% for i in range(99999) %}{% set a = ('a ' * 400000).split() %}{% endfor %}",
    "list of a text": "{% for i in range(99999) %}{% set a = ('a' * 1000000) | list %}{% endfor %}",
    "groupby": "{{ (range(16000) | groupby('real') | list | length) * (range(16000) | groupby('imag') | list | length) }}",
    "search": "{% set l = range(50000) | list %}{% for i in range(99999) %}{% if -1 in l %}{% endif %}{% endfor %}",
    "searches in a row": "{% set l = range(50000) | list %}{{ " + "-1 in l or " * 150 + "0 }}",
    "searches in a test": "{% set l = range(50000) | list %}{{ l | select('in', l[1:]) | list | length }}",
    "searches by index": "{% set l = range(50000) | list %}{% for i in l %}{% set a = l.count(-1) %}{% endfor %}",
    "comparisons": "{% set l = range(50000) | list %}{% for i in l %}{% if l + [1] == l + [2] %}{% endif %}{% endfor %}",
    "comparisons in a test": "{% set l = [range(999) | list] * 9 %}{{ (l * 9) | select('eq', l) | list }}",
    "sort": "{% for i in range(99999) %}{% set a = range(16000) | sort(reverse=true) %}{% endfor %}",
    "equal hashes": "{% set m = 2 ** 61 - 1 %}{% set ns = namespace(l=[]) %}"
    "{% for i in range(2000) %}{% set ns.l = ns.l + [i * m] %}{% endfor %}{{ (ns.l * 10) | unique | list | length }}",
    "equal hashes in keys": "{{ {}.fromkeys(range(0, 99999)) | length }}{{ dict.fromkeys(range(99999)) | length }}",
}
NUMBERS = {
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "power of powers": "{{ ((9 ** 9999) ** 9999) ** 9999 }}",
    "large power": "{{ (10 ** 10000000) % 7 }}",
    "small power": "{{ 10 ** -10000000 }}{{ 2.0 ** 99999 }}",
    "squares": "{% set ns = namespace(n=3) %}{% for i in range(64) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "read": "{{ ('9' * 1000000) | int }}",
    "read with a base": "{{ ('z' * 1000000) | int(base=36) }}",
    "round": "{{ 5 | round(-1000000000) }}",
    "round up": "{{ 5 | round(1000000000, 'ceil') }}",
    "from bytes": "{{ (5).from_bytes(('a' * 1000000).encode(), 'big') % 7 }}",
    "character": "{{ '%c' % 9999999999 }}",
    "index": "{{ messages[99999999999999999999] }}",
    "zero": "{{ 1 / 0 }}",
}
SLOW = {
    "search from the right": "{{ ('a' * 1000000).rfind('ab' + 'a' * 500000) }}",
    "split from the right": "{{ ('a' * 1000000).rsplit('ab' + 'a' * 500000) }}",
    "strip": "{{ ('a' * 500000).strip('b' * 500000 + 'a') | length }}",
    "trim": "{{ ('a' * 500000) | trim('b' * 500000 + 'a') | length }}",
    "search": "{{ ('a' * 500000).find('a' * 250000 + 'b') }}{{ ('a' * 500000).count('a' * 250000 + 'b') }}",
    "urls": "{{ ('a.' * 500000) | urlize }}",
    "brackets": "{{ ('(' * 500000) | urlize }}",
    "tags": "{{ ('<' * 500000) | striptags | length }}",
    "comments": "{{ ('<!--' * 250000) | striptags | length }}{{ ('<!--' * 250000 | escape).striptags() | length }}",
    "words": "{{ ('-' * 500000) | wordwrap(3) | length }}",
    "titles": "{{ ('a-' * 400000) | title | length }}{{ ('a ' * 400000) | wordcount }}",
    "pretty": "{{ ([[[1]]] * 100000) | pprint | length }}",
    "domain names": "{{ ('é' * 100000).encode('idna') }}",
    "punycode": "{{ ('é' * 500000).encode('punycode') | length }}",
}
CODE = {
    "macro calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macros call each other": "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "macro branches": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "block shows itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "loop calls itself": "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "loop branches": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "caller": "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}",
    "parentheses": "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
    "lists": "{{ " + "[" * 500 + "]" * 500 + " }}",
    "conditions": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "loops": "{% for x in [1] %}" * 30 + "{% endfor %}" * 30,
    "terms": "{{ 1" + " + 1" * 20000 + " }}",
    "nots": "{{ " + "not " * 20000 + "1 }}",
    "names": "{{ a" + ".b" * 20000 + " }}",
    "filters": "{{ 1" + "|abs" * 5000 + " }}",
    "statements": "{{ 1 }}" * 200000,
    "words": "{{ 1 }}" * 15000,
    "spaces": " " * 100000 + "{{ 1 }}" + "\n" * 20000,
    "digits": "{{ " + "9" * 100000 + " }}",
    "braces": "{" * 100000,
    "comment": "{#" * 50000,
    "raw": "{% raw",
    "NUL": "\0",
    "surrogate": "\ud800",
    "await": "{% set x = await 5 %}",
    "break": "{% break %}",
    "import": "{% import 'os' as os %}{{ os.getcwd() }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
}
ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "format": "{{ '{0.__class__.__mro__}'.format(5) }}",
    "format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "format in a map": "{{ [5] | map('format') | list }}{{ ('{0.__class__}' | attr('format'))(5) }}",
    "globals": "{{ raise_exception.__globals__['os'].system('touch PWNED') }}",
    "cycler": "{{ cycler.__init__.__globals__.os.system('touch PWNED') }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('touch PWNED').read() }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "namespace entries": "{% set ns = namespace(__class__=5) %}{{ ns }}",
    "self": "{{ self._TemplateReference__context.eval_ctx.environment }}",
    "sorted by": "{{ messages | sort(attribute='__class__.__mro__') }}",
    "summed": "{{ [raise_exception] | sum(attribute='__globals__', start={}) }}",
    "json default": "{{ [cycler] | tojson(default=cycler) }}",
    "json class": "{{ 1 | tojson(cls=cycler) }}",
    "change messages": "{{ messages.append(1) }}{{ messages[0].update({'role': 'x'}) }}",
    "change by a class": "{{ dict.update(messages[0], role='x') }}",
    "generator": "{{ (messages | map('upper')).gi_frame.f_back.f_globals }}",
    "the meter": "{{ [-99999999999] | map('text of the template') | list }}{{ [1] | map('what was made') | list }}",
    "encodings": "{{ 'a'.encode('antigravity') }}",
}
HOSTILE = {
    f"{kind}: {name}": text
    for kind, table in (
        ("text", TEXTS),
        ("list", LISTS),
        ("number", NUMBERS),
        ("slow", SLOW),
        ("code", CODE),
        ("escape", ESCAPES),
    )
    for name, text in table.items()
}


def rendered(template: str) -> str:
    """What a model with this template makes of a short chat."""
    templates = ChatTemplates({"default": TemplateText(template, "chat_template.jinja")}, {"bos_token": "<s>"})
    return templates.render([{"role": "user", "content": "hi"}], {})


def answered(template: str) -> str:
    """The text, or the one line that refuses it."""
    try:
        return rendered(template)
    except AdaptcError as error:
        return str(error) if "\n" not in str(error) and len(str(error)) < 400 else "no line"


def test_there_are_a_hundred() -> None:
    assert len(HOSTILE) >= 100


@pytest.mark.parametrize("name", HOSTILE)
def test_it_ends_soon_as_a_text_or_as_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = time.thread_time()
    told = answered(HOSTILE[name])
    assert time.thread_time() - before < SECONDS
    assert len(told) < 2_000_000
    assert not any(word in told for word in ("no line", "<class", "site-packages", "root:"))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            r"takes more than (0\.5 seconds|1,000,000 steps)$",  # whichever a machine reaches first
        ),
        (
            # A step of a millisecond.
            "{% set a, b = range(40000) | list, range(40000) | list %}{% for i in a %}{{ 'x' if a == b }}{% endfor %}",
            r"takes more than 0\.5 seconds$",
        ),
        ("{{ 'a' * 10 ** 9 }}", r"makes a value of more than 1,\d{3},\d{3} characters$"),
        ("{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}", r"makes more than [\d,]+ characters in all$"),
        ("{{ 7 ** 30000 }}", "makes a number of more than 65,536 bits$"),
        ("{{ [] | random }}", "refuses this: random text is not for prompts"),
    ],
)
def test_a_limit_says_which_it_is(template: str, message: str) -> None:
    with pytest.raises(RequestError, match=f"^chat: the model's template {message}"):
        rendered(template)


def test_a_template_leaves_the_process_as_it_was() -> None:
    state, modules, limit = random.getstate(), set(sys.modules), sys.getrecursionlimit()
    for template in HOSTILE.values():
        if "random" in template or "lipsum" in template or "encode" in template or "strftime" in template:
            with pytest.raises(AdaptcError):
                rendered(template)
    assert (random.getstate(), sys.getrecursionlimit()) == (state, limit)
    assert {name for name in set(sys.modules) - modules if name.startswith("encodings")} == set()


def test_a_large_request_may_take_more() -> None:
    """Limits grow with the request: a long document is written more than once, and none is refused for its length."""
    document = "word " * 400_000
    template = TemplateText("{{ documents[0].text | trim | upper }}{{ messages[0].content }}" * 3, "t")
    text = ChatTemplates({"default": template}, {}).render(
        [{"role": "user", "content": document}], {"documents": [{"text": document}]}
    )
    assert len(text) > 10_000_000
    many = [{"role": "user", "content": f"message {number}"} for number in range(5_000)]
    adding = (
        "{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = ns.s ~ m.content %}{% endfor %}{{ ns.s }}"
    )
    assert len(ChatTemplates({"default": TemplateText(adding, "t")}, {}).render(many, {})) > 50_000


def test_weighing_stops_and_counts_each_place() -> None:
    doubled: list[object] = ["ab"]
    assert weigh(["ab", {"c": 1}, (b"d",)]) == 3 * 8 + 2 + (8 + 1) + (8 + 1)
    for _ in range(100):
        doubled = [doubled, doubled]
    assert weigh(doubled, 1000) > 1000
    deep: list[object] = []
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(RequestError, match="lists within lists"):
        weigh(deep)


def test_time_is_the_threads_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other things takes nothing away."""
    clock = iter(range(0, 10**9, 60))
    monkeypatch.setattr("adaptc.runtime.text.jinja.meter.time.monotonic", lambda: next(clock))
    meter = Meter(0)
    for _ in range(1000):
        meter.step()
    monkeypatch.setattr("adaptc.runtime.text.jinja.meter.time.thread_time", lambda: 1e9)
    with pytest.raises(RequestError, match=r"takes more than 0.5 seconds$"):
        meter.step()
