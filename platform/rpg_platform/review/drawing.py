"""Draws policies in a process of its own: OpenGL wants its variables set first, and where it fails it may crash.

The process reads a job and writes one line of JSON for each finished video, and one for what went wrong.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.results.report import as_json
from rpg_platform.review.episode import Episode, Picture
from rpg_platform.review.video_file import EXTRA, captioned, side_by_side, write_mp4
from rpg_platform.spec.task import TaskSpec, get_task

LIMIT_S = 120.0
_WITHOUT_A_SCREEN = ("egl", "osmesa")
_EGL = (
    "MuJoCo draws without a screen by EGL (on Debian: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri; MUJOCO_GL "
    "unset or egl)"
)
_OF_GL = re.compile(r"EGL|OSMesa|OpenGL|\bgl[A-Z]")


@dataclass(frozen=True)
class Pane:
    """One policy in a video.

    Attributes:
        bundle: its folder.
        caption: the line above it; none where empty.
    """

    bundle: str
    caption: str = ""


@dataclass(frozen=True)
class Shot:
    """A video to make.

    Attributes:
        out: the file to write.
        panes: one policy, or two side by side.
    """

    out: str
    panes: tuple[Pane, ...]


@dataclass(frozen=True)
class Recording:
    """A video that was made.

    Attributes:
        out: its file.
        width, height: in pixels.
        fps: pictures a second, at the environment's own speed.
        every: the picture of each how manieth step it has.
        metric: heading of the task's readable metric, with its unit.
        traces: of each pane the metric in every step.
        terminated: of each pane whether its episode came to an end of its own.
    """

    out: str
    width: int
    height: int
    fps: float
    every: int
    metric: str
    traces: tuple[tuple[float | None, ...], ...]
    terminated: tuple[bool, ...]


def draw(
    task: str | TaskSpec,
    shots: Sequence[Shot],
    *,
    seed: int,
    steps: int | None = None,
    every: int | None = None,
    limit_s: float = LIMIT_S,
) -> tuple[list[Recording], str | None]:
    """Makes videos; never raises for what cannot be drawn.

    Args:
        task: a task's name, or its specification.
        shots: what to make.
        seed: every episode starts from it.
        steps: how many at most, see ``Episode``.
        every: draw each how manieth, see ``Episode``.
        limit_s: seconds that all of it may take.

    Returns:
        What was made, in order, and why the rest was not: one line; None if all of it was.
    """
    if importlib.util.find_spec("av") is None:
        needed = f"pip install 'residual-policy-gradient[{EXTRA}]'"
        return [], f"the package av, which encodes videos, is not installed: {needed}"
    described = task if isinstance(task, str) else task.model_dump(mode="json")
    job = {"task": described, "shots": [asdict(shot) for shot in shots], "seed": seed, "steps": steps, "every": every}
    with tempfile.TemporaryDirectory() as folder:
        answers, said = Path(folder, "answers"), Path(folder, "said")
        Path(folder, "job").write_text(json.dumps(job), encoding="utf-8")
        ended = _run(Path(folder, "job"), answers, said, limit_s)
        lines = answers.read_text(encoding="utf-8").splitlines() if answers.exists() else []
        found = [json.loads(line) for line in lines]
        made = [_recording(each) for each in found if "problem" not in each]
        problem = next((str(each["problem"]) for each in found if "problem" in each), None)
        if problem is None and len(made) < len(shots):
            problem = ended + _last_line(said)
    return made, problem


def _run(job: Path, answers: Path, said: Path, limit_s: float) -> str:
    """Runs the process to its end; returns how it ended, in words."""
    gl = os.environ.get("MUJOCO_GL", "")
    environment = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    environment["MUJOCO_GL"] = gl if gl in _WITHOUT_A_SCREEN else _WITHOUT_A_SCREEN[0]
    environment["PYTHONPATH"] = os.pathsep.join(each for each in sys.path if each)
    command = [sys.executable, "-m", __name__, str(job), str(answers)]
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"drawing took more than {limit_s:g} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code < 0:
        return f"the process that draws was ended by {signal.Signals(-code).name}"
    return f"the process that draws ended with {code}"


def _last_line(said: Path) -> str:
    lines = [line.strip() for line in said.read_text(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""


def _recording(answer: Mapping[str, Any]) -> Recording:
    traces = tuple(tuple(trace) for trace in answer["traces"])
    return Recording(**{**answer, "traces": traces, "terminated": tuple(answer["terminated"])})


# ---- in the process itself ----------------------------------------------------------------------
def _work(job: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the finished videos, and then what went wrong."""
    try:
        for shot in job["shots"]:
            yield asdict(_shoot(job, shot))
    except Exception as error:  # whatever drivers, environments and encoders may raise
        text = " ".join(str(error).split())
        problem = text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
        yield {"problem": problem[:500].rstrip(".") + (f"; {_EGL}" if _OF_GL.search(problem) else "")}


def _shoot(job: Mapping[str, Any], shot: Mapping[str, Any]) -> Recording:
    task = get_task(job["task"])
    with ExitStack() as held:
        episodes: list[Episode] = []
        shown: list[Iterator[Picture]] = []
        for pane in shot["panes"]:
            episode = Episode(load_bundle(pane["bundle"]), task, job["seed"], job["steps"], job["every"])
            episodes.append(held.enter_context(closing(episode)))
            pictures = episode.pictures()
            shown.append(captioned(pictures, pane["caption"]) if pane["caption"] else pictures)
        pictures = shown[0] if len(shown) == 1 else side_by_side(*shown)
        width, height = write_mp4(pictures, Path(shot["out"]), episodes[0].fps)
    return Recording(
        shot["out"],
        width,
        height,
        episodes[0].fps,
        episodes[0].every,
        task.metric_name,
        tuple(tuple(as_json(each.trace)) for each in episodes),
        tuple(each.terminated for each in episodes),
    )


def main(job: str, answers: str) -> None:
    """Does a job, see ``draw``."""
    with Path(answers).open("a", encoding="utf-8", buffering=1) as file:
        for answer in _work(json.loads(Path(job).read_text(encoding="utf-8"))):
            file.write(json.dumps(answer, allow_nan=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
