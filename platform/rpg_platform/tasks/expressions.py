"""Arithmetic expressions over transitions: add-on rewards and metrics written in a specification.

    expression   -10 * abs(next_obs[7])       -0.1 * sum(action ** 2)       where(info["x_position"] > 3, 1, 0)
    names        obs, action, next_obs, info["key"] or info.key, pi
    operators    + - * / ** %   < <= > >= == !=   and or not (of each element; a truth value is 1 or 0)
    entries      x[3], x[-1], x[0:3]: of the last axis, by constants
    functions    abs exp log log1p sqrt sin cos tan tanh sign; minimum maximum clip(x, low, high) where(if, then, else);
                 sum mean norm and, with one argument, min max: over the last axis

Python's own parser turns the text into a syntax tree, which is never compiled or run. Each node must be one of the few
above and becomes one numpy call; every other node is refused with its place.

Shapes: every value is held as ``[B, K]``, K being 1 for one number per step; a result must have K = 1.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np

from rpg_algorithms.addons import Array
from rpg_platform.wording import show, suggestion

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


@dataclass(frozen=True)
class Sizes:
    """The widths of what an expression reads; None where unknown.

    Attributes:
        observation: entries of a flattened observation.
        action: entries of an action; 1 for a Discrete one.
        discrete: the action is an index.
        info_keys: keys that ``info`` has.
    """

    observation: int | None = None
    action: int | None = None
    discrete: bool = False
    info_keys: Collection[str] | None = None


@dataclass(init=False, unsafe_hash=True)
class Expression:
    """A compiled expression, an add-on reward or metric like any other.

    Equal, hashed and pickled by its text.

    Args:
        text: the expression.

    Raises:
        ExpressionError: it is not of the grammar; says what and where.
    """

    text: str

    def __init__(self, text: str) -> None:
        self.text = text
        compiler = _Compiler(text, Sizes())
        self._value = compiler.value
        self.info_keys = tuple(sorted(compiler.info_keys))
        self._checked: tuple[int, int, bool] | None = None

    def check(self, sizes: Sizes) -> None:
        """Checks indices, info keys and the result's shape against an environment.

        Raises:
            ExpressionError: an index is out of range, a key is missing, or the result is not one number per step.
        """
        _Compiler(self.text, sizes)

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
        actions = actions[:, None] if discrete else actions
        with np.errstate(all="ignore"):
            value = self._value({"obs": obs, "action": actions, "next_obs": next_obs, "info": infos})
        return np.array(np.broadcast_to(value, (len(obs), 1))[:, 0], np.float64)

    def __reduce__(self) -> tuple[type[Expression], tuple[str]]:
        return Expression, (self.text,)


# ---- the grammar -----------------------------------------------------------------------------------
_Function: TypeAlias = Callable[..., Any]


def _truth(function: _Function) -> _Function:
    return lambda *values: np.asarray(function(*values), np.float64)


def _norm(x: Any, axis: int, keepdims: bool) -> Any:
    return np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims))


def _fold(function: _Function) -> _Function:
    def folded(first: Any, *others: Any) -> Any:
        for other in others:
            first = function(first, other)
        return first

    return folded


_OPERATORS: Mapping[type[ast.AST], _Function] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
    ast.Mod: np.mod,
    ast.USub: np.negative,
    ast.UAdd: np.positive,
    ast.Not: _truth(np.logical_not),
    ast.And: _fold(_truth(np.logical_and)),
    ast.Or: _fold(_truth(np.logical_or)),
    ast.Lt: _truth(np.less),
    ast.LtE: _truth(np.less_equal),
    ast.Gt: _truth(np.greater),
    ast.GtE: _truth(np.greater_equal),
    ast.Eq: _truth(np.equal),
    ast.NotEq: _truth(np.not_equal),
}
_ONE_ARGUMENT = ("abs", "exp", "log", "log1p", "sqrt", "sin", "cos", "tan", "tanh", "sign")
_EACH: Mapping[str, tuple[_Function, tuple[str, ...]]] = {
    **{name: (getattr(np, name), ("x",)) for name in _ONE_ARGUMENT},
    "minimum": (np.minimum, ("x", "y")),
    "maximum": (np.maximum, ("x", "y")),
    "clip": (lambda x, low, high: np.minimum(np.maximum(x, low), high), ("x", "low", "high")),
    "where": (_truth(lambda condition, x, y: np.where(condition != 0, x, y)), ("condition", "x", "y")),
}
_OVER: Mapping[str, _Function] = {"sum": np.sum, "mean": np.mean, "norm": _norm, "min": np.min, "max": np.max}
_MIN_MAX = {"min": _fold(np.minimum), "max": _fold(np.maximum)}
_SOURCES = ("obs", "action", "next_obs")
FUNCTIONS = (*_EACH, *_OVER)
NAMES = (*_SOURCES, "info", "pi")

# What Python knows and an expression must not hold -> how a message calls it, and what to write in its place.
_REFUSED: Mapping[type[ast.AST], tuple[str, str]] = {
    ast.IfExp: ("'if ... else'", ": write where(condition, then, else)"),
    ast.Tuple: ("a list of values", ""),
    ast.List: ("a list of values", ""),
    ast.Lambda: ("'lambda'", ""),
    ast.Starred: ("'*' before an argument", ""),
    ast.NamedExpr: ("':='", ""),
    ast.JoinedStr: ("text", ""),
    ast.FloorDiv: ("'//'", ": use / and %"),
    ast.MatMult: ("'@'", ": write sum(x * y)"),
    ast.BitXor: ("'^'", ": a power is written x ** y"),
    ast.BitAnd: ("'&'", ": write 'and'"),
    ast.BitOr: ("'|'", ": write 'or'"),
    ast.LShift: ("'<<'", ""),
    ast.RShift: ("'>>'", ""),
    ast.Invert: ("'~'", ": write 'not'"),
}


# ---- the compiler ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Term:
    """A part of an expression.

    Attributes:
        at: offset of its first character in the text.
        width: K, how many values it has per step; None where that depends on a size that is unknown.
        value: computes ``[B, K]``, or something that broadcasts to it, from obs, action, next_obs and info.
        number: its value where that is a constant.
    """

    at: int
    width: int | None
    value: Callable[[Mapping[str, Any]], Any]
    number: np.float64 | None = None


class _Compiler:
    """Checks a text against the grammar and an environment's sizes, and compiles it to numpy calls.

    Attributes:
        value: see ``_Term``.
        info_keys: the infos that it reads.

    Raises:
        ExpressionError: the text is not of the grammar, or does not fit the sizes.
    """

    def __init__(self, text: str, sizes: Sizes) -> None:
        if not isinstance(text, str):
            raise ExpressionError(f"expected an expression as text, got {show(text)}", 0, str(text)[:60])
        self.text, self.sizes = text, sizes
        self.info_keys: set[str] = set()
        self._indent = len(text) - len(text.lstrip())
        self._line = "".join(" " if character in "\n\r\t\f\v" else character for character in text.strip())
        tree = self._tree()
        self._bytes = self._line.encode("utf-8")
        whole = self._term(tree, 0)
        self.value = whole.value
        if whole.width not in (None, 1):
            shown = text.strip() if len(text) <= 60 else "..."
            message = f"gives {whole.width} values per step instead of one; did you mean sum({shown})?"
            raise self._fault(message, whole.at)

    def _tree(self) -> ast.expr:
        if len(self.text) > MAX_LENGTH:
            raise self._fault(f"takes at most {MAX_LENGTH} characters, got {len(self.text)}", 0)
        if not self._line:
            raise self._fault("the expression is empty", 0)
        for sign, reason in (("#", "a comment"), ("\\", "a backslash"), ("\0", "a null character")):
            if sign in self.text:
                raise self._fault(f"{reason} cannot be used here", self.text.index(sign))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the parser warns of literals that are refused below
                return ast.parse(self._line, mode="eval").body
        except SyntaxError as error:
            message = " ".join(str(error.msg).split())[:200] if error.offset else "it ends too early"
            offset = self._indent + (error.offset - 1 if error.offset else len(self._line))
            raise self._fault(f"not an expression: {message}", offset) from None
        except (ValueError, RecursionError, MemoryError, OverflowError):
            raise self._fault("not an expression that can be read", self._indent) from None

    def _fault(self, message: str, place: int | ast.AST) -> ExpressionError:
        at = place if isinstance(place, int) else self._at(getattr(place, "col_offset", 0))
        return ExpressionError(message, min(max(at, 0), len(self.text)), self.text)

    def _at(self, column: int) -> int:
        """The offset in the text, in characters, of a column of the tree, which the parser counts in bytes."""
        return self._indent + len(self._bytes[:column].decode("utf-8", "replace"))

    def _term(self, node: ast.expr, depth: int) -> _Term:
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
                return self._entries(node, depth)
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
        if type(node) not in _REFUSED:
            raise self._fault("this cannot be used in an expression", node)
        what, hint = _REFUSED[type(node)]
        raise self._fault(f"{what} cannot be used here{hint}", node)

    # -- leaves

    def _number(self, node: ast.Constant) -> _Term:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            kind = "text" if isinstance(value, str | bytes) else show(value) if value is not ... else "'...'"
            raise self._fault(f"{kind} cannot be used here: expected a number", node)
        try:
            return self._constant(float(value), node)
        except OverflowError:
            return self._constant(np.inf, node)

    def _constant(self, value: Any, node: ast.expr) -> _Term:
        if not np.isfinite(value):
            raise self._fault("is not a finite number", node)
        number = np.float64(value)
        return _Term(self._at(node.col_offset), 1, lambda _: number, number)

    def _name(self, node: ast.Name) -> _Term:
        name = node.id
        if name in _SOURCES:
            width = self.sizes.action if name == "action" else self.sizes.observation
            return _Term(self._at(node.col_offset), width, itemgetter(name))
        if name == "pi":
            return self._constant(np.pi, node)
        if name == "info":
            raise self._fault('info needs a key: info["key"]', node)
        if name in FUNCTIONS:
            raise self._fault(f"{name} is a function: write {name}(...)", node)
        near = suggestion(name, (*NAMES, *FUNCTIONS))
        hint = near if "did you mean" in near else suggestion(name, NAMES)
        raise self._fault(f"unknown name {show(name)}{hint}", node)

    def _info(self, key: str, node: ast.expr) -> _Term:
        if not 0 < len(key) <= _MAX_KEY:
            raise self._fault(f"a key of info has 1 to {_MAX_KEY} characters", node)
        keys = self.sizes.info_keys
        if keys is not None and key not in keys:
            hint = suggestion(key, sorted(keys)) or "; it gives none at all"
            raise self._fault(f"the environment's info has no {show(key)}{hint}", node)
        self.info_keys.add(key)
        return _Term(self._at(node.col_offset), 1, lambda batch: np.asarray(batch["info"][key], np.float64)[:, None])

    # -- operators

    def _operation(self, op: ast.AST, operands: Sequence[ast.expr], node: ast.expr, depth: int) -> _Term:
        if type(op) in _REFUSED:
            symbol, hint = _REFUSED[type(op)]
            # The tree has no place for an operator of two: it stands after its left operand.
            left_end = getattr(operands[0], "end_col_offset", 0) if len(operands) == 2 else node.col_offset
            at = self.text.find(symbol.strip("'"), self._at(left_end))
            raise self._fault(f"{symbol} cannot be used here{hint}", at)
        terms = [self._term(operand, depth + 1) for operand in operands]
        if isinstance(op, ast.Div | ast.Mod) and terms[1].number == 0:
            raise self._fault("division by zero", operands[1])
        return self._each(_OPERATORS[type(op)], terms, node)

    def _comparison(self, node: ast.Compare, depth: int) -> _Term:
        """``a < b < c`` is ``a < b and b < c``."""
        terms = [self._term(term, depth + 1) for term in (node.left, *node.comparators)]
        if any(type(op) not in _OPERATORS for op in node.ops):
            raise self._fault("'in' and 'is' cannot be used here: expected < <= > >= == or !=", node)
        pairs = zip(node.ops, terms, terms[1:], strict=False)
        links = [self._each(_OPERATORS[type(op)], pair, node) for op, *pair in pairs]
        return links[0] if len(links) == 1 else self._each(_OPERATORS[ast.And], links, node)

    def _each(self, function: _Function, terms: Sequence[_Term], node: ast.expr) -> _Term:
        """A function of each element; one entry goes with any number of entries. Of constants it is a constant."""
        numbers = [term.number for term in terms if term.number is not None]
        if len(numbers) == len(terms):
            with np.errstate(all="ignore"):
                return self._constant(function(*numbers), node)
        widths = [term.width for term in terms]
        several = [width for width in widths if width not in (None, 1)]
        if len(set(several)) > 1:
            listed = " and ".join(map(str, several))
            raise self._fault(f"combines {listed} values per step, which do not go together", node)
        width = several[0] if several else None if None in widths else 1
        values = [term.value for term in terms]
        return _Term(
            self._at(node.col_offset),
            width,
            lambda batch: function(*(np.asarray(value(batch), np.float64) for value in values)),
        )

    # -- entries

    def _entries(self, node: ast.Subscript, depth: int) -> _Term:
        of, index = node.value, node.slice
        name = of.id if isinstance(of, ast.Name) else None
        if name == "info":
            if isinstance(index, ast.Constant) and isinstance(index.value, str):
                return self._info(index.value, node)
            raise self._fault('info takes a key in quotes: info["key"]', index)
        if isinstance(index, ast.Tuple):
            raise self._fault("takes one index, of one step's entries: write e.g. next_obs[7] or next_obs[0:3]", index)
        term = self._term(of, depth + 1)
        if term.number is not None:
            raise self._fault("a number has no entries", node)
        if isinstance(index, ast.Slice):
            parts = (index.lower, index.upper, index.step)
            cut = slice(*(None if part is None else self._integer(part) for part in parts))
            if cut.step is not None and cut.step < 1:
                raise self._fault(f"a slice's step is at least 1, got {cut.step}", index)
            width = self._slice_width(cut, term.width, node)
        else:
            at = self._integer(index)
            if term.width is not None and not -term.width <= at < term.width:
                raise self._fault(f"index {at} is out of range: there are {term.width} entries", node)
            cut, width = slice(at, at + 1 or None), 1
        if self.sizes.discrete and name == "action":
            raise self._fault("a Discrete action is one index and has no entries: write e.g. action == 0", node)
        value = term.value
        return _Term(self._at(node.col_offset), width, lambda batch: np.asarray(value(batch)[:, cut], np.float64))

    def _slice_width(self, cut: slice, whole: int | None, node: ast.expr) -> int | None:
        bounds = [bound for bound in (cut.start, cut.stop) if bound is not None]
        if whole is not None:
            for bound in bounds:
                if not -whole <= bound <= whole:
                    raise self._fault(f"bound {bound} is out of range: there are {whole} entries", node)
            taken = len(range(*cut.indices(whole)))
        elif len(bounds) == 2 and (bounds[0] >= 0) == (bounds[1] >= 0):
            taken = len(range(bounds[0], bounds[1], cut.step or 1))
        else:
            return None
        if taken == 0:
            raise self._fault("takes no entry at all", node)
        return taken

    def _integer(self, node: ast.expr) -> int:
        minus = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        number = node.operand if isinstance(node, ast.UnaryOp) and minus else node
        if not isinstance(number, ast.Constant) or type(number.value) is not int:
            raise self._fault("an index is a whole number written out, such as 7 or -1", node)
        if number.value > 10**9:
            raise self._fault("an index is at most 1000000000", node)
        return -number.value if minus else number.value

    # -- functions

    def _call(self, node: ast.Call, depth: int) -> _Term:
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
        terms = [self._term(argument, depth + 1) for argument in node.args]
        if name in _MIN_MAX and len(terms) > 1:
            return self._each(_MIN_MAX[name], terms, node)
        function, names = _EACH.get(name, (None, ("x",)))
        if len(terms) != len(names):
            wanted = f"{len(names)} argument{'s' * (len(names) > 1)}"
            raise self._fault(f"{name}({', '.join(names)}) takes {wanted}, got {len(terms)}", node)
        if function is not None:
            return self._each(function, terms, node)
        [term] = terms
        if term.number is not None:
            return self._each(np.abs if name == "norm" else np.positive, terms, node)
        over, value = _OVER[name], term.value
        return _Term(
            self._at(node.col_offset),
            1,
            lambda batch: over(np.asarray(value(batch), np.float64), axis=-1, keepdims=True),
        )

    def _attribute(self, node: ast.Attribute) -> ExpressionError:
        if node.attr in FUNCTIONS:
            return self._fault(f"write {node.attr}(...), without a dot", node)
        if node.attr == "pi":
            return self._fault("write pi, without a dot", node)
        return self._fault(f"{show(node.attr)} after a dot cannot be used here: only info has keys", node)
