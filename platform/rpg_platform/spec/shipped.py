"""The sweeps that come with the package, and which file a specification's name or path means.

In the repository they are tune_configs/; a wheel holds them as the package's folder ``shipped_sweeps``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from rpg_platform.wording import suggestion

_FOLDER = Path(__file__).parents[1] / "shipped_sweeps"
SHIPPED_SWEEPS: Mapping[str, Path] = MappingProxyType(
    {file.relative_to(_FOLDER).with_suffix("").as_posix(): file for file in sorted(_FOLDER.glob("**/*.yaml"))}
)
"""Name → file of every shipped sweep: ``quickstart``, ``priors/hopper``, ``paper/ant_customise``."""


def sweep_file(name_or_path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The file that a specification's name or path means, and the folder that relative paths in it start from.

    A file that exists goes before a shipped sweep of its name. A shipped sweep's paths start where they would if its
    file lay in ``tune_configs/`` under the working directory: `../priors/hopper-spg` is `priors/hopper-spg` there,
    since nobody should train into an installed package.

    Raises:
        ValueError: there is no such file, and the name is near that of a shipped sweep, which it names.
    """
    path = Path(name_or_path)
    if os.path.lexists(path) and not path.is_dir():
        return path, path.parent
    name = path.as_posix()
    if name in SHIPPED_SWEEPS:
        return SHIPPED_SWEEPS[name], Path("tune_configs", name).parent
    if not path.suffix and not path.is_dir():
        raise ValueError(f"{name}: neither a file nor a shipped sweep{suggestion(name, SHIPPED_SWEEPS)}")
    return path, path.parent
