"""``rpg clone``: a prior from demonstrations."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rpg_platform.cli import output
from rpg_platform.cli.common import AsJson, refusals, stdout_console

if TYPE_CHECKING:
    from rpg_algorithms.policies.bundle import PriorCard
    from rpg_platform.priors.clone.clone import Clone, Epoch

# As in rpg_algorithms.policies.network and .distributions, which are imported when the command runs: they take torch.
ActivationName = Literal["relu", "tanh", "elu", "silu"]
DistributionName = Literal["gaussian", "squashed_gaussian", "categorical"]
SILENCE_S = 5.0


def add_to(app: typer.Typer) -> None:
    """Adds the command to ``rpg``."""
    app.command()(clone)


def clone(
    demonstrations: Annotated[
        str, typer.Argument(help="An .npz or HDF5 (D4RL) file, a Minari data set's folder, or the id of a local one.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the bundle to.")],
    env: Annotated[str | None, typer.Option(help="gymnasium id of the environment that was demonstrated.")] = None,
    task: Annotated[str | None, typer.Option(help="Instead of --env: the task whose environment it is.")] = None,
    name: Annotated[str | None, typer.Option(help="Name on the card; default: that of OUT.")] = None,
    distribution: Annotated[
        DistributionName | None, typer.Option(help="Action distribution; default: gaussian or categorical.")
    ] = None,
    hidden: Annotated[str, typer.Option(help="Widths of the hidden layers.")] = "256,256",
    activation: Annotated[ActivationName, typer.Option(help="Activation after each of them.")] = "relu",
    state_dependent_std: Annotated[
        bool, typer.Option("--state-dependent-std", help="The network gives the standard deviation too.")
    ] = False,
    std_floor: Annotated[
        float, typer.Option(help="Least standard deviation: share of half the action's range, or before tanh.")
    ] = 0.05,
    epochs: Annotated[int, typer.Option(help="Most passes over the transitions.")] = 200,
    patience: Annotated[int, typer.Option(help="Stop after so many epochs without a better held-out NLL.")] = 15,
    holdout: Annotated[float, typer.Option(help="Share of the transitions held out, in whole episodes.")] = 0.1,
    batch_size: Annotated[int, typer.Option(help="Transitions per gradient step.")] = 256,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the split, the initial weights and the order.")] = 0,
    episodes: Annotated[
        int, typer.Option(min=0, help="Play so many episodes with the clone and put its returns on the card.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Fits a stochastic prior to demonstrations by maximum likelihood, with early stopping on held-out episodes."""
    with refusals():
        widths = _widths(hidden)
        if env is not None and task is not None:
            raise ValueError(f"--env {env} and --task {task}: give one of them; a task has its own environment")
        from rpg_platform.priors.clone.clone import CloneSettings, clone_prior
        from rpg_platform.priors.environment import bare_task
        from rpg_platform.spec.yaml_file import find_task

        settings = CloneSettings(
            distribution=distribution,
            hidden=widths,
            activation=activation,
            state_dependent_std=state_dependent_std,
            std_floor=std_floor,
            epochs=epochs,
            patience=patience,
            holdout=holdout,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
        )
        chosen = find_task(task) if task is not None else None if env is None else bare_task(env)
        with _progress(settings.epochs) as report:
            fitted, card = clone_prior(demonstrations, out, chosen, settings, name, episodes, report)
    _show(fitted, card, out, as_json)


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise ValueError(f"--hidden {text!r}: expected widths such as 256,256") from None
    if len(widths) > 16 or any(not 1 <= width <= 8192 for width in widths):
        raise ValueError(f"--hidden {text!r}: expected at most 16 widths of 1 to 8192")
    return widths


@contextmanager
def _progress(epochs: int) -> Iterator[Any]:
    """A function to call after each epoch: a bar on a terminal, otherwise a line now and then; on standard error."""
    console = Console(stderr=True)
    best = math.inf

    def line(epoch: Epoch) -> str:
        nonlocal best
        best = min(best, epoch.heldout_nll)
        return (
            f"epoch {epoch.number:>3}  held-out {epoch.heldout_nll:.3f}, best {best:.3f} nats/action  "
            f"{epoch.transitions_per_s:,.0f} transitions/s"
        )

    if not console.is_terminal:
        last = -math.inf

        def plain(epoch: Epoch) -> None:
            nonlocal last
            text, now = line(epoch), time.monotonic()
            if epoch.number % 10 == 0 or now - last > SILENCE_S:
                console.print(text, highlight=False, soft_wrap=True)
                last = now

        yield plain
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        bar = progress.add_task("fitting", total=epochs)
        yield lambda epoch: progress.update(bar, completed=epoch.number, description=line(epoch))


def _show(fitted: Clone, card: PriorCard, out: Path, as_json: bool) -> None:
    if as_json:
        summary = {"path": str(out), "stopped_early": fitted.stopped_early, "card": card.model_dump()}
        output.data(json.dumps(summary, indent=2))
        return
    console, source, held = stdout_console(), card.made_by["demonstrations"], card.made_by["held_out"]
    table = Table(show_header=False, box=None, pad_edge=False)
    demonstrated = "" if source["mean_return"] is None else f", mean return {source['mean_return']:,.1f}"
    counted = "" if source["episodes"] is None else f" in {source['episodes']:,} episodes"
    reason = "stopped early" if fitted.stopped_early else "all there were to take"
    table.add_row(
        "demonstrations", f"{source['data_set']}: {source['transitions']:,} transitions{counted}{demonstrated}"
    )
    table.add_row("held out", f"{held['transitions']:,} transitions, by {held['split_by']}")
    table.add_row("held-out NLL", f"{fitted.heldout_nll:.4f} nats per action")
    table.add_row("epochs", f"{len(fitted.epochs)} ({reason}), weights of epoch {fitted.best.number}")
    for key, value in card.returns.items():
        kind, mode = key.split("/")
        table.add_row(
            f"{kind.replace('addon', 'add-on')} return",
            f"{value.mean:,.1f} ± {value.std:,.1f} over {value.episodes} episodes, {mode}",
        )
    table.add_row("prior", f"{out} ({card.content_hash[:12]})")
    console.print(table)
    console.print(f"Check it: rpg priors check {out}", soft_wrap=True, highlight=False)
