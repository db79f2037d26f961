"""Environments, wrappers and add-on rewards as users write them, good and bad, for tests to name."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np


class Slide(gym.Env[np.ndarray, Any]):
    """A point pushed along a line; the episode ends beyond ±1, or after ``length`` steps by termination.

    Args:
        speed: metres a step at full push.
        length: steps of an episode at most; 0: no such end.
        bounded: it ends beyond ±1.
    """

    def __init__(self, speed: float = 0.1, length: int = 12, bounded: bool = True) -> None:
        self.speed, self.length, self.bounded = speed, length, bounded
        self.observation_space: Any = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space: Any = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.position, self.steps = 0.0, 0

    def observed(self) -> Any:
        return np.array([self.position, self.steps / 10])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.steps = float(self.np_random.uniform(-0.2, 0.2)), 0
        return self.observed(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position += self.speed * float(action[0])
        self.steps += 1
        ended = (self.bounded and abs(self.position) > 1) or self.steps == self.length
        return self.observed(), 1.0 - self.position**2, ended, False, self.info()

    def info(self) -> dict[str, Any]:
        return {"position": self.position, "late": self.steps > 5, "name": "slide"}


def make_slide(**arguments: Any) -> gym.Env[Any, Any]:
    return Slide(**arguments)


def make_nothing() -> None:
    return None


class OpenSlide(Slide):
    """The same without bounds of the push, as Isaac Lab's environments have none."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)


class Scaled(gym.RewardWrapper[Any, Any]):
    def __init__(self, env: gym.Env[Any, Any], scale: float = 2.0) -> None:
        super().__init__(env)
        self.scale = scale

    def reward(self, reward: Any) -> float:
        return float(reward) * self.scale


def gait(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return -np.abs(actions).sum(-1) + 0.1 * infos["position"]


gait.info_keys = ("position",)  # type: ignore[attr-defined]


def calm(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return -np.square(actions).sum(-1)


class Drawn(Slide):
    """Draws its point as a white bar on grey; 50 steps are a second.

    Args:
        render_mode: as of every environment that draws.
        crash: what draws dies as a driver does.
        **arguments: of ``Slide``.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(self, render_mode: str | None = None, crash: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.render_mode, self.crash = render_mode, crash

    def render(self) -> Any:
        if self.crash:
            os.kill(os.getpid(), signal.SIGSEGV)
        picture = np.full((90, 161, 3), 60, np.uint8)
        place = round(80 + 70 * float(np.clip(self.position, -1, 1)))
        picture[:, place - 5 : place + 5] = 255
        return picture


# ---- environments that misbehave ----------------------------------------------------------------
class Unseeded(Slide):
    """Starts where chance has it, whatever the seed."""

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**arguments)
        self.position = float(np.random.default_rng().uniform(-0.2, 0.2))
        return self.observed(), {}


class Numbered(Slide):
    """Each instance is another world."""

    count: ClassVar[Any] = itertools.count()

    def __init__(self) -> None:
        super().__init__(speed=0.1 + 0.01 * next(Numbered.count))


class Shared(Slide):
    """Its instances move one point."""

    place: ClassVar[list[float]] = [0.0]

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**arguments)
        Shared.place[0] = self.position
        return self.observed(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position = Shared.place[0]
        result = super().step(action)
        Shared.place[0] = self.position
        return result


class NanReward(Slide):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, *rest = super().step(action)
        return obs, np.log(-abs(reward)), *rest


class WrongShape(Slide):
    def observed(self) -> Any:
        return np.zeros(3)


class OldStep(Slide):
    def step(self, action: Any) -> Any:
        obs, reward, done, _, info = super().step(action)
        return obs, reward, done, info


class ForgetsAtTheEnd(Slide):
    """Its last info of an episode lacks what all others have."""

    def info(self) -> dict[str, Any]:
        return {} if self.steps == self.length else super().info()


class DictObservations(Slide):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Dict({"x": gym.spaces.Box(-1.0, 1.0, (2,))})

    def observed(self) -> Any:
        return {"x": np.clip(super().observed(), -1, 1).astype(np.float32)}


class Buttons(Slide):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.MultiDiscrete([2, 3])


# ---- add-on rewards that misbehave ----------------------------------------------------------------
def mutating(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    next_obs -= next_obs.mean(-1, keepdims=True)
    return next_obs[:, 0]


def clipping_in_place(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    np.clip(next_obs, -1e9, 1e9, out=next_obs)  # changes nothing here, and is still wrong
    return next_obs[:, 0]


def batch_coupled(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return next_obs[:, 0] - next_obs[:, 0].mean()


def cumulative(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return np.cumsum(next_obs[:, 0])


def column(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return next_obs[:, :1]


def not_finite(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    with np.errstate(invalid="ignore"):
        return np.sqrt(next_obs[:, 0])


def fragile(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.exp(np.abs(next_obs[:, 0]))


def random(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return next_obs[:, 0] + np.random.default_rng().normal(size=len(obs))


_calls = itertools.count()


def stateful(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return next_obs[:, 0] + next(_calls)


def missing_info(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return infos["velocity"]


missing_info.info_keys = ("velocity",)  # type: ignore[attr-defined]


def textual_info(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return infos["name"]


textual_info.info_keys = ("name",)  # type: ignore[attr-defined]


def raising(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return next_obs[:, 99]


# ---- environments that break on demand ------------------------------------------------------------
class SimulatorError(Exception):
    """Can neither be copied nor pickled, as many users' own can't."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"the simulator fell over in {what}: {code}")


class Faulty(Slide):
    """Does what files in ``folder`` say: waits while ``hang`` is there; raises as often as ``step``, ``reset`` say."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.maybe_hang()

    def maybe_hang(self) -> None:
        while (self.folder / "hang").exists():
            time.sleep(0.05)

    def maybe_raise(self, what: str) -> None:
        file = self.folder / what
        if file.exists() and (left := int(file.read_text())) > 0:
            file.write_text(str(left - 1))
            raise SimulatorError(what, 7)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        self.maybe_raise("reset")
        return super().reset(**arguments)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.maybe_hang()
        self.maybe_raise("step")
        return super().step(action)


class OwnTemporary(Slide):
    """The first process other than ``driver`` that makes one has its temporary files in ``folder`` from then on."""

    def __init__(self, folder: str, driver: int) -> None:
        super().__init__()
        if os.getpid() != driver:
            with suppress(FileExistsError):
                os.close(os.open(Path(folder) / "taken", os.O_CREAT | os.O_EXCL))
                tempfile.tempdir = folder


class Counted(Slide):
    """Writes to ``folder`` that it was made, and once that it was closed; more than ``most`` open ones are too many."""

    def __init__(self, folder: str, most: int = 100) -> None:
        super().__init__()
        self.folder, self.mark = Path(folder), f"{os.getpid()}-{id(self)}-{time.monotonic_ns()}"
        if len(list(self.folder.glob("*.open"))) >= most:
            raise RuntimeError("too many are open")
        (self.folder / f"{self.mark}.open").touch()

    def close(self) -> None:
        (self.folder / f"{self.mark}.open").rename(self.folder / f"{self.mark}.closed")
