"""Videos of a sweep's policies: the prior, the best setting and the one with the most add-on return, side by side.

They lie in the sweep's folder: ``videos/ROLE.mp4`` one each, and ``videos/videos.json``, which says what they show and
has the task's metric in every step.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rpg_algorithms.policies.bundle import CARD_FILE, load_card
from rpg_platform.evaluation.points import plain_bundle
from rpg_platform.results.names import short_name
from rpg_platform.results.report import as_json
from rpg_platform.results.rows import Row
from rpg_platform.review.choice import best_seed
from rpg_platform.review.drawing import LIMIT_S, Pane, Recording, Shot, draw
from rpg_platform.review.found import Found
from rpg_platform.review.sources import Source
from rpg_platform.storage.sweep_folder import PRIOR_FOLDER

FORMAT = 1
VIDEOS_FOLDER = "videos"
VIDEOS_FILE = f"{VIDEOS_FOLDER}/videos.json"

Role: TypeAlias = Literal["prior", "best", "most-addon"]


@dataclass(frozen=True)
class Video:
    """One policy's episode: its likeliest actions, from the first of the sweep's evaluation seeds.

    Attributes:
        role: which policy; none is ``best`` where that is the prior, or ``most-addon`` where that is the best.
        label: its setting, to read.
        group, trial: the setting, and the trial whose last policy it is; empty for the prior.
        policy: content hash of its bundle.
        path: the file, relative to the sweep's folder.
        width, height: in pixels.
        fps: pictures a second, at the environment's own speed.
        every: picture i is of step ``i * every``.
        seed: the episode's.
        steps: how many it has.
        terminated: the episode came to an end of its own (a fall, a goal) after them.
        metric: heading of the task's readable metric, with its unit.
        trace: the metric in every step; None where it is not finite.
    """

    role: Role
    label: str
    group: str
    trial: str
    policy: str
    path: str
    width: int
    height: int
    fps: float
    every: int
    seed: int
    steps: int
    terminated: bool
    metric: str
    trace: tuple[float | None, ...]


@dataclass(frozen=True)
class Chosen:
    """A policy to show, see ``Video``, at its setting's weights; the prior has no checkpoint."""

    role: Role
    label: str
    group: str = ""
    trial: str = ""
    checkpoint: str | None = None
    weights: Mapping[str, Any] = field(default_factory=dict)


def sweep_videos(found: Found, *, tell: Callable[[str], object], limit_s: float = LIMIT_S) -> list[Video]:
    """Makes the videos of a sweep and writes them into its folder; what is there of the same policies is kept.

    Never raises for what cannot be drawn, read or written: one line says it, and a policy without a video has none.

    Args:
        found: the sweep.
        tell: takes the line.
        limit_s: seconds that drawing may take.

    Returns:
        The videos, the prior's first.
    """
    try:
        return _videos(found, tell, limit_s)
    except (ValueError, OSError) as error:
        tell(f"No videos: {' '.join(str(error).split())}")
        return []


def read_videos(source: Source) -> list[Video]:
    """The videos that a sweep has; none where there are none.

    Raises:
        ValueError: the file that describes them is damaged, or of another version.
    """
    text = source.read_bytes(VIDEOS_FILE)
    if text is None:
        return []
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        return [Video(**{**each, "trace": tuple(each["trace"])}) for each in content["videos"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{VIDEOS_FILE}: {error}") from error


def chosen_policies(found: Found) -> list[Chosen]:
    """The policies to show, each once, the prior's first."""
    has_prior = found.folder.read_text(f"{PRIOR_FOLDER}/{CARD_FILE}") is not None
    trained = [row for row in found.rows if row.seeds and not row.is_prior]
    addon = {row.group: row.evaluation(row.objective["mode"]).addon_return.mean for row in trained}
    with_addon = [row for row in trained if row.is_deployable and math.isfinite(addon[row.group])]
    best = next((row for row in trained if row.is_best), None)
    most = max(with_addon, key=lambda row: addon[row.group], default=None)
    roles: list[tuple[Role, Row | None]] = [("best", best), ("most-addon", None if most is best else most)]
    chosen = [Chosen("prior", "prior")] if has_prior else []
    for role, row in roles:
        if row is not None:
            trial = best_seed(found, row)
            chosen.append(Chosen(role, short_name(row), row.group, trial, found.checkpoints[trial], row.weights))
    return chosen


def _videos(found: Found, tell: Callable[[str], object], limit_s: float) -> list[Video]:
    folder, seed = found.folder, found.spec.evaluation.seed
    before = {each.path: each for each in _readable(found.source)}
    with tempfile.TemporaryDirectory() as scratch:
        shots: dict[Role, Shot] = {}
        videos: dict[Role, Video] = {}
        chosen = {each.role: each for each in chosen_policies(found)}
        policies: dict[Role, str] = {}
        for role, each in chosen.items():
            fetched = folder.fetch_bundle(Path(scratch, role), each.checkpoint)
            bundle = plain_bundle(fetched, Path(scratch, f"{role}-plain"), {}, each.weights)
            policies[role] = load_card(bundle).content_hash
            known = before.get(_path(role))
            if known is not None and (known.policy, known.seed) == (policies[role], seed):
                videos[role] = replace(known, label=each.label, group=each.group, trial=each.trial)
            else:
                shots[role] = Shot(str(Path(scratch, f"{role}.mp4")), (Pane(str(bundle)),))
        made, problem = draw(found.spec.task, list(shots.values()), seed=seed, limit_s=limit_s) if shots else ([], None)
        for each, recording in zip((chosen[role] for role in shots), made, strict=False):
            folder.write_bytes(_path(each.role), Path(recording.out).read_bytes())
            videos[each.role] = _video(each, policies[each.role], seed, recording)
    made_or_kept = [videos[role] for role in chosen if role in videos]
    content = {"format": FORMAT, "videos": [asdict(each) for each in made_or_kept]}
    folder.write_bytes(VIDEOS_FILE, json.dumps(as_json(content), allow_nan=False).encode())
    if problem is not None:
        missing = [role for role in chosen if role not in videos]
        tell(f"No video of {', '.join(missing)}: {problem}")
    return made_or_kept


def _path(role: Role) -> str:
    return f"{VIDEOS_FOLDER}/{role}.mp4"


def _readable(source: Source) -> list[Video]:
    try:
        return read_videos(source)
    except ValueError:  # they are made anew
        return []


def _video(chosen: Chosen, policy: str, seed: int, made: Recording) -> Video:
    [trace], [terminated] = made.traces, made.terminated
    return Video(
        chosen.role,
        chosen.label,
        chosen.group,
        chosen.trial,
        policy,
        _path(chosen.role),
        made.width,
        made.height,
        made.fps,
        made.every,
        seed,
        len(trace),
        terminated,
        made.metric,
        trace,
    )
