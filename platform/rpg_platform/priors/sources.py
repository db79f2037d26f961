"""Makes a bundle of any source of a policy: recognises it, reads it, compares it with its environment, writes it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rpg_algorithms.policies.bundle import CARD_FILE, PriorCard, load_bundle, save_bundle
from rpg_algorithms.policies.network import observation_size
from rpg_algorithms.policies.spaces import same_observations, same_space
from rpg_platform.bundles import versions
from rpg_platform.priors import formats
from rpg_platform.priors.environment import Wrappers, bare_task, check_named
from rpg_platform.priors.formats import Format
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.origin import hash_of
from rpg_platform.priors.recognise import recognise
from rpg_platform.spec.yaml_file import find_task
from rpg_platform.storage.location import DEFAULT_STORAGE, default_tracking_uri
from rpg_platform.tasks.environments import spaces_of
from rpg_platform.tasks.observed import difference
from rpg_platform.tasks.task import Task
from rpg_platform.wording import suggestion

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_MAX_FACTS, _MAX_TEXT, _MAX_DEPTH = 50, 500, 4
_UNMET = (
    "its spaces are those that the source stores, and no environment was made: a sweep compares them with its task's "
    "when it starts"
)


@dataclass(frozen=True)
class Import:
    """A finished import.

    Attributes:
        folder: the bundle that was written.
        card: its card.
        imported: what the reader found in the source.
        notes: lines that the user should read, the reader's among them.
    """

    folder: Path
    card: PriorCard
    imported: Imported
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The import as a dictionary that JSON holds, for ``--json``."""
        return {
            "bundle": str(self.folder),
            "format": self.imported.format,
            "content_hash": self.card.content_hash,
            "notes": list(self.notes),
            "card": self.card.model_dump(),
        }


# ---- reading ------------------------------------------------------------------------------------
def read_source(
    source: str, options: ImportOptions | None = None, *, form: str | None = None, tracking_uri: str | None = None
) -> Imported:
    """Reads the policy of a source, of whatever format.

    Args:
        source: a file or folder, or the address of one of the formats: ``models:/name@alias``, ``models:/name/3``,
            ``runs:/id/path`` or ``module:function``.
        options: what the source does not say itself.
        form: name of a format; None to tell it from the content.
        tracking_uri: MLflow store of ``models:/`` and ``runs:/``; by default that of the default storage.

    Returns:
        The policy; its ``facts`` hold ``source`` and, of files, ``sha256``.

    Raises:
        PriorImportError: there is nothing, nothing that is read, or something is wrong with it.
    """
    options = options or ImportOptions()
    named = None if form is None else _named(form)
    path = Path(source).expanduser()
    addressed = _addressed(source, path, named)
    if addressed is not None:
        tools: dict[formats.Need, Any] = {"read_path": read_path, "store": lambda: tracking_uri or _default_store()}
        imported = addressed.read(source, options, tools)
        return replace(imported, facts={**imported.facts, "source": source})
    if _REMOTE.match(source):
        raise PriorImportError(f"{source}: remote files are not fetched; download it and give its path")
    if not path.exists():
        raise PriorImportError(
            f"{source}: neither a file or folder, nor an MLflow address (models:/NAME@ALIAS), nor module:function"
        )
    imported = read_path(path, named or recognise(path), options)
    return replace(imported, facts={**imported.facts, "source": path.resolve().name, "sha256": hash_of(path)})


def read_path(path: Path, form: Format, options: ImportOptions) -> Imported:
    """Reads the policy of a file or folder of a known format. Raises PriorImportError."""
    return form.read(path, options, {"read_path": read_path, "store": _default_store})


def _named(form: str) -> Format:
    """Finds the format of a name. Raises PriorImportError where there is none."""
    found = {each.name: each for each in formats.FORMATS}
    if form not in found:
        raise PriorImportError(f"format {form!r}: no such format{suggestion(form, found)}")
    return found[form]


def _addressed(source: str, path: Path, named: Format | None) -> Format | None:
    """Finds the format that the source is an address of; None for a path."""
    if named is not None and named.only_by_address:
        return named
    if path.exists():
        return None
    for each in formats.FORMATS:
        fits = each.address is not None and each.address.fullmatch(source)
        if fits and (named is None or "read_path" in each.needs):  # an MLflow address may hold what is named
            return each
    return None


def _default_store() -> str:
    return default_tracking_uri(DEFAULT_STORAGE)


# ---- importing ----------------------------------------------------------------------------------
def import_prior(
    source: str,
    out: Path,
    options: ImportOptions | None = None,
    *,
    task: str | None = None,
    wrappers: Wrappers = (),
    stored_spaces: bool = False,
    name: str | None = None,
    form: str | None = None,
    tracking_uri: str | None = None,
    alpha: float | None = None,
    force: bool = False,
) -> Import:
    """Reads a policy and writes it as a bundle. The environment is made only once the source has been looked at.

    Args:
        source: see ``read_source``.
        out: the bundle's folder.
        options: what the source does not say; ``env_id`` and ``env_kwargs`` name the environment.
        task: a task whose environment it is, instead of ``env_id``.
        wrappers: of the environment ``env_id``.
        stored_spaces: make no environment; take the spaces that the source stores.
        name: short name of the prior; by default the source's.
        form: see ``read_source``.
        tracking_uri: see ``read_source``.
        alpha: entropy temperature of the policy, reward per nat, whatever the source says; None: as the source says.
        force: replace a bundle that is there.

    Raises:
        PriorImportError: the source is refused, does not act in the environment, or ``out`` is taken.
    """
    options = options or ImportOptions()
    check_free(out, force)
    if alpha is not None and not 0 < alpha < math.inf:
        raise PriorImportError(f"--alpha {alpha:g}: expected a positive number, reward per nat")
    environment = _environment(task, options, wrappers)
    if environment is not None:
        options = replace(options, env_id=environment.env_id, env_kwargs=dict(environment.env_kwargs))
        if not stored_spaces:
            options = replace(options, environment=cache(lambda: _spaces(environment)))
    try:
        imported = read_source(source, options, form=form, tracking_uri=tracking_uri)
    except PriorImportError as error:
        if not stored_spaces:
            raise
        raise PriorImportError(f"{error} (--stored-spaces: no environment is made)") from error
    observation_space, action_space, notes = settle_spaces(imported, options, source)
    env_id = options.env_id or imported.env_id
    if env_id is None and not stored_spaces:
        raise PriorImportError(
            f"{source}: does not say which environment it acts in (observations {observation_space}, actions "
            f"{action_space}): add --env ID or --task NAME, or --stored-spaces to name none yet"
        )
    facts = _bounded(imported.facts)
    if environment is not None and environment.wrappers:
        facts["wrappers"] = _bounded(dict(environment.wrappers))
    if stored_spaces:
        facts["spaces"] = "as stored in the source; no environment was made"
        notes = (*notes, _UNMET)
    if alpha is not None:
        facts["alpha_given"] = alpha
        if imported.alpha is not None and not math.isclose(alpha, imported.alpha):
            notes = (*notes, f"the source was trained at alpha {imported.alpha:g}, you gave {alpha:g}")
    card = PriorCard.describe(
        name or _name(imported, source),
        env_id or "",
        observation_space,
        action_space,
        imported.network.spec,
        env_kwargs=dict(options.env_kwargs if options.env_id is not None else imported.env_kwargs),
        alpha=imported.alpha if alpha is None else alpha,
        made_by={
            "import": {"format": imported.format, **facts},
            "versions": versions("torch", "numpy", "gymnasium"),
        },
        parents=list(imported.parents),
        lineage=list(imported.lineage),
    )
    card = save_bundle(out, imported.network, card)
    load_bundle(out)  # what was written can be read
    return Import(out, card, imported, (*imported.notes, *notes))


def check_free(out: Path, force: bool) -> None:
    """Raises PriorImportError where something else stands at ``out``, or a bundle that ``force`` does not replace."""
    if out.exists() and not out.is_dir():
        raise PriorImportError(f"{out}: a file is there; name a folder")
    if (out / CARD_FILE).exists():
        if not force:
            raise PriorImportError(f"{out}: a bundle is there; add --force to replace it, or name another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise PriorImportError(f"{out}: a folder with other files is there; name a new one")


def _environment(task: str | None, options: ImportOptions, wrappers: Wrappers) -> Task | None:
    """Finds what the user names, without making it."""
    if task is not None and options.env_id is not None:
        raise PriorImportError(f"--task {task} and --env {options.env_id}: give one; a task has its own environment")
    check_named(options.env_id, options.env_kwargs, wrappers)
    if task is not None:
        return find_task(task)
    return None if options.env_id is None else bare_task(options.env_id, options.env_kwargs, wrappers)


def _spaces(environment: Task) -> tuple[gym.Space[Any], gym.Space[Any]]:
    try:
        return spaces_of(environment)
    except ValueError as error:
        raise PriorImportError(
            f"{error}; where its simulator is not installed and the source stores its spaces, --stored-spaces imports "
            "the policy by these alone"
        ) from error


def settle_spaces(
    imported: Imported, options: ImportOptions, source: str
) -> tuple[gym.Space[Any], gym.Space[Any], tuple[str, ...]]:
    """Chooses the card's spaces: the named environment's where there is one, else those that the source stores.

    Returns:
        Observation space, action space, and notes.

    Raises:
        PriorImportError: source and environment contradict each other (states both), or neither says.
    """
    stored, named = (imported.observation_space, imported.action_space), options.spaces
    chosen: list[gym.Space[Any]] = []
    notes: list[str] = []
    hints = "".join(f". {note[:1].upper()}{note[1:]}" for note in imported.notes)
    for what, mine, theirs in zip(("observation", "action"), stored, named, strict=True):
        if mine is None and theirs is None:
            raise PriorImportError(
                f"{source}: stores no {what} space; say which environment it acts in: --env ID or --task NAME"
            )
        if mine is not None and theirs is not None and not _fit(what, mine, theirs):
            raise PriorImportError(
                f"{source}: its {what} space is {mine}, that of {options.env_id} is {theirs}: it does not act there"
                f"{_sizes(what, mine, theirs)}{hints}"
            )
        chosen.append(theirs if theirs is not None else mine)  # type: ignore[arg-type]
    if options.env_id is not None and imported.env_id is not None and options.env_id != imported.env_id:
        notes.append(f"the source names {imported.env_id} as its environment, you named {options.env_id}")
    return chosen[0], chosen[1], tuple(notes)


def _fit(what: str, stored: gym.Space[Any], named: gym.Space[Any]) -> bool:
    return (same_observations if what == "observation" else same_space)(stored, named)


def _sizes(what: str, stored: gym.Space[Any], named: gym.Space[Any]) -> str:
    """Explains a difference between two spaces of observations; nothing where there is nothing to explain."""
    if what != "observation" or not isinstance(named, gym.spaces.Box | gym.spaces.Discrete):
        return ""
    return f": {difference(observation_size(stored), observation_size(named), stored)}"


def _name(imported: Imported, source: str) -> str:
    """Makes a short name of letters, digits, dots and dashes: the one on the source's card, else the source's own."""
    path = Path(source).expanduser()
    known = imported.facts.get("name") or (path.resolve().name if path.exists() else source)
    stem = str(known).partition("@")[0].rstrip("/").rpartition("/")[2]
    for suffix in (suffix for each in formats.FORMATS for suffix in each.suffixes):
        stem = stem.removesuffix(suffix)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:80] or "imported"


def _bounded(value: Any, depth: int = 0) -> Any:
    """Bounds the size of a source's facts as JSON: many read a card, and a source may hold anything."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int):
        return value if not isinstance(value, int) or abs(value) < 1 << 63 else str(value)[:_MAX_TEXT]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < _MAX_DEPTH and isinstance(value, Mapping):
        return {str(key)[:_MAX_TEXT]: _bounded(each, depth + 1) for key, each in list(value.items())[:_MAX_FACTS]}
    if depth < _MAX_DEPTH and isinstance(value, list | tuple):
        return [_bounded(each, depth + 1) for each in value[:_MAX_FACTS]]
    text = value if isinstance(value, str) else json.dumps(value, default=str)[:_MAX_TEXT]
    return text[:_MAX_TEXT].encode(errors="replace").decode()
