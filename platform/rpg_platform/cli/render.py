"""``rpg render``: what a policy does, as a video."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rpg_platform.cli import output
from rpg_platform.cli.common import AsJson, Weights, Where, named_sweep, policy_folder, refusals, stdout_console
from rpg_platform.cli.export import Source

if TYPE_CHECKING:
    from rpg_algorithms.policies.bundle import PriorCard
    from rpg_platform.review.drawing import Recording
    from rpg_platform.spec.task import TaskSpec


def render(
    policy: Source,
    out: Annotated[Path, typer.Option(help="The video to write, a file that ends in .mp4.")],
    beside: Annotated[
        str | None, typer.Option(help="Another policy, such as the prior, on the right of it.", metavar="POLICY")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="A task's name or a YAML file; default: the sweep's, or what the card says if it is registered."
        ),
    ] = None,
    env: Annotated[str | None, typer.Option(help="The environment instead of a task.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the episode.")] = 10_000,
    steps: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="At most; default: 8 s of the environment's time.")
    ] = None,
    every: Annotated[
        int | None, typer.Option(min=1, help="Draw each how manieth step; default: at most 30 pictures a second.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a video that is there.")] = False,
    weights: Weights = None,
    beside_weights: Annotated[str | None, typer.Option(help="As --weights, for the policy beside it.")] = None,
    storage: Where = None,
    as_json: AsJson = False,
) -> None:
    """Plays an episode of a policy's likeliest actions and writes it as a video, alone or beside another policy."""
    with refusals(), ExitStack() as held:
        _check_out(out, overwrite)
        from rpg_algorithms.policies.bundle import load_card
        from rpg_platform.review.drawing import Pane, Shot, draw

        given = [policy, *([] if beside is None else [beside])]
        bundles = [held.enter_context(policy_folder(each, storage, weights=weights)) for each in given[:1]]
        bundles += [held.enter_context(policy_folder(each, storage, weights=beside_weights)) for each in given[1:]]
        cards = [load_card(each) for each in bundles]
        names = [_name(each, card) for each, card in zip(given, cards, strict=True)]
        panes = tuple(Pane(str(bundle), name) for bundle, name in zip(bundles, names, strict=True))
        where = _sweeps_task(policy, storage) if task is env is None else None
        where = where or _task(task, env, cards[0])
        with tempfile.TemporaryDirectory() as scratch:
            shots = [Shot(str(Path(scratch, "video.mp4")), panes)]
            made, problem = draw(where, shots, seed=seed, steps=steps, every=every)
            if problem is not None:
                raise ValueError(f"No video: {problem}")
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(made[0].out, out)
    recording = replace(made[0], out=str(out))
    if as_json:
        output.data(json.dumps(asdict(recording), indent=2, allow_nan=False))
        return
    _say(recording, names)


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix != ".mp4":
        raise ValueError(f"--out {out}: expected the name of a file that ends in .mp4")
    if out.is_dir():
        raise ValueError(f"--out {out}: is a folder, expected a file")
    if out.exists() and not overwrite:
        raise ValueError(f"--out: {out} exists; nothing is overwritten without --overwrite")


def _name(given: str, card: PriorCard) -> str:
    """What a policy is called above its picture: a shipped prior's name, its trial, or the name on its card."""
    from rpg_platform.bundles import SHIPPED
    from rpg_platform.priors.imported import printable

    trial = card.made_by.get("trial")
    return given if given in SHIPPED else printable(trial if isinstance(trial, str) else card.name)


def _sweeps_task(policy: str, storage: str | None) -> str | TaskSpec | None:
    """The task of the sweep that a POLICY names; None if it names none."""
    sweep = named_sweep(policy, storage)
    return None if sweep is None else sweep.spec().task


def _task(task: str | None, env: str | None, card: PriorCard) -> str | TaskSpec:
    from rpg_platform.priors.environment import chosen_task
    from rpg_platform.spec.task import TaskSpec
    from rpg_platform.spec.yaml_file import find_task_spec
    from rpg_platform.tasks.registry import TASKS

    chosen = chosen_task(task, env, card)
    if task is not None:
        return find_task_spec(task)
    made_on: Any = card.made_by.get("task")
    if env is None and isinstance(made_on, str) and made_on in TASKS and TASKS[made_on].env_id == chosen.env_id:
        return made_on
    return TaskSpec.model_validate({"env": chosen.env_id, "kwargs": dict(chosen.env_kwargs)})


def _say(recording: Recording, names: list[str]) -> None:
    console, file = stdout_console(), Path(recording.out)
    size = (
        f"{recording.width}×{recording.height}, {recording.fps:g} pictures a second, {file.stat().st_size / 1e3:.0f} kB"
    )
    rows = [("Video", f"{file}  ({size})")]
    for name, trace, terminated in zip(names, recording.traces, recording.terminated, strict=True):
        known = [each for each in trace if each is not None]
        mean = f", {recording.metric} {sum(known) / len(known):.3g} on average" if known else ""
        rows.append((name, f"{len(trace)} steps{', then the episode ended' if terminated else ''}{mean}"))
    width = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        console.print(f"{name:<{width}}{text}", soft_wrap=True, highlight=False, markup=False)
