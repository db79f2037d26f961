"""Vector environments with SAME_STEP autoreset, of gymnasium or of envpool.

With either engine, ``step`` returns the observation after the reset where an episode ended, and its final observation
in ``infos["final_obs"]``, so every row of a rollout is a real transition. The next step may overwrite the arrays that
``step`` returned. ``final_observations`` and ``write_infos`` read the last step of an episode out of the infos.

Ray is needed only to look up an environment that RLlib knows by a name. Dimension letters: N environments, D
observation size.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate
from gymnasium.wrappers import OrderEnforcing, TimeLimit
from numpy.typing import NDArray

from rpg_algorithms.policies.spaces import flatten_observations

EnvBackend = Literal["auto", "gymnasium", "envpool"]


def final_observations(
    space: gym.Space[Any], infos: Mapping[str, Any], done: NDArray[np.bool_]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yields each environment whose episode this step ended: its index and its final observation ``[D]``.

    Args:
        space: one environment's observation space.
        infos: the infos that ``step`` returned.
        done: ``[N]``, terminated or truncated.
    """
    for n in np.flatnonzero(done):
        yield int(n), flatten_observations(space, np.asarray(infos["final_obs"][n])[None])[0]


def write_infos(columns: Mapping[str, NDArray[np.float64]], infos: Mapping[str, Any], done: NDArray[np.bool_]) -> None:
    """Writes this step's infos into ``columns``; where an episode ended, those of its last step, not of the reset.

    Args:
        columns: info key → ``[N]``; a column keeps its values where the environment gives no such info.
        infos: the infos that ``step`` returned.
        done: ``[N]``, terminated or truncated.
    """
    final = infos.get("final_info", {})
    for key, column in columns.items():
        if key in infos:
            column[:] = infos[key]
        if key in final:
            column[done] = np.asarray(final[key])[done]


class _SelectedInfos:
    """Mixin of a vector environment that gathers only the infos that are read; all of them cost as much as a step."""

    wanted: frozenset[str] = frozenset(("final_obs",))

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        chosen = {k: v for k, v in env_info.items() if k in self.wanted}
        return super()._add_info(vector_infos, chosen, env_num) if chosen else vector_infos  # type: ignore[misc]


def time_limit(env: gym.Env[Any, Any]) -> int | None:
    """Steps after which an environment's outermost ``TimeLimit`` ends an episode; None where it has none."""
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, TimeLimit):
            return int(layer._max_episode_steps)
        layer = layer.env
    return None


def _without_time_limit(env: gym.Env[Any, Any]) -> tuple[Callable[[Any], Any], int]:
    """Returns the innermost ``step`` that equals ``env.step`` except for the time limit, and the limit (0 for none).

    ``gymnasium.make`` wraps every environment in ``OrderEnforcing`` and most in ``TimeLimit``, which cost two calls per
    step only to count.
    """
    limit = 0
    if type(env) is TimeLimit:
        limit, env = env._max_episode_steps, env.env
    if type(env) is OrderEnforcing:
        env = env.env
    return env.step, limit


class _SyncEnvs(_SelectedInfos, SyncVectorEnv):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._steps = [_without_time_limit(env) for env in self.envs]
        self._elapsed = [0] * self.num_envs
        self._is_array = isinstance(self.single_observation_space, gym.spaces.Box)

    def reset(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Resets all environments and their clocks."""
        self._elapsed = [0] * self.num_envs
        return super().reset(*args, **kwargs)

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is cut off; None where the environment sets no limit."""
        return time_limit(self.envs[0])

    def restart(self, which: Sequence[int]) -> Any:
        """Begins new episodes in these environments alone; returns the observations of all."""
        rows: Any = self._observations
        for i in which:
            self._env_obs[i], _ = self.envs[i].reset()
            self._elapsed[i] = 0
            if self._is_array:
                rows[i] = self._env_obs[i]
        if not self._is_array:
            self._observations = concatenate(self.single_observation_space, self._env_obs, self._observations)
        return self._observations

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps all environments without the stock class's copies; the next step overwrites the returned arrays."""
        infos: dict[str, Any] = {}
        read = len(self.wanted) > 1
        elapsed, is_array = self._elapsed, self._is_array
        rows: Any = self._observations
        for i, (step, limit) in enumerate(self._steps):
            obs, self._rewards[i], terminated, truncated, info = step(actions[i])
            elapsed[i] += 1
            truncated = truncated or elapsed[i] == limit
            self._terminations[i], self._truncations[i] = terminated, truncated
            if terminated or truncated:
                infos = self._add_info(infos, {"final_obs": obs, "final_info": info}, i)
                obs, info = self.envs[i].reset()
                elapsed[i] = 0
            if read:
                infos = self._add_info(infos, info, i)
            if is_array:
                rows[i] = obs
            else:
                self._env_obs[i] = obs
        if not is_array:
            self._observations = concatenate(self.single_observation_space, self._env_obs, self._observations)
        return self._observations, self._rewards, self._terminations, self._truncations, infos


class _AsyncEnvs(_SelectedInfos, AsyncVectorEnv):
    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is cut off; None where the environment sets no limit, or none that it tells."""
        spec = self.get_attr("spec")[0]
        return None if spec is None else spec.max_episode_steps

    def restart(self, which: Sequence[int]) -> Any:
        """Begins new episodes in these environments alone; returns the observations of all."""
        mask = np.zeros(self.num_envs, np.bool_)
        mask[list(which)] = True
        return self.reset(options={"reset_mask": mask})[0]


def make_vector_env(make_env: Callable[[], gym.Env[Any, Any]], num_envs: int, mode: str, infos: frozenset[str]) -> Any:
    """Makes a gymnasium vector environment with SAME_STEP autoreset that gathers only the named infos.

    Args:
        make_env: makes one environment.
        num_envs: number of environments.
        mode: ``sync`` or ``async``.
        infos: info keys to gather.

    Raises:
        ValueError: the mode is neither.
    """
    if mode == "sync":
        with contextlib.ExitStack() as on_failure:  # gymnasium would leave those open that came before
            made = [lambda: on_failure.enter_context(contextlib.closing(make_env()))] * num_envs
            envs: Any = _SyncEnvs(made, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
            on_failure.pop_all()
    elif mode == "async":
        envs = _AsyncEnvs([make_env] * num_envs, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    else:
        raise ValueError(f"gym_env_vectorize_mode={mode!r}: expected 'sync' or 'async'")
    envs.wanted = frozenset(("final_obs", *infos, *(("final_info",) if infos else ())))
    return envs


class EnvPool:
    """An envpool environment behind the part of gymnasium's vector interface that env runners use.

    envpool itself resets in the step after the end of an episode; this class resets environments that ended at once.

    Args:
        env_id: an environment that envpool has, e.g. ``HalfCheetah-v5``.
        num_envs: number of environments.
        threads: number of threads that step them.
        infos: info keys to hand on.
        seed: seed of all environments; None for a random one.

    Raises:
        ValueError: envpool has no such environment, or the environment lacks an info that was asked for.
    """

    def __init__(self, env_id: str, num_envs: int, threads: int, infos: frozenset[str], seed: int | None) -> None:
        import envpool

        if env_id not in envpool.list_all_envs():
            raise ValueError(f"env_backend='envpool': envpool has no environment {env_id!r}")
        self.num_envs, self._infos = num_envs, infos
        self._make: Any = lambda seed: envpool.make_gymnasium(env_id, num_envs=num_envs, seed=seed, num_threads=threads)
        self._pool = self._make(_pool_seed(seed))
        self.single_observation_space = self._pool.observation_space
        self.single_action_space = self._pool.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self._dtype = self.single_action_space.dtype
        _, first = self._pool.reset()
        if missing := sorted(infos - set(first)):
            raise ValueError(f"env_backend='envpool': {env_id} gives no infos {missing}, only {sorted(first)}")

    @property
    def unwrapped(self) -> EnvPool:
        """Itself."""
        return self

    def reset(self, *, seed: int | list[int] | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Resets all environments and returns their observations; a seed needs a new pool in envpool."""
        if seed is not None:
            self._pool.close()
            self._pool = self._make(_pool_seed(seed))
        obs, _ = self._pool.reset()
        return obs, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps all environments and resets those that ended, see the module's docstring."""
        obs, reward, terminated, truncated, given = self._pool.step(np.asarray(actions, self._dtype))
        infos = {key: given[key] for key in self._infos}
        done = terminated | truncated
        if done.any():
            infos |= {"final_obs": obs, "final_info": dict(infos)}
            fresh, _ = self._pool.reset(np.flatnonzero(done).astype(np.int32))
            obs = obs.copy()
            obs[done] = fresh
        self._obs = obs
        return obs, reward, terminated, truncated, infos

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is cut off."""
        return int(self._pool.spec.config.max_episode_steps)

    def restart(self, which: Sequence[int]) -> Any:
        """Begins new episodes in these environments alone; returns the observations of all."""
        fresh, _ = self._pool.reset(np.asarray(which, np.int32))
        self._obs = self._obs.copy()
        self._obs[list(which)] = fresh
        return self._obs

    def close(self) -> None:
        """Ends the pool's threads."""
        self._pool.close()


def _pool_seed(seed: int | list[int] | None) -> int:
    return int(np.random.SeedSequence(seed).generate_state(1)[0] % (2**31))


def open_vector_env(config: Any, context: Mapping[str, Any], infos: frozenset[str], seed: int | None) -> Any:
    """Opens the vector environment that an algorithm's configuration asks for.

    ``auto`` takes envpool where it is installed, has the environment with these arguments, and the env runner has more
    than one CPU to step with; on one CPU it is no faster than gymnasium.

    Args:
        config: an ``SPGConfig``.
        context: the environment's configuration.
        infos: info keys to gather.
        seed: the env runner's seed.

    Raises:
        ValueError: the configuration asks for envpool, which cannot be used; the message says why.
    """
    num_envs, threads = config.num_envs_per_env_runner, max(1, int(config.num_cpus_per_env_runner))
    if config.env_backend == "envpool" or (config.env_backend == "auto" and threads > 1):
        env_id, reason = _pool_candidate(config.env, context)
        if env_id is not None:
            try:
                return EnvPool(env_id, num_envs, threads, infos, seed)
            except ValueError:
                if config.env_backend == "envpool":
                    raise
        elif config.env_backend == "envpool":
            raise ValueError(f"env_backend='envpool': {reason}")
    mode = config.gym_env_vectorize_mode
    return make_vector_env(
        _single_env_maker(config.env, context), num_envs, str(getattr(mode, "value", mode)).lower(), infos
    )


def _pool_candidate(env: Any, context: Mapping[str, Any]) -> tuple[str | None, str]:
    """Returns the gymnasium id that envpool could make, or None and the reason why it cannot."""
    if importlib.util.find_spec("envpool") is None:
        return None, "the package envpool is not installed (pip install 'residual-policy-gradient[envpool]')"
    arguments: Mapping[str, Any] = dict(context)
    if (creator := _registered(env)) is not None:
        env, arguments = getattr(creator, "env_id", None), getattr(creator, "env_kwargs", {})
        if wrappers := getattr(creator, "wrappers", ()):
            return None, f"it does not take the wrappers {list(wrappers)} of {env}"
    if not isinstance(env, str):
        return None, "it needs an environment given by its gymnasium id"
    if arguments:
        return None, f"it does not take the keyword arguments {sorted(arguments)} of {env}"
    return env, ""


def _single_env_maker(env: Any, context: Mapping[str, Any]) -> Callable[[], gym.Env[Any, Any]]:
    """Returns a function that makes one environment from any value that ``AlgorithmConfig.environment()`` accepts."""
    creator = _registered(env) or env
    if callable(creator):
        return lambda: creator(context)
    return lambda: gym.make(env, disable_env_checker=True, **dict(context))


def _registered(env: Any) -> Any:
    """Returns the function that RLlib's registry holds under the name ``env``; None if it holds none."""
    from ray.tune.registry import ENV_CREATOR, _global_registry  # heavy, and needed for RLlib's configurations alone

    known = isinstance(env, str) and _global_registry.contains(ENV_CREATOR, env)
    return _global_registry.get(ENV_CREATOR, env) if known else None
