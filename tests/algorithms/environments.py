"""Small gymnasium environments that fail in the ways real ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np


class WalkEnv(gym.Env[np.ndarray, Any]):
    """A point that moves by its action; its observations are float32 and are overwritten in place by a vector env.

    Args:
        config: ``discrete``: three actions instead of one number; ``length``: steps to the end of an episode;
            ``terminates``: whether that end is a termination; ``wrong``: ``{quantity: value}`` of what goes wrong at
            step ``wrong_at`` (``reward`` or ``observation``); ``raise_once``: a file that is made when ``step``
            raises at ``wrong_at``, which it does while the file is missing; ``worker``: only this env runner.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = dict(config or {})
        self.worker = getattr(config, "worker_index", 0)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = (
            gym.spaces.Discrete(3) if self.config.get("discrete") else gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        )
        self.position, self.steps, self.lifetime = 0.0, 0, 0

    def _observation(self) -> np.ndarray:
        return np.array([self.position, self.steps / 10], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.steps = float(self.np_random.uniform(-0.1, 0.1)), 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        move = float(action) - 1.0 if self.config.get("discrete") else float(action[0])
        self.position += 0.1 * move
        self.steps += 1
        self.lifetime += 1
        reward, observation = -abs(self.position - 1.0), self._observation()
        if self.lifetime == self.config.get("wrong_at") and self.worker == self.config.get("worker", self.worker):
            file = self.config.get("raise_once")
            if file is not None and not Path(file).exists():
                Path(file).touch()
                raise RuntimeError("the simulator fell over")
            wrong = self.config.get("wrong", {})
            reward = wrong.get("reward", reward)
            observation[0] = wrong.get("observation", observation[0])
        end = self.steps >= self.config.get("length", 20)
        terminates = bool(self.config.get("terminates"))
        return observation, reward, end and terminates, end and not terminates, {"position": self.position}
