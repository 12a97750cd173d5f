"""Where a chat template is counted: in its bodies, at what makes something and at what compares.

The template's syntax tree gets filters by names that no template can write; a template that reaches them by `map`
gains nothing.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

MADE = "what was made"
"""Counts a value that an operation has made, and gives it."""

SLICED = "what was cut out"
"""The same for a part of a text or a list."""

JOINED = "what was joined"
"""Joins texts, as `a ~ b` does, and counts the result."""

LITERAL = "text of the template"
"""Counts a step, and so many characters of the template's own text."""

_TERMS = 8
"""Sums are counted once for so many terms."""


class Counting(NodeTransformer):
    """Puts a count wherever a template loops, makes something or compares."""

    def _body(self, node: Any) -> Any:
        self.generic_visit(node)
        written = sum(len(data.data) for part in node.body for data in part.find_all(nodes.TemplateData))
        written += sum(len(part.data) for part in node.body if isinstance(part, nodes.TemplateData))
        count = nodes.Filter(nodes.Const(written), LITERAL, [], [], None, None, lineno=node.lineno)
        node.body = [nodes.ExprStmt(count, lineno=node.lineno), *node.body]
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_Block = _body  # noqa: N815

    def visit_Add(self, node: nodes.Add) -> nodes.Node:  # noqa: N802
        return _made(self._sum(node))

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        # What is written is counted there, so that a sum of texts need not be.
        node.nodes = [self._sum(each) if isinstance(each, nodes.Add) else self.visit(each) for each in node.nodes]
        return node

    def _sum(self, node: nodes.Add) -> nodes.Expr:
        """A sum with its terms counted, and with what it comes to after each few of them."""
        term: nodes.Add = node
        for _ in range(_TERMS):
            term.right = self.visit(term.right)
            if not isinstance(term.left, nodes.Add):
                break
            term = term.left
        term.left = self.visit(term.left)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        first, *others = node.nodes
        return nodes.Filter(first, JOINED, others, [], None, None, lineno=node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if all(isinstance(item, nodes.Const) for item in node.items) else _made(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        constant = all(isinstance(item, nodes.Const) for item in node.items)
        return node if node.ctx != "load" or constant else _made(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if all(isinstance(pair.value, nodes.Const) for pair in node.items) else _made(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, SLICED) if isinstance(node.arg, nodes.Slice) and node.ctx == "load" else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        # A comparison with a literal looks no further than the literal's end.
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        contains = [operand.expr for operand in node.ops if operand.op in ("in", "notin")]
        literal = (nodes.Const, nodes.List, nodes.Tuple)
        quick = all(isinstance(side, literal) for side in contains) and (
            bool(contains) or any(isinstance(side, nodes.Const) for side in sides)
        )
        return node if quick and len(node.ops) == 1 else _made(node)


def _made(node: nodes.Expr) -> nodes.Expr:
    return _filtered(node, MADE)


def _filtered(node: nodes.Expr, name: str) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
