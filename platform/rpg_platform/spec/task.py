"""A task as a specification writes it: a registered name, or a mapping of environment, add-on rewards and metric.

Nothing is imported or made here; `environments.probe` does, and finds what only the environment can tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from rpg_platform.spec.errors import Problem, explain, fault, refuse
from rpg_platform.spec.sections import Line, Positive, Section, Text, matching
from rpg_platform.tasks.expressions import Expression, ExpressionError
from rpg_platform.tasks.registry import TASKS
from rpg_platform.tasks.task import Nothing, Part, StepFunction, Task, WeightedSum
from rpg_platform.tasks.user_code import NAME, UserFunction
from rpg_platform.wording import Path, show, suggestion

MAX_ADDONS = 50
DEFAULT_METRIC = "add-on / step"
_PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MAX_DEPTH = 8


# ---- field types --------------------------------------------------------------------------------
def _number_as_text(value: object) -> object:
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _expression(value: str) -> str:
    try:
        Expression(value)
    except ExpressionError as error:
        raise fault(error.message, offset=error.offset) from None
    return value


def _registered(value: str) -> str:
    if value not in TASKS:
        raise fault(f"unknown task {show(value)}" + suggestion(value, TASKS))
    return value


def _json(value: object, path: Path = ()) -> list[Problem]:
    """Finds each part of a value that JSON cannot hold."""
    if len(path) > _MAX_DEPTH:
        return [Problem(path, f"nested more than {_MAX_DEPTH} levels deep")]
    if isinstance(value, Mapping):
        wrong = [Problem(path, f"expected text as a key, got {show(key)}") for key in value if not isinstance(key, str)]
        return wrong + [p for key, each in value.items() if isinstance(key, str) for p in _json(each, (*path, key))]
    if isinstance(value, list):
        return [problem for index, each in enumerate(value) for problem in _json(each, (*path, index))]
    if isinstance(value, float) and value - value != 0.0:
        return [Problem(path, f"expected a finite number, got {show(value)}")]
    if value is None or isinstance(value, bool | int | float | str):
        return []
    return [Problem(path, f"expected a number, text, true, false, a list or a mapping, got {show(value)}")]


def _parse_kwargs(raw: object) -> dict[str, Any]:
    if raw is not None and not isinstance(raw, Mapping):
        raise fault(f"expected a mapping (argument: value), got {show(raw)}")
    problems = _json(raw)
    if problems:
        refuse(problems)
    return dict(raw or {})


def _parse_wrapper(raw: object) -> tuple[str, dict[str, Any]]:
    """``module:Class``, or ``{module:Class: {argument: value}}``; a pair is what the latter becomes."""
    if not isinstance(raw, str | tuple) and not (isinstance(raw, Mapping) and len(raw) == 1):
        raise fault(f"expected module:Class or {{module:Class: {{...}}}}, got {show(raw)}")
    name, arguments = (
        (raw, None) if isinstance(raw, str) else raw if isinstance(raw, tuple) else next(iter(raw.items()))
    )
    path: Path = (str(name),) if isinstance(raw, Mapping) else ()
    if not isinstance(name, str) or not NAME.fullmatch(name):
        refuse([Problem(path, f"expected module:Class, got {show(name)}", at_key=bool(path))])
    try:
        return name, _KWARGS.validate_python(arguments)
    except ValidationError as error:
        refuse([replace(problem, path=(*path, *problem.path)) for problem in explain(error, Section)])


def _dump_wrappers(wrappers: tuple[tuple[str, dict[str, Any]], ...]) -> list[object]:
    return [{name: arguments} if arguments else name for name, arguments in wrappers]


def _parse_addon(raw: object) -> AddonSpec:
    """An expression alone stands for ``{expression: ...}``, and a fault in it is one of the add-on's own."""
    short = isinstance(raw, str | int | float)
    try:
        return AddonSpec.model_validate({"expression": raw} if short else raw)
    except ValidationError as error:
        refuse([replace(each, path=()) if short else each for each in explain(error, AddonSpec)])


def _addon_name(name: str) -> str:
    if not _PART_NAME.fullmatch(name):
        message = "an add-on's name takes up to 64 letters, digits, - and _, and starts with a letter or digit"
        raise fault(message, at_key=True)
    return name


def _dump_addons(addons: dict[str, AddonSpec]) -> dict[str, object]:
    return {name: addon.model_dump(mode="json", exclude_defaults=True) for name, addon in addons.items()}


ExpressionText: TypeAlias = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_expression)]
UserName: TypeAlias = Annotated[Line, matching(NAME.pattern, "expected module:name")]
EnvId: TypeAlias = Annotated[
    Line,
    matching(
        r"[\w./-]+|[^\W\d][\w.]*:[\w./-]+",
        "expected a gymnasium id such as HalfCheetah-v5, module:Class or module:function",
    ),
]
TaskName: TypeAlias = Annotated[Line, AfterValidator(_registered)]
Kwargs: TypeAlias = Annotated[dict[str, Any], PlainValidator(_parse_kwargs)]
Wrappers: TypeAlias = Annotated[
    tuple[Annotated[tuple[str, dict[str, Any]], PlainValidator(_parse_wrapper)], ...],
    Field(strict=False),
    PlainSerializer(_dump_wrappers),
]
_KWARGS: TypeAdapter[dict[str, Any]] = TypeAdapter(Kwargs)


# ---- the models -----------------------------------------------------------------------------------
class StepFunctionSpec(Section):
    """A function of each transition, given in one of three ways."""

    expression: ExpressionText | None = Field(default=None, description="Over obs, action, next_obs and info.")
    function: UserName | None = Field(
        default=None, description="Your own module:function of (obs, actions, next_obs, infos), all steps at once."
    )
    task: TaskName | None = Field(default=None, description="A registered task, to take its function.")
    info_keys: tuple[Line, ...] | None = Field(
        default=None, strict=False, description="Infos that your function reads; null: its attribute info_keys."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in ("expression", "function", "task") if getattr(self, name) is not None]
        if len(given) != 1:
            raise fault(f"give one of expression, function and task, got {' and '.join(given) or 'none'}")
        if self.info_keys is not None and self.function is None:
            raise fault(f"info_keys is for a function; {given[0]} needs none")
        return self

    def step_function(self, folder: str | None, metric: bool = False) -> StepFunction:
        """The function; nothing of the user's is imported yet."""
        if self.expression is not None:
            return Expression(self.expression)
        if self.function is not None:
            return UserFunction(self.function, folder, self.info_keys)
        assert self.task is not None
        return TASKS[self.task].metric if metric else TASKS[self.task].addon


class AddonSpec(StepFunctionSpec):
    """One add-on reward."""

    weight: float = Field(default=1.0, description="Its factor in the task's add-on reward.")


class MetricSpec(StepFunctionSpec):
    """What a table shows besides returns: a figure per step, averaged over an episode."""

    name: Line | None = Field(default=None, description="Its heading, with its unit.")


class TaskSpec(Section):
    """A task: an environment of any kind and add-on rewards of any kind, or a registered task with more add-ons."""

    name: Line | None = Field(default=None, description="A registered task to extend, or what tables call this one.")
    description: Text = Field(default="", description="Free text.")
    env: EnvId | None = Field(default=None, description="A gymnasium id, module:Class or module:function.")
    kwargs: Kwargs = Field(default_factory=dict, description="Arguments that make the environment.")
    wrappers: Wrappers = Field(default=(), description="Wrappers, innermost first: module:Class, or with arguments.")
    max_episode_steps: Positive | None = Field(default=None, description="Time limit of an episode; null: its own.")
    addons: Annotated[
        dict[Annotated[str, AfterValidator(_addon_name)], Annotated[AddonSpec, PlainValidator(_parse_addon)]],
        PlainSerializer(_dump_addons),
    ] = Field(default_factory=dict, max_length=MAX_ADDONS, description="Add-on rewards by name.")
    metric: MetricSpec | None = Field(default=None, description="The readable metric; null: the add-on reward itself.")
    folder: Line | None = Field(
        default=None, description="Where own modules are besides the Python path; null: the file's folder."
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, data: object) -> object:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _one_environment(self) -> Self:
        if self.env is None and self.name is None:
            raise fault("needs env: a gymnasium id, module:Class or module:function; or the name of a registered task")
        if self.env is None and self.name not in TASKS:
            message = f"unknown task {show(self.name)}{suggestion(str(self.name), TASKS)} (a new one needs env)"
            refuse([Problem(("name",), message)])
        if self.env is not None and self.name in TASKS:
            message = f"{self.name!r} is a registered task: leave out env to extend it, or give another name"
            refuse([Problem(("name",), message)])
        named: dict[Path, str | None] = {("addons", key, "task"): addon.task for key, addon in self.addons.items()}
        if self.metric is not None:
            named["metric", "task"] = self.metric.task
        problems = []
        for path, task in named.items():
            if task is not None and not same_environment(TASKS[task].env_id, self.env_id):
                message = f"task {task!r} is in {TASKS[task].env_id}, and this one in {self.env_id}"
                problems.append(Problem(path, message))
        if problems:
            refuse(problems)
        return self

    @property
    def env_id(self) -> str:
        """The environment's, or that of the task it extends."""
        return TASKS[str(self.name)].env_id if self.env is None else self.env

    @property
    def label(self) -> str:
        """What tables and tags call it."""
        added = " + ".join(self.addons)
        if self.env is None:
            return f"{self.name} + {added}" if added else str(self.name)
        return self.name or (f"{self.env}: {added}" if added else self.env)

    @property
    def has_user_code(self) -> bool:
        """Whether making it imports modules that are the user's."""
        named = [name for name, _ in self.wrappers if not name.startswith("gymnasium.")]
        functions = [each.function for each in (*self.addons.values(), self.metric) if each is not None]
        return ":" in self.env_id or bool(named) or any(function is not None for function in functions)


def same_environment(one: str, other: str) -> bool:
    """Whether two environments may be the same: of gymnasium ids, versions aside; of own code nobody knows."""
    if ":" in one or ":" in other:
        return True
    return re.sub(r"-v\d+$", "", one) == re.sub(r"-v\d+$", "", other)


# ---- from a specification to a task ----------------------------------------------------------------
def _parse_task(raw: object) -> str | TaskSpec:
    if isinstance(raw, TaskSpec):
        return raw
    if raw is None:
        raise fault("missing: expected a task's name or a mapping")
    if not isinstance(raw, str | Mapping):
        raise fault(f"expected a task's name or a mapping, got {show(raw)}")
    try:
        return _LINE.validate_python(raw) if isinstance(raw, str) else TaskSpec.model_validate(dict(raw))
    except ValidationError as error:
        refuse(explain(error, TaskSpec))


def _dump_task(task: str | TaskSpec) -> object:
    return task if isinstance(task, str) else task.model_dump(mode="json", exclude_defaults=True)


_LINE: TypeAdapter[str] = TypeAdapter(Line)
AnyTask: TypeAlias = Annotated[str | TaskSpec, PlainValidator(_parse_task), PlainSerializer(_dump_task)]


class TaskFile(Section):
    """What is read of a file that describes a task."""

    task: AnyTask = Field(description="A registered task, or an environment with add-on rewards.")


def as_task_spec(raw: TaskSpec | Mapping[str, Any]) -> TaskSpec:
    """A mapping as a task's specification.

    Raises:
        ValueError: lists what is wrong with it.
    """
    if isinstance(raw, TaskSpec):
        return raw
    try:
        return TaskSpec.model_validate(dict(raw))
    except ValidationError as error:
        problems = [Problem(("task", *each.path), each.message) for each in explain(error, TaskSpec)]
        raise ValueError("\n".join(str(problem) for problem in problems)) from None


def task_label(task: object) -> str | None:
    """What tables and tags call a task: of a specification, or as that was dumped to JSON."""
    if task is None or isinstance(task, str):
        return task
    return as_task_spec(task).label  # type: ignore[arg-type]


def task_env_id(task: str | TaskSpec) -> str | None:
    """The environment of a task; None for a name that is not registered."""
    if isinstance(task, TaskSpec):
        return task.env_id
    return TASKS[task].env_id if task in TASKS else None


def build_task(spec: TaskSpec) -> Task:
    """The task that a specification describes; nothing of the user's is imported yet."""
    base = TASKS[str(spec.name)] if spec.env is None else None
    own = {name: Part(addon.step_function(spec.folder), addon.weight) for name, addon in spec.addons.items()}
    addon: StepFunction = base.addon if base else Nothing()
    if own:
        addon = WeightedSum({**(base.addons if base else {}), **own})
    metric_name, metric = (base.metric_name, base.metric) if base else (DEFAULT_METRIC, addon)
    if spec.metric is not None:
        metric = spec.metric.step_function(spec.folder, metric=True)
        given = spec.metric.expression or spec.metric.function or TASKS[str(spec.metric.task)].metric_name
        metric_name = spec.metric.name or given
    return Task(
        spec.label,
        spec.env_id,
        addon,
        metric_name,
        metric,
        spec.description or (base.description if base else _described(spec)),
        {**(base.env_kwargs if base else {}), **spec.kwargs},
        ((*base.wrappers, *spec.wrappers) if base else spec.wrappers),
        spec.max_episode_steps or (base.max_episode_steps if base else None),
        spec.folder,
    )


def _described(spec: TaskSpec) -> str:
    given = {
        name: (addon.weight, addon.expression or addon.function or addon.task) for name, addon in spec.addons.items()
    }
    return "; ".join(
        f"{name}: {what}" if w == 1.0 else f"{name}: {w:g} * ({what})" for name, (w, what) in given.items()
    )


def get_task(task: str | TaskSpec | Mapping[str, Any]) -> Task:
    """The task registered under a name, or the one that a specification's mapping describes.

    Raises:
        ValueError: there is none of that name (names the nearest), or the mapping is not a task's.
    """
    if not isinstance(task, str):
        return build_task(as_task_spec(task))
    if task not in TASKS:
        raise ValueError(f"task={task!r}: no such task{suggestion(task, TASKS)}")
    return TASKS[task]
