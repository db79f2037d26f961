"""The priors that come with the package, what a prior's name or path stands for, and which versions a card names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import rpg_algorithms
from rpg_platform.wording import suggestion

_ATTEMPT = re.compile(r"attempt-(\d+)")
_FOLDER = Path(__file__).parent / "shipped_priors"
SHIPPED: Mapping[str, Path] = MappingProxyType(
    {card.parent.name: card.parent for card in sorted(_FOLDER.glob("*/card.json"))}
)
"""Name → bundle folder of every shipped prior."""


def resolve_prior(name_or_path: str, relative_to: Path | None = None) -> Path:
    """The bundle folder that a specification's ``prior`` means.

    Args:
        name_or_path: a shipped prior's name, or the path of a bundle, of a checkpoint (it holds ``bundle/``), or of a
            trial (its newest checkpoint counts).
        relative_to: folder that a relative path starts from; the working directory by default.

    Raises:
        ValueError: neither a shipped prior nor a folder that holds a bundle; names the trials of a sweep's folder.
    """
    if name_or_path in SHIPPED:
        return SHIPPED[name_or_path]
    path = Path(name_or_path).expanduser()
    if relative_to is not None and not path.is_absolute():
        path = relative_to / path
    found = bundle_in(path)
    if found is not None:
        return found.resolve()
    trials = sorted({card.parts[-4] for card in path.glob("*/checkpoint_*/bundle/card.json")})
    if trials:
        raise ValueError(f"prior={name_or_path!r}: a sweep; name the folder of one of its trials: {', '.join(trials)}")
    if path.exists():
        raise ValueError(
            f"prior={name_or_path!r}: {path} is not a prior bundle (it holds no card.json); a policy from elsewhere "
            "becomes one by `rpg priors import`"
        )
    raise ValueError(
        f"prior={name_or_path!r}: neither a shipped prior nor a path that exists ({path})"
        f"{suggestion(name_or_path, SHIPPED)}"
    )


def bundle_in(path: Path) -> Path | None:
    """The bundle that a folder is or holds: a bundle's own, a checkpoint's, a trial's newest; None without one.

    A trial that a sweep went on with, resumed or extended, has its newest policy in the folder of a later attempt.
    """
    trials = [*_later(path), path]
    policies = (each for trial in trials for each in sorted(trial.glob("checkpoint_*/bundle"), reverse=True))
    for folder in (path, path / "bundle", *policies):
        if (folder / "card.json").is_file():
            return folder
    return None


def _later(trial: Path) -> list[Path]:
    """Where the later attempts of a sweep keep a trial (``storage.sweep_folder``), the newest first."""
    found = ((int(m[1]), each) for each in trial.parent.glob("attempt-*") if (m := _ATTEMPT.fullmatch(each.name)))
    return [each / trial.name for _, each in sorted(found, reverse=True)]


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of this package and of the named ones, as the card of a new bundle records them."""
    from importlib.metadata import version  # slow to import, and few processes write a card

    return {"residual-policy-gradient": rpg_algorithms.__version__} | {name: version(name) for name in packages}
