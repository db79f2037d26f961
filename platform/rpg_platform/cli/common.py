"""What the commands of ``rpg`` share: options, exit codes, consoles, and turning errors about input into messages.

``MEANINGS`` has the exit codes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rpg_platform.spec.logins import without_login

if TYPE_CHECKING:
    from rpg_platform.storage.sweep_folder import SweepFolder

FAILED, REFUSED, UNSENT, INTERRUPTED = 1, 2, 3, 130
MEANINGS: Mapping[int | None, str] = {
    0: "all went well",
    FAILED: "some trials have no result",
    REFUSED: "the input was refused, and nothing was started",
    UNSENT: "every trial has its result, but MLflow has not got all of it: the same command again sends the rest",
    INTERRUPTED: "Ctrl-C ended the following of a job, which goes on",
}
"""What the exit code of a command means; deploy/README.md has the same table."""

SpecFile = Annotated[
    Path, typer.Argument(help="A sweep specification, or a shipped one's name, such as quickstart.", metavar="FILE")
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster that this machine is a node of: auto or HOST:PORT; default: its own."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def sweep_names(incomplete: str) -> list[str]:
    """Completes the names of the sweeps in the default storage; a shell asks for them at each tab."""
    from rpg_platform.storage.location import DEFAULT_STORAGE

    return sorted(file.parent.name for file in Path(DEFAULT_STORAGE).expanduser().glob(f"{incomplete}*/sweep.json"))


SweepName = Annotated[str, typer.Argument(help="A sweep's name.", metavar="NAME", autocompletion=sweep_names)]
Where = Annotated[str | None, typer.Option(help="Where sweeps' results are; default: ~/rpg_results.")]
Storage = Annotated[str | None, typer.Option(help="Where results go (overrides the file's storage).")]
Weights = Annotated[
    str | None,
    typer.Option(help="For a policy that is told its weights: at which, e.g. omega_prime=0.3,alpha_hat=0.02."),
]
Name = Annotated[str | None, typer.Option(help="Name of this sweep (overrides the file's name).")]


@contextlib.contextmanager
def policy_folder(
    policy: str,
    storage: str | None = None,
    rule: str | None = None,
    *,
    weights: str | None = None,
    deploys: bool = False,
) -> Iterator[Path]:
    """The bundle that a POLICY means: a shipped prior, a folder, or a sweep's setting, ``NAME`` or ``NAME#RANK``.

    One in an object store is copied to this machine for as long as the context is open. One that is told its weights is
    folded at those that are given, or at the setting's.

    Args:
        policy: as typed.
        storage: where sweeps are; None: the default one.
        rule: what is best in a sweep instead of its objective.
        weights: ``NAME=VALUE,…`` for a policy that is told its weights.
        deploys: it is to be used: a setting that is trained on the hidden reward is refused.

    Raises:
        ValueError: there is no such policy, a rule is given for what is no sweep, or weights do not fit the policy.
    """
    given = parse_weights(weights)
    with _found_folder(policy, storage, rule, deploys, given) as (folder, at), tempfile.TemporaryDirectory() as place:
        from rpg_platform.evaluation.points import plain_bundle

        yield plain_bundle(folder, Path(place), given, at)


def parse_weights(text: str | None) -> dict[str, float]:
    """``NAME=VALUE,…`` as numbers by name.

    Raises:
        ValueError: it is something else.
    """
    found: dict[str, float] = {}
    for part in filter(None, (text or "").split(",")):
        name, _, value = (each.strip() for each in part.partition("="))
        try:
            found[name] = float(value)
        except ValueError as error:
            raise ValueError(f"--weights {text}: expected NAME=NUMBER,NAME=NUMBER, got {part.strip()!r}") from error
    return found


@contextlib.contextmanager
def _found_folder(
    policy: str, storage: str | None, rule: str | None, deploys: bool, told: Collection[str]
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The bundle's folder, and the weights of the setting that it was found by."""
    from rpg_platform.bundles import resolve_prior
    from rpg_platform.storage.location import storage_path

    sweep = named_sweep(policy, storage)
    if sweep is None and rule is None:
        yield resolve_prior(policy), {}
        return

    from rpg_platform.results.names import at_words
    from rpg_platform.review.choice import ChoiceError, choose  # MLflow, which takes seconds

    if sweep is None:
        where = storage_path(storage)
        raise ChoiceError(f"--rule chooses among a sweep's settings, and {policy!r} is no sweep in {where}")
    chosen = choose(policy, sweep.storage, rule, told)
    if deploys and not chosen.row.is_deployable:
        raise ChoiceError(
            f"{policy}: {chosen.row.setting} is trained on the basic reward, which whoever customises can't see: it "
            f"is an upper bound to compare with. Expected a setting without △, see rpg show {sweep.name}; "
            f"to use it all the same give its checkpoint: {chosen.checkpoint}"
        )
    setting = f"{chosen.row.method} at these weights" if told else f"{chosen.row.setting}{at_words(chosen.row)}"
    said = f"{policy}: {setting}, seed of the highest objective: {chosen.training}"
    Console(stderr=True).print(said, soft_wrap=True, highlight=False, markup=False)
    if sweep.is_local:
        yield resolve_prior(chosen.checkpoint), chosen.row.weights
        return
    with tempfile.TemporaryDirectory() as copy:
        yield sweep.fetch_bundle(Path(copy), chosen.checkpoint), chosen.row.weights


def named_sweep(policy: str, storage: str | None) -> SweepFolder | None:
    """The sweep whose setting a POLICY is, if it is one: shipped priors and folders go before sweeps of their name."""
    from rpg_platform.bundles import SHIPPED

    if policy in SHIPPED or Path(policy).expanduser().exists():
        return None

    from rpg_platform.review.choice import is_choice  # MLflow, which takes seconds
    from rpg_platform.storage.location import storage_path
    from rpg_platform.storage.sweep_folder import SweepFolder

    where = storage_path(storage)
    return SweepFolder(where, policy.partition("#")[0]) if is_choice(policy, where) else None


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turns errors that are about the input (a ``ValueError``) into a message and exit code 2.

    Anything else keeps its traceback. A malformed file is refused before anything slow is imported.
    """
    try:
        yield
    except ValueError as error:
        said = without_login(str(error))
        Console(stderr=True, soft_wrap=True).print(said, style="red", markup=False, highlight=False)
        raise typer.Exit(REFUSED) from error


def stdout_console() -> Console:
    """Standard output; 110 columns wide where nobody says otherwise, so that piped tables keep their columns."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=110)
