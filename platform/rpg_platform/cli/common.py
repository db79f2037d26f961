"""What the commands of ``rpg`` share: options, exit codes, consoles, and turning errors about input into messages.

Exit codes: 0 all went well; 1 a sweep has trials without a result; 2 the input was refused.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rpg_platform.spec.logins import without_login

FAILED, REFUSED = 1, 2

SpecFile = Annotated[Path, typer.Argument(help="A sweep specification, see tune_configs/.", metavar="FILE")]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster that this machine is a node of: auto or HOST:PORT; default: its own."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Storage = Annotated[str | None, typer.Option(help="Where results go (overrides the file's storage).")]
Name = Annotated[str | None, typer.Option(help="Name of this sweep (overrides the file's name).")]


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
