"""The env runner: steps a vector environment and hands back time-major arrays.

Nothing is allocated or logged per environment and step. Add-on rewards, log-probabilities and episode statistics are
computed once per rollout. Environments reset within the step that ends an episode (gymnasium's SAME_STEP), so every
row of a rollout is a real transition.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_errors import StepFailedRecreateEnvError
from ray.rllib.env.env_runner import NUM_ENV_STEP_FAILURES_LIFETIME
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics import ENV_RESET_TIMER, NUM_ENV_STEPS_SAMPLED_LIFETIME

from rpg_algorithms.addons import AddonReward, CompositeReward, part_names, resolve_addon
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_algorithms.policies.spaces import flatten_observations
from rpg_algorithms.policies.told import Draws
from rpg_algorithms.rllib.compiler import leave_out_compiler
from rpg_algorithms.rllib.rollout import NonFinite, Rollout
from rpg_algorithms.rllib.vector_env import final_observations, open_vector_env, write_infos

logger = logging.getLogger(__name__)
MOST_RECOVERIES = 10  # failures in a row after which an environment is given up
EPISODE_CHUNK = 256  # time steps per rollout when sampling whole episodes

leave_out_compiler()


def env_seeds(seed: int, env_steps: int, num_envs: int) -> list[int]:
    """Returns a seed for every environment of a runner.

    A runner's seed is ``seed + index``. No two runners share an environment's seed, and after a restore or a failure a
    runner uses none of its seeds again.

    Args:
        seed: the runner's seed.
        env_steps: env steps sampled so far.
        num_envs: number of seeds.
    """
    return [int(x) for x in np.random.SeedSequence([seed, env_steps]).generate_state(num_envs)]


@dataclass(eq=False)
class _Episodes:
    """Sums over the episodes that are under way, one slot per environment."""

    length: NDArray[np.int64]
    basic: NDArray[np.float64]
    addon: NDArray[np.float64]
    metrics: NDArray[np.float64]  # [P + M, N]: the add-on reward's parts, then the step metrics
    started: NDArray[np.float64]
    first: NDArray[np.bool_]  # whether it is still the first since all were reset
    cuts: dict[int, list[int]]  # time steps since then → the environments to restart then, if it still is
    age: int = 0  # time steps since then

    @classmethod
    def fresh(cls, num_envs: int, num_metrics: int, time_limit: int | None) -> _Episodes:
        cuts: dict[int, list[int]] = {}
        for n in range(1, num_envs if time_limit else 0):
            cuts.setdefault(-(-n * (time_limit or 0) // num_envs), []).append(n)
        return cls(
            np.zeros(num_envs, np.int64),
            np.zeros(num_envs),
            np.zeros(num_envs),
            np.zeros((num_metrics, num_envs)),
            np.full(num_envs, time.perf_counter()),
            np.ones(num_envs, np.bool_),
            cuts,
        )


@dataclass(eq=False)
class _Buffers:
    """The arrays into which the env runner writes one rollout."""

    obs: NDArray[np.float32]  # [T + 1, N, D]: the last row is the observation after the last step
    outputs: NDArray[np.float32]
    actions: NDArray[Any]
    env_actions: NDArray[Any]
    basic: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    infos: dict[str, NDArray[np.float64]]
    final_obs: list[tuple[int, int, NDArray[np.float32]]]  # (t, n, observation) of every end of an episode
    cut: set[tuple[int, int]]  # (t, n) of the ends that ``_cut`` made, which count as no episode

    @classmethod
    def allocate(cls, t: int, n: int, policy: NumpyPolicy, info_keys: frozenset[str]) -> _Buffers:
        spec = policy.spec
        discrete = spec.distribution == "categorical"
        shape = (t, n) if discrete else (t, n, spec.action_size)
        dtype = np.int64 if discrete else np.float32
        return cls(
            np.empty((t + 1, n, spec.row_size), np.float32),
            np.empty((t, n, policy.outputs_size), np.float32),
            np.empty(shape, dtype),
            np.empty(shape, dtype),
            np.empty((t, n), np.float32),
            np.empty((t, n), np.bool_),
            np.empty((t, n), np.bool_),
            {key: np.zeros((t, n)) for key in info_keys},
            [],
            set(),
        )

    def first(self, t: int) -> _Buffers:
        """Returns the first ``t`` time steps."""
        arrays = {k: v[:t] for k, v in vars(self).items() if k not in ("obs", "infos", "final_obs", "cut")}
        infos = {k: v[:t] for k, v in self.infos.items()}
        return _Buffers(obs=self.obs[: t + 1], **arrays, infos=infos, final_obs=self.final_obs, cut=self.cut)

    def next_obs(self) -> NDArray[np.float32]:
        """Returns the observations ``[T, N, D]`` after each step; where an episode ended, its final observation."""
        after = self.obs[1:].copy()
        for t, n, obs in self.final_obs:
            after[t, n] = obs
        return after


class RolloutEnvRunner(SingleAgentEnvRunner):
    """RLlib env runner that returns ``[Rollout]`` from ``sample()`` instead of episodes.

    Result keys are those of the stock runner, plus the means over finished episodes of ``episode_basic_return``,
    ``episode_addon_return``, ``episode_total_return``, of each step metric, and ``episode_addon_<part>_return`` of each
    part of an add-on reward. ``episode_return_mean`` is the environment's own (basic) return.
    """

    env: Any

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        self._addon: AddonReward | None = None if config.addon_reward is None else resolve_addon(config.addon_reward)
        self._parts = part_names(self._addon)
        self._step_metrics: dict[str, AddonReward] = {
            name: resolve_addon(metric) for name, metric in config.step_metrics.items()
        }
        readers = [*self._step_metrics.values(), *([self._addon] if self._addon is not None else [])]
        self._info_keys = frozenset(key for reader in readers for key in reader.info_keys)
        self._obs: NDArray[np.float32]
        self._told = len(config.told_weights())  # each episode has its own, in the observation's last columns
        self._draws: Draws
        self._episodes: _Episodes
        self._finished: list[dict[str, float]] = []
        super().__init__(config=config, **kwargs)
        self._rng = np.random.default_rng(self._seed)

    # --- environment

    def make_env(self) -> None:
        """Makes the vector environment; RLlib calls this again after an environment failed."""
        if self.env is not None:
            try:
                self.env.close()
            except Exception:  # a broken environment may fail in any way while closing
                logger.warning("closing the failed environment raised an error", exc_info=True)
        if not self.config.env:
            raise ValueError("environment(env=None): no environment was given")
        context = self.config.env_config
        if not isinstance(context, EnvContext):
            context = EnvContext(
                context,
                worker_index=self.worker_index,
                num_workers=self.num_workers,
                remote=self.config.remote_worker_envs,
            )
        self.env = open_vector_env(self.config, context, self._info_keys, self._seed)
        self.num_envs = self.env.num_envs
        self._needs_initial_reset = True
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_environment_created,
            kwargs={
                "env_runner": self,
                "metrics_logger": self.metrics,
                "env": self.env.unwrapped,
                "env_context": context,
            },
        )

    @property
    def _env_name(self) -> str:
        return f"{self.config.env} (env runner {self.worker_index or 0})"

    def _reset(self, whole_episodes: bool = False) -> None:
        """Resets all environments; for whole episodes, which are evaluations, always from the same starts."""
        seeded = self._needs_initial_reset and self._seed is not None
        steps = 0 if whole_episodes else self.num_env_steps_sampled_lifetime
        seeds = env_seeds(self._seed, steps, self.num_envs) if seeded else None
        obs, _ = self._try_env_reset(seed=seeds)
        self._obs = flatten_observations(self.env.single_observation_space, obs)
        if self._told:
            start = None if self._seed is None else [self._seed, steps]
            self._draws = Draws(self._told, np.random.default_rng(start))
            self._obs = np.concatenate((self._obs, self._draws.take(self.num_envs)), axis=1)
        limit = None if whole_episodes else self.env.time_limit
        self._episodes = _Episodes.fresh(self.num_envs, len(self._parts) + len(self._step_metrics), limit)
        self._needs_initial_reset = False

    def set_state(self, state: Any) -> None:
        """Restores weights and counters; the noise continues with numbers that the run has not used yet."""
        super().set_state(state)
        if NUM_ENV_STEPS_SAMPLED_LIFETIME in state and self._seed is not None:
            self._rng = np.random.default_rng([self._seed, self.num_env_steps_sampled_lifetime])

    # --- sampling

    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[Rollout]:
        policy = NumpyPolicy(self.module.policy)
        if force_reset or num_episodes is not None or self._needs_initial_reset:
            self._reset(whole_episodes=num_episodes is not None)
        if num_episodes is None:
            assert num_timesteps is not None
            time_steps = -(-num_timesteps // self.num_envs)
            rollouts, _ = self._rollout(policy, time_steps, explore, random_actions, None)
            return [rollouts]
        rollouts_: list[Rollout] = []
        left = num_episodes
        while left > 0:
            rollout, finished = self._rollout(policy, EPISODE_CHUNK, explore, random_actions, left)
            rollouts_.append(rollout)
            left -= finished
        self._needs_initial_reset = True
        return rollouts_

    def _rollout(
        self, policy: NumpyPolicy, time_steps: int, explore: bool, random_actions: bool, episodes: int | None
    ) -> tuple[Rollout, int]:
        """Steps until ``time_steps`` are full or ``episodes`` have ended; starts over when the environment fails."""
        for _ in range(MOST_RECOVERIES):
            buffers = _Buffers.allocate(time_steps, self.num_envs, policy, self._info_keys)
            noise = policy.noise(self._rng, (time_steps, self.num_envs)) if explore and not random_actions else None
            steps = self._fill(buffers, policy, noise, random_actions, episodes)
            if steps is not None:
                return self._finish(buffers.first(steps), policy)
            self._reset()
        raise RuntimeError(f"{self._env_name} failed {MOST_RECOVERIES} times in a row without one whole rollout")

    def _fill(
        self,
        buffers: _Buffers,
        policy: NumpyPolicy,
        noise: NDArray[np.float32] | None,
        random_actions: bool,
        episodes: int | None,
    ) -> int | None:
        """Writes time steps into ``buffers``; returns how many, or None when the environment failed."""
        space, rows, size = self.env.single_observation_space, buffers.obs, policy.spec.observation_size
        rows[0] = self._obs
        time_steps, ended, t = len(buffers.basic), 0, 0
        while t < time_steps and (episodes is None or ended < episodes):
            outputs = policy.outputs(rows[t])
            if random_actions:
                env_actions = actions = self.env.action_space.sample()
            else:
                actions = policy.mode(outputs) if noise is None else policy.sample(outputs, noise[t])
                env_actions = policy.to_env(actions)
            try:
                stepped, reward, terminated, truncated, infos = self.env.step(env_actions)
            except Exception as error:  # whatever an environment may raise
                self._recover(error)
                return None
            buffers.outputs[t], buffers.actions[t], buffers.env_actions[t] = outputs, actions, env_actions
            buffers.basic[t], buffers.terminated[t], buffers.truncated[t] = reward, terminated, truncated
            rows[t + 1, :, :size] = flatten_observations(space, stepped)
            if self._told:
                rows[t + 1, :, size:] = rows[t, :, size:]
            done = terminated | truncated
            if self._episodes.cuts:
                self._cut(buffers, t, done)
            if done.any():
                ended += int(done.sum())
                for n, final in final_observations(space, infos, done):
                    buffers.final_obs.append(
                        (t, n, np.concatenate((final, rows[t, n, size:])) if self._told else final)
                    )
                if self._told:
                    rows[t + 1, done, size:] = self._draws.take(int(done.sum()))
            if self._info_keys:
                write_infos({key: column[t] for key, column in buffers.infos.items()}, infos, done)
            t += 1
        self._obs = rows[t]
        return t

    def _cut(self, b: _Buffers, t: int, done: NDArray[np.bool_]) -> None:
        """Cuts first episodes off at different ages, once: environments that began together would also end together.

        A batch would otherwise hold the same part of all episodes, and every second one no end at all.
        """
        eps = self._episodes
        eps.age += 1
        eps.first &= ~done
        which = [n for n in eps.cuts.pop(eps.age, ()) if eps.first[n]]
        if which:
            b.final_obs += [(t, n, b.obs[t + 1, n].copy()) for n in which]
            b.truncated[t, which] = True
            b.cut.update((t, n) for n in which)
            restarted = flatten_observations(self.env.single_observation_space, self.env.restart(which))
            b.obs[t + 1, :, : restarted.shape[1]] = restarted
            if self._told:
                b.obs[t + 1, which, restarted.shape[1] :] = self._draws.take(len(which))

    def _try_env_reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """Resets all environments; makes them anew if that fails, a few times (the stock runner: without end)."""
        for attempt in range(1, MOST_RECOVERIES + 1):
            try:
                with self.metrics.log_time(ENV_RESET_TIMER):
                    obs, infos = self.env.reset(seed=seed, options=options)
            except Exception as error:  # whatever an environment may raise
                if attempt == MOST_RECOVERIES and self.config.restart_failed_sub_environments:
                    # In words alone: Ray copies errors and their causes, which users' own classes may not bear.
                    logger.error("a reset of %s failed again", self._env_name, exc_info=error)
                    why = f"{type(error).__name__}: {error}"
                    raise RuntimeError(f"{self._env_name} failed {attempt} times in a row in reset: {why}") from None
                self._recover(error, "reset")
            else:
                return obs, infos
        raise AssertionError("unreachable")

    def _recover(self, error: Exception, what: str = "step") -> None:
        """Makes the environments anew after one raised, as the stock runner does; what was sampled is discarded.

        Raises:
            RuntimeError: ``restart_failed_sub_environments`` is off.
        """
        self.metrics.log_value(NUM_ENV_STEP_FAILURES_LIFETIME, 1, reduce="lifetime_sum")
        if not self.config.restart_failed_sub_environments:
            raise RuntimeError(
                f"a {what} of {self._env_name} failed, and fault_tolerance(restart_failed_sub_environments=True) is off"
            ) from error
        if not isinstance(error, StepFailedRecreateEnvError):
            logger.error("a %s of %s failed; its environments are made anew", what, self._env_name, exc_info=error)
        self.make_env()

    def _finish(self, b: _Buffers, policy: NumpyPolicy) -> tuple[Rollout, int]:
        """Computes everything that is needed once per rollout."""
        obs, after, dist_inputs = b.obs[:-1], b.next_obs(), policy.complete(b.outputs)
        seen = after[..., : policy.spec.observation_size]
        addon, metrics = self._addon_values(b, seen)
        metrics += [self._per_step(metric, b, seen) for metric in self._step_metrics.values()]
        final_index = np.argwhere(b.truncated & ~b.terminated)
        rollout = Rollout(
            obs=obs,
            actions=b.actions,
            logp=policy.log_prob(dist_inputs, b.actions).astype(np.float32, copy=False),
            basic=b.basic,
            addon=addon,
            terminated=b.terminated,
            truncated=b.truncated,
            last_obs=self._obs.copy(),
            final_index=final_index,
            final_obs=after[final_index[:, 0], final_index[:, 1]],
            nonfinite=self._find_nonfinite(after, b.basic, addon, dist_inputs),
        )
        finished = self._count_episodes(b, addon, metrics)
        self.num_env_steps_sampled_lifetime += len(rollout)
        self._log_env_steps(metric=self._metrics_num_env_steps_sampled, num_steps=len(rollout))
        self._increase_sampled_metrics(len(rollout), finished)
        return rollout, finished

    def _addon_values(
        self, b: _Buffers, after: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """The add-on reward ``[T, N]``, and each of its parts where it has several."""
        if self._addon is None:
            return np.zeros(b.basic.shape, np.float32), []
        if not self._parts:
            return self._per_step(self._addon, b, after), []
        assert isinstance(self._addon, CompositeReward)
        values = self._addon.parts(*_flat(b, after, self._addon.info_keys))
        parts = [_checked(value, b, f"{self._addon!r}.parts") for value in values]
        return np.sum(parts, axis=0, dtype=np.float32), parts

    def _per_step(self, reward: AddonReward, b: _Buffers, after: NDArray[np.float32]) -> NDArray[np.float32]:
        """Evaluates a vectorised reward on all T*N steps at once: ``[T, N]``."""
        return _checked(reward(*_flat(b, after, reward.info_keys)), b, repr(reward))

    def _find_nonfinite(self, *arrays: NDArray[np.float32]) -> tuple[NonFinite, ...]:
        found = []
        for quantity, array in zip(
            ("observation", "reward", "add-on reward", "action distribution"), arrays, strict=True
        ):
            if np.isfinite(array).all():
                continue
            bad = ~np.isfinite(array)
            t, n = (int(i) for i in np.argwhere(bad)[0][:2])
            step = self.num_env_steps_sampled_lifetime + t * self.num_envs + n
            found.append(NonFinite(quantity, step, f"{self._env_name}, sub-environment {n}", int(bad.sum())))
        return tuple(found)

    # --- episodes and metrics

    def _count_episodes(self, b: _Buffers, addon: NDArray[np.float32], metrics: list[NDArray[np.float32]]) -> int:
        """Adds the rollout to the running episodes and records those that ended. Loops over ends, not steps."""
        done, eps = b.terminated | b.truncated, self._episodes
        sums = np.cumsum(np.stack([b.basic, addon, *metrics]), axis=1, dtype=np.float64)  # [2 + P + M, T, N]
        carried = np.concatenate((eps.basic[None], eps.addon[None], eps.metrics))  # [2 + P + M, N]
        start = np.zeros(self.num_envs, np.int64)
        offset = np.zeros_like(carried)
        now = time.perf_counter()
        ends = np.argwhere(done)
        for t, n in ends:
            length = int(eps.length[n] + t + 1 - start[n])
            total = carried[:, n] + sums[:, t, n] - offset[:, n]
            sums_of_parts, sums_of_metrics = total[2 : 2 + len(self._parts)], total[2 + len(self._parts) :]
            if (t, n) not in b.cut:
                self._finished.append(
                    {"length": length, "basic": total[0], "addon": total[1], "seconds": now - eps.started[n]}
                    | {f"addon_{name}_return": part for name, part in zip(self._parts, sums_of_parts, strict=True)}
                    | {name: s / length for name, s in zip(self._step_metrics, sums_of_metrics, strict=True)}
                )
            carried[:, n], offset[:, n], start[n] = 0.0, sums[:, t, n], t + 1
            eps.length[n], eps.started[n] = 0, now
        carried += sums[:, -1] - offset
        eps.length += done.shape[0] - start
        eps.basic, eps.addon, eps.metrics = carried[0], carried[1], carried[2:]
        return len(ends) - len(b.cut)

    def get_metrics(self) -> Any:
        """Metrics of the episodes that ended since the last call, in RLlib's form."""
        window = max(1, -(-self.config.metrics_num_episodes_for_smoothing // (self.config.num_env_runners or 1)))
        for episode in self._finished:
            self._log_episode_metrics(int(episode["length"]), episode["basic"], episode["seconds"])
            values = {
                "episode_basic_return_mean": episode["basic"],
                "episode_addon_return_mean": episode["addon"],
                "episode_total_return_mean": episode["basic"] + episode["addon"],
                **{f"episode_addon_{n}_return_mean": episode[f"addon_{n}_return"] for n in self._parts},
                **{f"episode_{name}_mean": episode[name] for name in self._step_metrics},
            }
            self.metrics.log_dict(values, window=window)
        self._finished.clear()
        return self.metrics.reduce()


def _flat(
    b: _Buffers, after: NDArray[np.float32], info_keys: tuple[str, ...]
) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.float32], dict[str, NDArray[np.float64]]]:
    """Returns the arguments of a vectorised reward: all T*N steps below each other."""
    steps = b.basic.size
    actions = b.env_actions.reshape(steps, *b.env_actions.shape[2:])
    infos = {key: b.infos[key].reshape(steps) for key in info_keys}
    obs = b.obs[:-1, :, : after.shape[-1]]  # without what the policy was told
    return obs.reshape(steps, -1), actions, after.reshape(steps, -1), infos


def _checked(values: Any, b: _Buffers, what: str) -> NDArray[np.float32]:
    """Checks the values of a vectorised reward and returns them as ``[T, N]``."""
    array, steps = np.asarray(values, np.float32), b.basic.size
    if array.shape != (steps,):
        raise ValueError(f"{what} returned shape {array.shape} for {steps} steps: expected ({steps},)")
    return array.reshape(b.basic.shape)
