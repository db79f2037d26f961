"""Arithmetic expressions over transitions: add-on rewards and metrics written in a specification.

    expression   -10 * abs(next_obs[7])       -0.1 * sum(action ** 2)       where(info["x_position"] > 3, 1, 0)
    names        obs, action, next_obs, info["key"] or info.key, pi
    operators    + - * / ** %   < <= > >= == !=   and or not (of each element; a truth value is 1 or 0)
    entries      x[3], x[-1], x[0:3]: of the last axis, by constants
    functions    abs exp log log1p sqrt sin cos tan tanh sign; minimum maximum clip(x, low, high) where(if, then, else);
                 sum mean norm and, with one argument, min max: over the last axis

The text is parsed by Python's own parser into a syntax tree, which is never compiled or run: each node must be one of
the few above and becomes a node of a closed tree of numpy calls. Everything else is refused with its place.

Shapes: every value is held as ``[B, K]``, K being 1 for one number per step; a result must have K = 1.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from rpg_platform.tasks.expression_nodes import (
    Array,
    Batch,
    Each,
    Entries,
    Fault,
    Info,
    Node,
    Number,
    Over,
    Sizes,
    Source,
)
from rpg_platform.wording import show, suggestion

__all__ = ["Expression", "ExpressionError", "Sizes"]

MAX_LENGTH = 2_000
MAX_DEPTH = 100
_MAX_KEY = 200


class ExpressionError(ValueError):
    """An expression that was refused.

    Attributes:
        message: what is wrong.
        offset: characters before the place of the fault.
        text: the expression.
    """

    def __init__(self, message: str, offset: int, text: str) -> None:
        super().__init__(message, offset, text)
        self.message, self.offset, self.text = message, offset, text

    def __str__(self) -> str:
        return f"{self.message} (column {self.offset + 1} of {show(self.text)})"


class Expression:
    """A compiled expression, an add-on reward or metric like any other.

    Equal, hashed and pickled by its text.

    Args:
        text: the expression.

    Raises:
        ExpressionError: it is not of the grammar; says what and where.
    """

    __slots__ = ("_checked", "_root", "info_keys", "text")

    info_keys: tuple[str, ...]

    def __init__(self, text: str) -> None:
        self.text = text
        parser = _Parser(text)
        self._root = parser.root
        self.info_keys = tuple(sorted(parser.info_keys))
        self._checked: tuple[int, int, bool] | None = None
        self.check(Sizes())

    def check(self, sizes: Sizes) -> None:
        """Checks indices, info keys and the result's shape against an environment.

        Raises:
            ExpressionError: an index is out of range, a key is missing, or the result is not one number per step.
        """
        try:
            width = self._root.width(sizes)
        except Fault as fault:
            raise ExpressionError(fault.message, fault.at, self.text) from None
        if width not in (None, 1):
            whole = self.text.strip() if len(self.text) <= 60 else "..."
            message = f"gives {width} values per step instead of one; did you mean sum({whole})?"
            raise ExpressionError(message, self._root.at, self.text)

    def __call__(self, obs: Array, actions: Array, next_obs: Array, infos: Mapping[str, Array]) -> Array:
        """``[B]`` values of B transitions, in float64; see ``AddonReward``. Where it has none they are NaN or infinite.

        Raises:
            ExpressionError: it does not fit these shapes.
        """
        discrete = actions.ndim == 1
        shapes = (obs.shape[-1], 1 if discrete else actions.shape[-1], discrete)
        if shapes != self._checked:
            self.check(Sizes(*shapes, info_keys=infos.keys()))
            self._checked = shapes
        batch = Batch(obs, actions[:, None] if discrete else actions, next_obs, infos)
        with np.errstate(all="ignore"):
            value = self._root.value(batch)
        return np.array(np.broadcast_to(value, (len(obs), 1))[:, 0], np.float64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and other.text == self.text

    def __hash__(self) -> int:
        return hash((Expression, self.text))

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def __reduce__(self) -> tuple[type[Expression], tuple[str]]:
        return Expression, (self.text,)


# ---- the grammar -----------------------------------------------------------------------------------
def _truth(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values: np.asarray(function(*values), np.float64)


def _clip(x: Any, low: Any, high: Any) -> Any:
    return np.minimum(np.maximum(x, low), high)


def _norm(x: Any, axis: int, keepdims: bool) -> Any:
    return np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims))


def _fold(function: Callable[..., Any]) -> Callable[..., Any]:
    def folded(first: Any, *others: Any) -> Any:
        for other in others:
            first = function(first, other)
        return first

    return folded


_and, _or = (_fold(_truth(function)) for function in (np.logical_and, np.logical_or))
_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = MappingProxyType(
    {
        ast.Add: np.add,
        ast.Sub: np.subtract,
        ast.Mult: np.multiply,
        ast.Div: np.divide,
        ast.Pow: np.power,
        ast.Mod: np.mod,
        ast.USub: np.negative,
        ast.UAdd: np.positive,
        ast.Not: _truth(np.logical_not),
        ast.And: _and,
        ast.Or: _or,
        ast.Lt: _truth(np.less),
        ast.LtE: _truth(np.less_equal),
        ast.Gt: _truth(np.greater),
        ast.GtE: _truth(np.greater_equal),
        ast.Eq: _truth(np.equal),
        ast.NotEq: _truth(np.not_equal),
    }
)
_EACH: Mapping[str, tuple[Callable[..., Any], tuple[str, ...]]] = MappingProxyType(
    {
        **{
            name: (getattr(np, name), ("x",))
            for name in ("abs", "exp", "log", "log1p", "sqrt", "sin", "cos", "tan", "tanh", "sign")
        },
        "minimum": (np.minimum, ("x", "y")),
        "maximum": (np.maximum, ("x", "y")),
        "clip": (_clip, ("x", "low", "high")),
        "where": (_truth(lambda condition, x, y: np.where(condition != 0, x, y)), ("condition", "x", "y")),
    }
)
_OVER: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"sum": np.sum, "mean": np.mean, "norm": _norm, "min": np.min, "max": np.max}
)
_MIN_MAX = MappingProxyType({"min": _fold(np.minimum), "max": _fold(np.maximum)})
_SOURCES = ("obs", "action", "next_obs")
_CONSTANTS = MappingProxyType({"pi": np.pi})
FUNCTIONS = (*_EACH, *_OVER)
NAMES = (*_SOURCES, "info", *_CONSTANTS)

_INSTEAD: Mapping[type[ast.AST], str] = MappingProxyType(
    {
        ast.IfExp: "'if ... else' cannot be used here: write where(condition, then, else)",
        ast.FloorDiv: "'//' cannot be used here: use / and %",
        ast.MatMult: "'@' cannot be used here: write sum(x * y)",
        ast.BitXor: "'^' cannot be used here: a power is written x ** y",
        ast.BitAnd: "'&' cannot be used here: write 'and'",
        ast.BitOr: "'|' cannot be used here: write 'or'",
        ast.LShift: "'<<' cannot be used here",
        ast.RShift: "'>>' cannot be used here",
        ast.Invert: "'~' cannot be used here: write 'not'",
        ast.Tuple: "a list of values cannot be used here",
        ast.List: "a list of values cannot be used here",
        ast.Lambda: "'lambda' cannot be used here",
        ast.Starred: "'*' before an argument cannot be used here",
        ast.NamedExpr: "':=' cannot be used here",
        ast.JoinedStr: "text cannot be used here",
    }
)
_SYMBOLS: Mapping[type[ast.AST], str] = MappingProxyType(
    {
        ast.FloorDiv: "//",
        ast.MatMult: "@",
        ast.BitXor: "^",
        ast.BitAnd: "&",
        ast.BitOr: "|",
        ast.LShift: "<<",
        ast.RShift: ">>",
        ast.Invert: "~",
    }
)


class _Parser:
    """Turns a text into a tree of nodes, once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.info_keys: set[str] = set()
        if not isinstance(text, str):
            raise ExpressionError(f"expected an expression as text, got {show(text)}", 0, str(text)[:60])
        self._indent = len(text) - len(text.lstrip())
        try:
            tree = self._tree()
            self._line = text[self._indent :].encode("utf-8")
            self.root: Node = self._node(tree, 0)
        except Fault as fault:
            raise ExpressionError(fault.message, min(max(fault.at, 0), len(text)), text) from None

    def _tree(self) -> ast.expr:
        if len(self.text) > MAX_LENGTH:
            raise Fault(f"takes at most {MAX_LENGTH} characters, got {len(self.text)}", 0)
        if not self.text.strip():
            raise Fault("the expression is empty", 0)
        for sign, reason in (("#", "a comment"), ("\\", "a backslash"), ("\0", "a null character")):
            if sign in self.text:
                raise Fault(f"{reason} cannot be used here", self.text.index(sign))
        line = "".join(" " if character in "\n\r\t\f\v" else character for character in self.text.strip())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the parser, about literals that are refused below
                return ast.parse(line, mode="eval").body
        except SyntaxError as error:
            message = " ".join(str(error.msg).split())[:200] if error.offset else "it ends too early"
            offset = self._indent + (error.offset - 1 if error.offset else len(line))
            raise Fault(f"not an expression: {message}", offset) from None
        except (ValueError, RecursionError, MemoryError, OverflowError):
            raise Fault("not an expression that can be read", self._indent) from None

    def _at(self, node: ast.AST) -> int:
        """The parser counts bytes; we count characters, from the start of the text."""
        before = self._line[: getattr(node, "col_offset", 0)]
        return self._indent + len(before.decode("utf-8", "replace"))

    def _fault(self, message: str, node: ast.AST) -> Fault:
        return Fault(message, self._at(node))

    def _node(self, node: ast.expr, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._fault(f"nested more than {MAX_DEPTH} levels deep", node)
        match node:
            case ast.Constant():
                return self._number(node)
            case ast.Name():
                return self._name(node)
            case ast.Attribute(value=ast.Name(id="info"), attr=key):
                return self._info(key, node)
            case ast.Subscript():
                return self._subscript(node, depth)
            case ast.UnaryOp(op=op, operand=operand):
                return self._operation(op, [operand], node, depth)
            case ast.BinOp(left=left, op=op, right=right):
                return self._operation(op, [left, right], node, depth)
            case ast.BoolOp(op=op, values=values):
                return self._operation(op, values, node, depth)
            case ast.Compare():
                return self._comparison(node, depth)
            case ast.Call():
                return self._call(node, depth)
            case ast.Attribute():
                raise self._attribute(node)
        raise self._fault(_INSTEAD.get(type(node), "this cannot be used in an expression"), node)

    # -- leaves

    def _number(self, node: ast.Constant) -> Node:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            kind = "text" if isinstance(value, str | bytes) else show(value) if value is not ... else "'...'"
            raise self._fault(f"{kind} cannot be used here: expected a number", node)
        try:
            number = float(value)
        except OverflowError:
            number = np.inf
        return self._finite(np.float64(number), node)

    def _finite(self, value: Any, node: ast.AST) -> Number:
        if not np.isfinite(value):
            raise self._fault("is not a finite number", node)
        return Number(self._at(node), np.float64(value))

    def _name(self, node: ast.Name) -> Node:
        if node.id in _SOURCES:
            return Source(self._at(node), node.id)
        if node.id in _CONSTANTS:
            return Number(self._at(node), np.float64(_CONSTANTS[node.id]))
        if node.id == "info":
            raise self._fault('info needs a key: info["key"]', node)
        if node.id in FUNCTIONS:
            raise self._fault(f"{node.id} is a function: write {node.id}(...)", node)
        near = suggestion(node.id, (*NAMES, *FUNCTIONS))
        hint = near if "did you mean" in near else suggestion(node.id, NAMES)
        raise self._fault(f"unknown name {show(node.id)}{hint}", node)

    def _info(self, key: str, node: ast.AST) -> Node:
        if not 0 < len(key) <= _MAX_KEY:
            raise self._fault(f"a key of info has 1 to {_MAX_KEY} characters", node)
        self.info_keys.add(key)
        return Info(self._at(node), key)

    # -- operators

    def _operation(self, op: ast.AST, operands: list[ast.expr], node: ast.expr, depth: int) -> Node:
        if type(op) not in _OPERATORS:
            raise Fault(_INSTEAD[type(op)], self._operator_at(_SYMBOLS[type(op)], node))
        arguments = [self._node(operand, depth + 1) for operand in operands]
        if isinstance(op, ast.Div | ast.Mod) and isinstance(arguments[1], Number) and arguments[1].number == 0:
            raise self._fault("division by zero", operands[1])
        return self._each(_OPERATORS[type(op)], arguments, node)

    def _operator_at(self, symbol: str, node: ast.expr) -> int:
        """The tree has no place for an operator: it stands after its left operand."""
        if not isinstance(node, ast.BinOp):
            return self._at(node)
        left_end = self._indent + len(self._line[: node.left.end_col_offset].decode("utf-8", "replace"))
        return self.text.find(symbol, left_end)

    def _comparison(self, node: ast.Compare, depth: int) -> Node:
        """``a < b < c`` is ``a < b and b < c``."""
        terms = [self._node(term, depth + 1) for term in (node.left, *node.comparators)]
        links: list[Node] = []
        for op, left, right in zip(node.ops, terms, terms[1:], strict=False):
            if type(op) not in _OPERATORS:
                raise self._fault("'in' and 'is' cannot be used here: expected < <= > >= == or !=", node)
            links.append(self._each(_OPERATORS[type(op)], [left, right], node))
        return links[0] if len(links) == 1 else self._each(_and, links, node)

    def _each(self, function: Callable[..., Any], arguments: list[Node], node: ast.AST) -> Node:
        """The call, or its value where all arguments are constants."""
        if all(isinstance(argument, Number) for argument in arguments):
            with np.errstate(all="ignore"):
                return self._finite(function(*(each.number for each in arguments if isinstance(each, Number))), node)
        return Each(self._at(node), function, tuple(arguments))

    # -- entries

    def _subscript(self, node: ast.Subscript, depth: int) -> Node:
        if isinstance(node.value, ast.Name) and node.value.id == "info":
            if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
                return self._info(node.slice.value, node)
            raise self._fault('info takes a key in quotes: info["key"]', node.slice)
        if isinstance(node.slice, ast.Tuple):
            raise self._fault(
                "takes one index, of one step's entries: write e.g. next_obs[7] or next_obs[0:3]", node.slice
            )
        of = self._node(node.value, depth + 1)
        if isinstance(of, Number):
            raise self._fault("a number has no entries", node)
        if isinstance(node.slice, ast.Slice):
            parts = (node.slice.lower, node.slice.upper, node.slice.step)
            cut = slice(*(None if part is None else self._integer(part) for part in parts))
            if cut.step is not None and cut.step < 1:
                raise self._fault(f"a slice's step is at least 1, got {cut.step}", node.slice)
            return Entries(self._at(node), of, cut)
        return Entries(self._at(node), of, self._integer(node.slice))

    def _integer(self, node: ast.expr) -> int:
        sign, number = (
            (-1, node.operand) if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else (1, node)
        )
        if not isinstance(number, ast.Constant) or type(number.value) is not int:
            raise self._fault("an index is a whole number written out, such as 7 or -1", node)
        if number.value > 10**9:
            raise self._fault("an index is at most 1000000000", node)
        return sign * number.value

    # -- functions

    def _call(self, node: ast.Call, depth: int) -> Node:
        if isinstance(node.func, ast.Attribute):
            raise self._attribute(node.func)
        if not isinstance(node.func, ast.Name):
            raise self._fault("only a function's name can be called", node.func)
        name = node.func.id
        if name not in FUNCTIONS:
            what = f"{name} is not a function" if name in NAMES else f"unknown function {show(name)}"
            raise self._fault(f"{what}{suggestion(name, FUNCTIONS)}", node.func)
        if node.keywords:
            raise self._fault(f"{name} takes no named arguments", node.keywords[0].value)
        arguments = [self._node(argument, depth + 1) for argument in node.args]
        if name in _EACH:
            function, names = _EACH[name]
            if len(arguments) != len(names):
                wanted = f"{len(names)} argument{'s' * (len(names) > 1)}"
                raise self._fault(f"{name}({', '.join(names)}) takes {wanted}, got {len(arguments)}", node)
            return self._each(function, arguments, node)
        if name in _MIN_MAX and len(arguments) > 1:
            return self._each(_MIN_MAX[name], arguments, node)
        if len(arguments) != 1:
            raise self._fault(f"{name}(x) takes 1 argument, got {len(arguments)}", node)
        if isinstance(arguments[0], Number):
            return self._each(np.abs if name == "norm" else np.positive, arguments, node)
        return Over(self._at(node), _OVER[name], arguments[0])

    def _attribute(self, node: ast.Attribute) -> Fault:
        if node.attr in FUNCTIONS:
            return self._fault(f"write {node.attr}(...), without a dot", node)
        if node.attr in _CONSTANTS:
            return self._fault(f"write {node.attr}, without a dot", node)
        return self._fault(f"{show(node.attr)} after a dot cannot be used here: only info has keys", node)
