"""A TorchScript module's ``forward`` read as a graph: its code is walked through with symbols in the place of tensors.

What the code does with plain values (sizes, flags, lists) is computed here, by this small interpreter and nothing else;
what it does with tensors goes through ``torchscript_ops``. Steps, depth and sizes are bounded, so any code ends. Where
the data would decide what is computed, the code is refused: that is no graph.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rpg_algorithms.policies.graph_ops import GraphError
from rpg_platform.priors.files.inert import Instance
from rpg_platform.priors.formats.torchscript.arguments import is_tensor
from rpg_platform.priors.formats.torchscript.code import ClassCode, CodeError, Function, Library, Record
from rpg_platform.priors.formats.torchscript.ops import IN_PLACE, OPERATIONS
from rpg_platform.priors.formats.torchscript.shapes import VIEWS
from rpg_platform.priors.network.graph_builder import Batch, Constant, GraphBuilder, Symbol
from rpg_platform.priors.network.outputs import MEMORY, role_of

MAX_STEPS, MAX_DEPTH, MAX_LOOP = 200_000, 120, 10_000


@dataclass(frozen=True)
class _Named:
    """Something that the code refers to by a dotted name: ``torch.tanh``, ``__torch__.a.f``, ``CONSTANTS.c0``."""

    name: str


@dataclass(frozen=True)
class _Method:
    """A module's method, about to be called."""

    owner: Instance
    name: str


@dataclass(frozen=True)
class _Refused:
    """The result of an operation that no graph can hold: an error only if the outputs need it."""

    error: CodeError


class _Return(Exception):  # noqa: N818 - a signal, not an error
    """Leaves a function with its value."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


_UNSET = object()  # what ``uninitialized(T)`` gives: a value that is not used
_ROOTS = ("torch", "ops", "__torch__", "CONSTANTS")


class Evaluator:
    """Walks through the code of one archive.

    Args:
        builder: makes the graph.
        library: the archive's code.
        constants: ``CONSTANTS.c0``, ``c1``, …

    Attributes:
        other_inputs: arguments of ``forward`` other than the observation; what it returns must not depend on them.
    """

    def __init__(self, builder: GraphBuilder, library: Library, constants: Sequence[Any]) -> None:
        self.builder, self.library = builder, library
        self._constants = constants
        self._tensors: dict[int, Constant] = {}
        self._changed: dict[int, Any] = {}  # id of a tensor -> what an operation in place has made of it
        self._viewed: set[int] = set()
        self._held: set[str] = set()  # names of what modules hold
        self._kept: list[Any] = []  # so that no id is used twice
        self._steps = self._depth = 0
        self.other_inputs: list[str] = []

    def run(self, module: Instance) -> Any:
        """What ``module.forward`` returns at the observation, in symbols and constants.

        Raises:
            CodeError: names the file, the line and the operation that a graph cannot hold.
        """
        where, nowhere = self._class_of(module), ast.Pass()
        if "forward" not in where.methods:
            raise CodeError(f"{where.name} has no forward", "code")
        function = where.methods["forward"]
        names = [each.arg for each in function.definition.args.args][1:]
        required = names[: len(names) - len(function.definition.args.defaults)] or names[:1]
        if not required:
            raise CodeError("forward takes nothing, expected the observation", function.file, function.definition)
        observation = next((name for name in required if role_of(name) != "memory"), required[0])
        self.other_inputs = [name for name in required if name != observation]
        inputs: list[Any] = []
        for name in required:
            reason = f"; {MEMORY}" if role_of(name) == "memory" else ""
            message = f"its actions depend on its input {name!r}, not on the observation alone{reason}"
            other = _Refused(CodeError(message, function.file, function.definition))
            inputs.append(self.builder.obs if name == observation else other)
        return self._resolved(self._call(_Method(module, "forward"), inputs, {}, nowhere, function.file))

    @staticmethod
    def needed(value: Any) -> Any:
        """The value. Raises CodeError where it comes from an operation that no graph can hold."""
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, _Refused):
                raise each.error
        return value

    # --- values

    def _resolved(self, value: Any) -> Any:
        """The value with what operations in place have made of it since."""
        while id(value) in self._changed:
            value = self._changed[id(value)]
        if isinstance(value, tuple):
            resolved = [self._resolved(each) for each in value]
            return Record.of(resolved, value.fields) if isinstance(value, Record) else tuple(resolved)
        if isinstance(value, dict):
            return {key: self._resolved(each) for key, each in value.items()}
        return value

    def _stored(self, value: Any, hint: str, trainable: bool, file: str, node: ast.AST) -> Any:
        """A value out of the archive's pickles as the code sees it."""
        if isinstance(value, torch.Tensor):
            if id(value) not in self._tensors:
                self._tensors[id(value)] = Constant(value, hint, trainable)
                self._kept.append(value)
            return self._tensors[id(value)]
        if isinstance(value, list | tuple) and len(value) <= MAX_LOOP:
            items = [self._stored(each, f"{hint}_{i}", trainable, file, node) for i, each in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {key: self._stored(each, f"{hint}_{key}", trainable, file, node) for key, each in value.items()}
        if value is None or isinstance(value, bool | int | float | str | Instance):
            return value
        raise CodeError(f"{hint}: a value of type {type(value).__name__}", file, node)

    def _class_of(self, module: Instance) -> ClassCode:
        found = self.library.find(module.qualified_name)
        if not isinstance(found, ClassCode):
            raise CodeError(f"the archive has no code of {module.qualified_name[:200]!r}", "code")
        return found

    def _attribute(self, owner: Any, name: str, file: str, node: ast.AST) -> Any:
        if isinstance(owner, _Named):
            if owner.name == "CONSTANTS":
                index = int(name[1:]) if name[:1] == "c" and name[1:].isdecimal() and len(name) < 8 else -1
                if not 0 <= index < len(self._constants):
                    raise CodeError(f"the archive has no constant {name[:50]!r}", file, node)
                return self._stored(self._constants[index], name, False, file, node)
            return _Named(f"{owner.name}.{name}")
        if isinstance(owner, Record) and name in owner.fields:
            return owner[owner.fields.index(name)]
        if isinstance(owner, _Refused):
            return owner
        if not isinstance(owner, Instance):
            raise CodeError(f"attribute {name!r} of {type(owner).__name__}", file, node)
        where, values = self._class_of(owner), owner.attributes
        if name in values:
            self._held.add(name)
            return self._stored(values[name], name, name in where.parameters, file, node)
        if name in where.methods:
            return _Method(owner, name)
        if name in where.constants:
            return self._literal(where.constants[name], file)
        raise CodeError(f"{where.name} has no attribute {name!r}", file, node)

    def _literal(self, node: ast.expr, file: str) -> Any:
        return self._value(node, {}, file)

    # --- calls

    def _enter(self, file: str, node: ast.AST) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CodeError(f"nested more than {MAX_DEPTH} levels deep", file, node)

    def _call(self, target: Any, arguments: list[Any], named: dict[str, Any], node: ast.AST, file: str) -> Any:
        if isinstance(target, _Method):
            method = self._class_of(target.owner).methods.get(target.name)
            if method is None:
                raise CodeError(f"{target.owner.qualified_name[:200]} has no method {target.name!r}", file, node)
            return self._run(method, [target.owner, *arguments], named, node, file)
        if not isinstance(target, _Named):
            raise CodeError(f"calls {type(target).__name__}", file, node)
        root, _, name = target.name.partition(".")
        if root == "__torch__":
            found = self.library.find(target.name)
            if isinstance(found, Function):
                return self._run(found, arguments, named, node, file)
            if isinstance(found, ClassCode) and found.is_tuple:
                values = (*arguments, *(named[field] for field in found.fields[len(arguments) :] if field in named))
                return Record.of(values, found.fields)
            raise CodeError(f"{target.name[:200]} is no function of the archive", file, node)
        return self._operation(f"torch.{name}" if root == "torch" else target.name, name, arguments, named, node, file)

    def _operation(
        self, shown: str, name: str, arguments: list[Any], named: dict[str, Any], node: ast.AST, file: str
    ) -> Any:
        in_place = name.endswith("_") and name[:-1] in IN_PLACE
        operation = OPERATIONS.get(name[:-1] if in_place else name)
        if name.endswith("_") and arguments:
            self._check_own(arguments[0], shown, node, file)
        try:
            for each in (*arguments, *named.values()):
                self.needed(each)
            if operation is None:
                raise CodeError(f"{shown[:100]} is not an operation that a graph can hold", file, node)
            arguments = [self._argument(each) for each in arguments]
            named = {key: self._argument(each) for key, each in named.items()}
            result = self._carried_out(operation, shown, arguments, named, node, file)
        except CodeError as error:
            if name.endswith("_") or name in ("prim.RaiseException", "append"):  # it would change something, or stop
                raise
            return _Refused(error)
        if in_place:
            try:
                self._change(arguments[0], result)
            except GraphError as error:
                raise CodeError(f"{shown[:100]}: {error}", file, node) from error
        for each in result if isinstance(result, list) else [result]:
            if isinstance(each, Symbol) and each.op in VIEWS:
                self._viewed.update(id(source) for source in each.inputs if isinstance(source, Symbol))
        if isinstance(result, tuple):  # some of them may be what no graph can hold
            message = f"{shown[:100]}: "
            return tuple(
                _Refused(CodeError(f"{message}{each}", file, node)) if isinstance(each, GraphError) else each
                for each in result
            )
        return result

    def _check_own(self, changed: Any, shown: str, node: ast.AST, file: str) -> None:
        """Refuses an operation in place on a tensor that the module holds: it would remember."""
        changed = self._resolved(changed)
        if not isinstance(changed, Constant) or changed.hint not in self._held:
            return
        if changed.hint == "num_batches_tracked":
            message = f"{shown}: batch normalisation in training mode mixes the rows of the batch: call .eval() first"
            raise CodeError(message, file, node)
        raise CodeError(f"{shown}: changes its own {changed.hint[:100]!r}: {MEMORY}", file, node)

    def _carried_out(
        self, operation: Any, shown: str, arguments: list[Any], named: dict[str, Any], node: ast.AST, file: str
    ) -> Any:
        try:
            return operation(self.builder, *arguments, **named)
        except GraphError as error:
            raise CodeError(f"{shown[:100]}: {error}", file, node) from error
        except TypeError as error:
            raise CodeError(f"{shown[:100]}: arguments that it is not read with", file, node) from error

    def _argument(self, value: Any) -> Any:
        value = self._resolved(value)
        if isinstance(value, list) and any(id(each) in self._changed for each in value):
            return [self._resolved(each) for each in value]
        return value

    def _change(self, old: Any, new: Any) -> None:
        """Notes that ``old`` now holds ``new``. Refused where other tensors share its memory: they would change too."""
        if not isinstance(old, Symbol) or not isinstance(new, Symbol) or old.shape != new.shape:
            raise GraphError("an operation in place on a constant, or one that changes a shape")
        if old.op in VIEWS or id(old) in self._viewed:
            raise GraphError("an operation in place on a view of another tensor")
        if old is not new:
            self._changed[id(old)] = new
            self._kept += [old, new]

    def _run(self, function: Function, arguments: list[Any], named: dict[str, Any], node: ast.AST, file: str) -> Any:
        spec, inner = function.definition.args, function.file
        names = [each.arg for each in spec.args]
        if spec.vararg or spec.kwarg or spec.kwonlyargs or spec.posonlyargs or len(arguments) > len(names):
            raise CodeError(f"{function.definition.name}: arguments that do not fit", file, node)
        local = dict(zip(names, arguments, strict=False))
        for name, value in named.items():
            if name not in names or name in local:
                raise CodeError(f"{function.definition.name} has no argument {name[:50]!r}", file, node)
            local[name] = value
        for name, default in zip(names[len(names) - len(spec.defaults) :], spec.defaults, strict=True):
            if name not in local:
                local[name] = self._value(default, {}, inner)
        if missing := [name for name in names if name not in local]:
            raise CodeError(f"{function.definition.name} is called without {missing[:5]}", file, node)
        self._enter(file, node)
        try:
            self._block(function.definition.body, local, inner)
        except _Return as signal:
            return signal.value
        finally:
            self._depth -= 1
        return None

    # --- statements

    def _step(self, file: str, node: ast.AST) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise CodeError(f"more than {MAX_STEPS} steps", file, node)

    def _block(self, body: Sequence[ast.stmt], local: dict[str, Any], file: str) -> None:
        for statement in body:
            self._step(file, statement)
            match statement:
                case ast.Return(value=value):
                    raise _Return(None if value is None else self._value(value, local, file))
                case ast.Assign(targets=[target], value=value):
                    self._assign(target, self._value(value, local, file), local, file)
                case ast.AnnAssign(target=target, value=value) if value is not None:
                    self._assign(target, self._value(value, local, file), local, file)
                case ast.Expr(value=value):
                    self._value(value, local, file)
                case ast.Pass():
                    pass
                case ast.If(test=test, body=then, orelse=otherwise):
                    self._enter(file, statement)
                    self._block(then if self._decision(test, local, file) else otherwise, local, file)
                    self._depth -= 1
                case ast.For(target=target, iter=ast.Call(func=ast.Name(id="range"), args=[count]), orelse=[]):
                    self._loop(target, self._value(count, local, file), statement, local, file)
                case _:
                    raise CodeError(f"{type(statement).__name__}: not what a graph can hold", file, statement)

    def _loop(self, target: ast.expr, count: Any, statement: ast.For, local: dict[str, Any], file: str) -> None:
        count = self.needed(count)
        if type(count) is not int or count > MAX_LOOP:
            raise CodeError(f"a loop whose length is {_described(count)}", file, statement)
        self._enter(file, statement)
        for index in range(count):
            self._assign(target, index, local, file)
            self._block(statement.body, local, file)
        self._depth -= 1

    def _decision(self, test: ast.expr, local: Mapping[str, Any], file: str) -> bool:
        value = self.needed(self._resolved(self._value(test, local, file)))
        if isinstance(value, Constant) and value.value.numel() == 1:
            return bool(value.value.item())
        if is_tensor(value) or isinstance(value, Batch):
            raise CodeError(f"a decision by {_described(value)}: not what a graph can hold", file, test)
        return bool(value)

    def _assign(self, target: ast.expr, value: Any, local: dict[str, Any], file: str) -> None:
        if isinstance(target, ast.Name):
            local[target.id] = value
            return
        if isinstance(target, ast.Tuple | ast.List) and isinstance(value, _Refused):
            value = [value] * len(target.elts)
        if isinstance(target, ast.Tuple | ast.List) and isinstance(value, list | tuple):
            if len(target.elts) == len(value):
                for each, part in zip(target.elts, value, strict=True):
                    self._assign(each, part, local, file)
                return
            raise CodeError(f"{len(value)} values for {len(target.elts)} names", file, target)
        if isinstance(target, ast.Attribute):
            raise CodeError(f"changes its own {target.attr[:100]!r}: {MEMORY}", file, target)
        raise CodeError(f"assigns to {type(target).__name__}: not what a graph can hold", file, target)

    # --- expressions

    def _value(self, node: ast.expr, local: Mapping[str, Any], file: str) -> Any:
        self._step(file, node)
        self._enter(file, node)
        try:
            handler = _EXPRESSIONS.get(type(node))
            if handler is None:
                raise CodeError(f"{type(node).__name__}: not what a graph can hold", file, node)
            return handler(self, node, local, file)
        finally:
            self._depth -= 1

    def _name(self, node: ast.Name, local: Mapping[str, Any], file: str) -> Any:
        if node.id in local:
            return local[node.id]
        if node.id in _ROOTS or node.id in _BUILTINS:
            return _Named(node.id)
        if node.id in ("inf", "nan"):
            return float(node.id)
        raise CodeError(f"the name {node.id[:100]!r} is not defined", file, node)

    def _getattr(self, node: ast.Attribute, local: Mapping[str, Any], file: str) -> Any:
        return self._attribute(self._value(node.value, local, file), node.attr, file, node)

    def _invocation(self, node: ast.Call, local: Mapping[str, Any], file: str) -> Any:
        if any(isinstance(each, ast.Starred) for each in node.args) or any(each.arg is None for each in node.keywords):
            raise CodeError("arguments that are unpacked", file, node)
        target = self._value(node.func, local, file)
        if isinstance(target, _Named) and target.name in ("annotate", "unchecked_cast", "uninitialized"):
            if target.name == "uninitialized":
                return _UNSET
            if len(node.args) != 2:
                raise CodeError(f"{target.name} of {len(node.args)} arguments", file, node)
            return self._value(node.args[1], local, file)  # the first is a type
        arguments = [self._value(each, local, file) for each in node.args]
        named = {str(each.arg): self._value(each.value, local, file) for each in node.keywords}
        if isinstance(target, _Named) and target.name in _BUILTINS:
            return self._builtin(target.name, arguments, file, node)
        return self._call(target, arguments, named, node, file)

    def _builtin(self, name: str, arguments: list[Any], file: str, node: ast.AST) -> Any:
        if name == "getattr" and len(arguments) == 2 and isinstance(arguments[1], str):
            return self._attribute(arguments[0], arguments[1], file, node)
        if name == "print":
            return None
        value = self._resolved(arguments[0]) if len(arguments) == 1 else None
        if isinstance(value, _Refused):
            return value
        if isinstance(value, Batch) and name == "int":
            return value
        if isinstance(value, Constant) and value.value.numel() == 1:
            value = value.value.item()
        if not isinstance(value, bool | int | float) or (name == "int" and not math.isfinite(value)):
            return _Refused(CodeError(f"{name}() of {_described(value)}: not what a graph can hold", file, node))
        return {"int": int, "float": float, "bool": bool}[name](value)

    def _subscript(self, node: ast.Subscript, local: Mapping[str, Any], file: str) -> Any:
        owner = self._value(node.value, local, file)
        key = self._value(node.slice, local, file)
        if isinstance(owner, _Refused):
            return owner
        if isinstance(owner, dict) and isinstance(key, str) and key in owner:
            return owner[key]
        if isinstance(owner, list | tuple) and type(key) is int and -len(owner) <= key < len(owner):
            return owner[key]
        raise CodeError(f"entry {str(key)[:50]!r} of {_described(owner)}", file, node)

    def _negative(self, node: ast.UnaryOp, local: Mapping[str, Any], file: str) -> Any:
        value = self._value(node.operand, local, file)
        if isinstance(value, _Refused):
            return value
        if isinstance(node.op, ast.USub) and isinstance(value, int | float):
            return -value
        if isinstance(node.op, ast.Not) and isinstance(value, bool):
            return not value
        raise CodeError(f"{type(node.op).__name__} of {_described(value)}", file, node)

    def _choice(self, node: ast.IfExp, local: Mapping[str, Any], file: str) -> Any:
        return self._value(node.body if self._decision(node.test, local, file) else node.orelse, local, file)

    def _dictionary(self, node: ast.Dict, local: Mapping[str, Any], file: str) -> Any:
        result: dict[str, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            name = None if key is None else self._value(key, local, file)
            if not isinstance(name, str):
                raise CodeError("a dictionary whose keys are no names", file, node)
            result[name] = self._value(value, local, file)
        return result

    def _constant(self, node: ast.Constant, local: Mapping[str, Any], file: str) -> Any:
        if node.value is None or isinstance(node.value, bool | int | float | str):
            return node.value
        raise CodeError(f"a {type(node.value).__name__}", file, node)

    def _sequence(self, node: ast.List | ast.Tuple, local: Mapping[str, Any], file: str) -> Any:
        items = [self._value(each, local, file) for each in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)


def _described(value: Any) -> str:
    if isinstance(value, Symbol):
        return "the data"
    if isinstance(value, Batch):
        return "the size of the batch"
    return f"a {type(value).__name__}" if is_tensor(value) or not isinstance(value, int | float) else str(value)[:50]


_BUILTINS = ("getattr", "annotate", "unchecked_cast", "uninitialized", "int", "float", "bool", "print")
_EXPRESSIONS: Mapping[type[ast.expr], Callable[..., Any]] = {
    ast.Constant: Evaluator._constant,
    ast.Name: Evaluator._name,
    ast.Attribute: Evaluator._getattr,
    ast.Call: Evaluator._invocation,
    ast.Tuple: Evaluator._sequence,
    ast.List: Evaluator._sequence,
    ast.Dict: Evaluator._dictionary,
    ast.Subscript: Evaluator._subscript,
    ast.UnaryOp: Evaluator._negative,
    ast.IfExp: Evaluator._choice,
}
