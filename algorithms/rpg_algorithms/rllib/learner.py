"""The learner: rollouts → rewards → advantages → minibatch steps, on plain tensors.

The learner leaves out RLlib's episodes, connectors and bookkeeping per minibatch. It still calls ``before_`` and
``after_gradient_based_update``, logs metrics once per update, and lets RLlib save weights, optimizer and counters.

Dimension letters: T time steps, N environments, B = T * N samples, D observation size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.metrics import (
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
)
from ray.rllib.utils.schedules.scheduler import Scheduler
from torch import Tensor

from rpg_algorithms.maths.advantages import generalized_advantages, running_returns, spread, standardize
from rpg_algorithms.maths.conditioned import Conditioned, spreads
from rpg_algorithms.maths.objectives import (
    approximate_kl,
    clip_fraction,
    clipped_surrogate_objective,
    explained_variance,
    ppo_loss,
    value_loss,
)
from rpg_algorithms.maths.rewards import entropy_term, floored, prior_term, transformed_reward
from rpg_algorithms.policies.comparison import compare
from rpg_algorithms.policies.running import ToldScale
from rpg_algorithms.rllib.compiler import leave_out_compiler, step
from rpg_algorithms.rllib.fused import FusedUpdate, UpdateSettings
from rpg_algorithms.rllib.module import ActorCriticModule
from rpg_algorithms.rllib.rollout import NonFiniteError, RolloutBatch, TensorRollout, merge_rollouts

STATISTICS = ("policy_loss", "vf_loss", "approx_kl", "clip_fraction", "entropy", "grad_norm")

leave_out_compiler()


@dataclass(frozen=True)
class Samples:
    """One update's training samples, flat over time and environments.

    Attributes:
        obs: ``[B, D]`` what the policy's ``normalize`` gives; of one that is told weights ``[B, I]``.
        actions: ``[B, A]`` or ``[B]`` as sampled.
        logp_old: ``[B]`` under the policy that acted, nats.
        advantage: ``[B]``.
        target: ``[B]`` value targets.
    """

    obs: Tensor
    actions: Tensor
    logp_old: Tensor
    advantage: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All five, in order."""
        return self.obs, self.actions, self.logp_old, self.advantage, self.target

    def take(self, index: Tensor) -> Samples:
        """The samples at ``index``, in that order."""
        return Samples(*(x[index] for x in self.fields()))

    def rows(self, start: int, stop: int) -> Samples:
        """A view of consecutive samples."""
        return Samples(*(x[start:stop] for x in self.fields()))


class SPGLearner(TorchLearner):
    """Soft policy gradient's learner. Subclasses change the reward through ``transform_reward``."""

    compares_with_prior = False
    """Whether the reward compares log pi_theta with the prior's log pi; both must then be densities of one variable."""

    def build(self) -> None:
        """Builds module and optimizer, loads the prior, and makes all learners start equal."""
        super().build()
        module = self.actor_critic
        prior = self.config.prior
        if prior is not None:
            prior.check_spaces(module.observation_space, module.action_space, str(self.config.env))
            module.load_prior(prior, self.config.origin)
        weights = self.config.reward_weights()
        self._told = {name: value for name, value in weights.items() if isinstance(value, Conditioned)}
        self._weights = {
            name: Scheduler(value, framework="torch", device=self._device)
            for name, value in weights.items()
            if name not in self._told
        }
        self._return_carry: Tensor | None = None
        self._generator = torch.Generator()
        self._generator.manual_seed(torch.seed() if self.config.seed is None else self.config.seed)
        if self.distributed:
            with torch.no_grad():
                for tensor in module.state_dict().values():
                    torch.distributed.broadcast(tensor, src=0)
        self._fused = self._make_fused()

    def _make_fused(self) -> FusedUpdate | None:
        """Returns the fused engine of the minibatch steps, or None for autograd."""
        config, optimizer = self.config, self.get_optimizer(DEFAULT_MODULE_ID)
        if config.update_engine == "eager":
            return None
        if not FusedUpdate.supports(self.actor_critic, optimizer):
            if config.update_engine == "fused":
                raise ValueError("update_engine='fused' needs perceptrons with relu, tanh or elu on the CPU")
            return None
        settings = UpdateSettings(
            clip=config.clip_param,
            vf_loss_coeff=config.vf_loss_coeff,
            vf_clip=config.vf_clip_param,
            entropy_coeff=config.entropy_coeff,
            standardize=config.normalize_advantages == "minibatch",
            grad_clip=config.grad_clip,
        )
        average = self._average_flat if self.distributed else None
        return FusedUpdate(self.actor_critic, optimizer, settings, average)

    @property
    def actor_critic(self) -> ActorCriticModule:
        """The module that the learner trains."""
        module = self.module[DEFAULT_MODULE_ID]
        assert isinstance(module, ActorCriticModule)
        return module

    def _make_modules_ddp_if_necessary(self) -> None:
        """Wraps nothing: one flat all-reduce averages the gradients instead of DDP."""

    def get_parameters(self, module: Any) -> Sequence[Any]:
        """The trainable parameters: policy and critic, not the prior."""
        return [p for p in module.parameters() if p.requires_grad]

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Registers one Adam for policy and critic."""
        params = self.get_parameters(self._module[module_id])
        optimizer = torch.optim.Adam(params, eps=config.adam_epsilon, fused=True)
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=params, lr_or_lr_schedule=config.lr)

    @staticmethod
    def _set_optimizer_lr(optimizer: torch.optim.Optimizer, lr: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = float(lr)

    def set_state(self, state: Any) -> None:
        """Restores weights, optimizer and counters; minibatches go on with an order that the run has not used yet."""
        super().set_state(state)
        if self.config.seed is not None:
            self._generator.manual_seed(self.config.seed + 1_000_003 * self._weights_seq_no)

    # --- one update

    def update(self, *args: Any, training_data: Any = None, timesteps: Any = None, **kwargs: Any) -> Any:
        """Learns from a ``RolloutBatch``.

        Args:
            *args: other forms of training data, which are refused.
            training_data: the rollouts.
            timesteps: lifetime counters, which schedules follow.
            **kwargs: ``num_total_minibatches`` (per epoch; several learners take the same number) and RLlib's
                ``_no_metrics_reduce``.

        Returns:
            Reduced metrics.

        Raises:
            TypeError: training data of another kind.
            NonFiniteError: a loss became NaN or infinite.
        """
        if args or not isinstance(training_data, RolloutBatch):
            raise TypeError(f"{type(self).__name__}.update() takes training_data=RolloutBatch, got {training_data!r}")
        self._check_is_built()
        timesteps = timesteps or {}
        self.before_gradient_based_update(timesteps=timesteps)
        training_data.validate()
        rollout = TensorRollout.from_rollout(merge_rollouts(training_data.rollouts), self._device)
        fixed = self._current_weights(timesteps)
        warming_up = self._weights_seq_no < self._warmup_iterations
        self._weights_seq_no += 1
        with torch.no_grad():
            samples, statistics = self._prepare(rollout, {**fixed, **self._told_weights(rollout)})
        losses, steps = self._optimise(samples, warming_up, kwargs.get("num_total_minibatches", 0))
        bad = [name for name, value in losses.items() if value != value or abs(value) == float("inf")]
        if bad:
            raise NonFiniteError(
                f"{', '.join(bad)} is NaN or infinite in update {self._weights_seq_no} "
                f"(env step {int(timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0))}) on {self.config.env}"
            )
        self._update_observation_moments(rollout)
        statistics |= losses | {f"current_{name}": value for name, value in fixed.items()}
        statistics |= {"critic_warmup": float(warming_up), "weights_seq_no": float(self._weights_seq_no)}
        self._log(statistics, len(samples), steps)
        self.after_gradient_based_update(timesteps=timesteps)
        return None if kwargs.get("_no_metrics_reduce") else self.metrics.reduce()

    def _current_weights(self, timesteps: Mapping[str, Any]) -> dict[str, float]:
        step = int(timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0))
        return {name: float(schedule.update(timestep=step)) for name, schedule in self._weights.items()}

    def _told_weights(self, rollout: TensorRollout) -> dict[str, Tensor]:
        """The reward's weights ``[T, N]`` that differ from episode to episode: those that the policy was told."""
        spec = self.actor_critic.policy.spec
        columns = {each.name: spec.observation_size + k for k, each in enumerate(spec.context)}
        return {name: each.reward_weight(rollout.obs[..., columns[each.name]]) for name, each in self._told.items()}

    @property
    def _warmup_iterations(self) -> int:
        return 0 if self.config.origin is None else self.config.critic_warmup_iterations

    def transform_reward(
        self, rollout: TensorRollout, prior_logp: Tensor | None, weights: Mapping[str, float | Tensor]
    ) -> Tensor:
        """Returns the reward ``[T, N]`` behind the advantages: r_SPG on the weighted basic and add-on rewards."""
        return transformed_reward(weights, rollout.basic, rollout.addon, rollout.logp, prior_logp)

    def reward_terms(
        self, rollout: TensorRollout, prior_logp: Tensor | None, weights: Mapping[str, float | Tensor]
    ) -> dict[str, Tensor]:
        """Returns the mean per step of each term of the reward, for the metrics."""
        return {
            "reward_basic_term": weights["basic_weight"] * rollout.basic.mean(),
            "reward_addon_term": weights["addon_weight"] * rollout.addon.mean(),
            "reward_entropy_term": entropy_term(rollout.logp, weights["alpha"]).mean(),
        }

    def _prepare(
        self, rollout: TensorRollout, weights: Mapping[str, float | Tensor]
    ) -> tuple[Samples, dict[str, float]]:
        """Computes rewards, advantages and targets of a rollout, and the metrics that belong to them."""
        module, config = self.actor_critic, self.config
        shape, logp_old = rollout.basic.shape, rollout.logp.flatten()
        raw = rollout.obs.flatten(0, 1)
        obs = module.policy.normalize(raw)
        statistics: dict[str, Tensor] = {}
        prior_logp = None
        if module.prior is not None:
            of_prior = module.prior(raw[:, : module.prior.spec.observation_size])
            pair = compare(module.policy.spec, module.policy.head(obs), module.prior.spec, of_prior)
            own_logp, prior_logp = pair.log_probs(rollout.actions.flatten(0, 1))
            prior_logp = prior_logp.view(shape)
            if own_logp is not None and self.compares_with_prior:  # another family: see ``policies.comparison``
                rollout = replace(rollout, logp=own_logp.view(shape))
            statistics["kl_to_prior"] = pair.kl().mean()
            statistics["kl_to_prior_estimated"] = torch.tensor(float(pair.estimated), device=obs.device)
        reward = self.transform_reward(rollout, prior_logp, weights)
        statistics |= self.reward_terms(rollout, prior_logp, weights)
        if config.scale_rewards:
            scale = self._update_reward_scale(reward, rollout)
            statistics["reward_scale"] = scale.log().mean().exp()
            reward = reward / scale.to(reward.dtype)
        value = module.values(obs).view(shape)
        next_value = self._next_values(rollout, value)
        advantage = generalized_advantages(
            reward, value, next_value, rollout.terminated, rollout.done, config.gamma, config.lambda_
        )
        target = advantage + value
        statistics["vf_explained_var"] = explained_variance(value.flatten(), target.flatten())
        statistics["advantage_std"] = advantage.std()
        if config.normalize_advantages == "batch":
            advantage = standardize(advantage)
        samples = Samples(obs, rollout.actions.flatten(0, 1), logp_old, advantage.flatten(), target.flatten())
        names = list(statistics)
        values = torch.stack([statistics[name].double() for name in names]).tolist()
        return samples, dict(zip(names, values, strict=True))

    def _next_values(self, rollout: TensorRollout, value: Tensor) -> Tensor:
        """Returns V(s_{t+1}) ``[T, N]``: of the next row, the last observation, or a truncated step's final one."""
        module = self.actor_critic
        extra = torch.cat((rollout.last_obs, rollout.final_obs))
        extra_value = module.values(module.policy.normalize(extra))
        num_envs = rollout.last_obs.shape[0]
        next_value = torch.cat((value[1:], extra_value[None, :num_envs]))
        if len(rollout.final_index):
            t, n = rollout.final_index.unbind(1)
            next_value[t, n] = extra_value[num_envs:]
        return next_value

    def _update_reward_scale(self, reward: Tensor, rollout: TensorRollout) -> Tensor:
        """Merges the spread of the discounted returns into the running scale and returns it: one, or ``[T, N]``.

        This one factor divides the whole transformed reward, so its weights keep their ratio. The critic's values, of
        rewards that were divided by the scale before, move with it.
        """
        module, done = self.actor_critic, rollout.done
        if self._return_carry is None or self._return_carry.shape != reward.shape[1:]:
            self._return_carry = torch.zeros_like(reward[0])
        returns, self._return_carry = running_returns(reward, done, self.config.gamma, self._return_carry)
        if isinstance(module.reward_scale, ToldScale):
            u = rollout.obs[..., module.policy.spec.observation_size :]
            sums = self._summed(ToldScale.sums(*spreads(returns, done, u)))
            everywhere = self._gathered(u.flatten(0, 1))  # all learners' critics move by one factor
            module.rescale_values(module.reward_scale.merge(sums, everywhere))
            return module.reward_scale.at(u)
        everybody = self._gathered(returns.flatten())
        module.rescale_values(module.reward_scale.merge(spread(everybody), len(everybody)))
        return module.reward_scale.value

    def _update_observation_moments(self, rollout: TensorRollout) -> None:
        """Merges this rollout's observations after the update, so the whole update used one normalisation."""
        normalizer = self.actor_critic.policy.normalizer
        if normalizer is not None and self.config.origin is None:  # else it stays the origin's
            size = self.actor_critic.policy.spec.observation_size
            normalizer.merge(self._summed(normalizer.sums(rollout.obs[..., :size].flatten(0, 1))))

    # --- minibatch steps

    def _optimise(self, samples: Samples, warming_up: bool, minibatches: int) -> tuple[dict[str, float], int]:
        """Epochs of minibatch steps; returns mean statistics and the number of samples taken.

        Once a minibatch's KL exceeds ``target_kl``, the critic goes on alone: it needs all steps to follow the returns.
        """
        config, size = self.config, min(self.config.minibatch_size or len(samples), len(samples))
        minibatches = minibatches or len(samples) // size
        history: list[Tensor] = []
        alone = warming_up
        for _ in range(config.num_epochs):
            order = torch.randperm(len(samples), generator=self._generator).to(samples.target.device)
            shuffled, taken = samples.take(order), 0
            if not alone:
                table, taken = self._epoch(shuffled, size, minibatches)
                history.append(table)
                alone = taken < minibatches
            rows = [self._critic_step(shuffled.rows(i * size, (i + 1) * size)) for i in range(taken, minibatches)]
            if warming_up:
                history.append(torch.stack(rows))
        table = torch.cat(history)
        result = dict(zip(STATISTICS, table.mean(0).tolist(), strict=True))
        result["epochs"] = len(table) / minibatches
        result["approx_kl_max"] = float(table[:, STATISTICS.index("approx_kl")].max())
        return result, config.num_epochs * minibatches * size

    def _epoch(self, shuffled: Samples, size: int, minibatches: int) -> tuple[Tensor, int]:
        """Takes steps of policy and critic until a minibatch's KL exceeds ``target_kl``.

        Returns:
            ``STATISTICS`` of every minibatch that was looked at, and the number of steps taken.
        """
        limit = float("inf") if self.config.target_kl is None else self.config.target_kl
        if self._fused is not None:
            return self._fused.epoch(*shuffled.fields(), size, minibatches, limit)
        rows: list[Tensor] = []
        for i in range(minibatches):
            loss, statistics = self.minibatch_loss(shuffled.rows(i * size, (i + 1) * size), warming_up=False)
            is_far = limit < float("inf") and float(self._averaged(statistics[2].clone())) > limit
            rows.append(torch.stack((*statistics, torch.zeros_like(loss) if is_far else self._step(loss))).detach())
            if is_far:
                return torch.stack(rows), i
        return torch.stack(rows), minibatches

    def _critic_step(self, batch: Samples) -> Tensor:
        """One gradient step of the critic alone; returns ``STATISTICS``."""
        loss, statistics = self.minibatch_loss(batch, warming_up=True)
        return torch.stack((*statistics, self._step(loss))).detach()

    def _step(self, loss: Tensor) -> Tensor:
        """One gradient step; returns the gradient's norm before it is clipped."""
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        params = [p for p in optimizer.param_groups[0]["params"] if p.grad is not None]
        if self.distributed:
            self._average_gradients(params)
        limit = float("inf") if self.config.grad_clip is None else self.config.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(params, limit)
        step(optimizer)
        return norm

    def minibatch_loss(self, batch: Samples, warming_up: bool) -> tuple[Tensor, list[Tensor]]:
        """PPO's loss on a minibatch: the critic's alone while it warms up.

        Args:
            batch: training samples.
            warming_up: whether the policy is held still.

        Returns:
            Scalar loss with gradient, and the statistics of it in ``STATISTICS``' order but for the gradient norm.
        """
        config, module = self.config, self.actor_critic
        critic_loss = value_loss(module.values(batch.obs), batch.target, config.vf_clip_param)
        zero = torch.zeros((), device=critic_loss.device)
        if warming_up:
            loss = config.vf_loss_coeff * critic_loss.mean()
            return loss, [zero, critic_loss.mean(), zero, zero, zero]
        distribution = module.action_distribution(module.policy.head(batch.obs))
        logp = distribution.log_prob(batch.actions)
        advantage = batch.advantage
        if config.normalize_advantages == "minibatch" and len(advantage) > 1:
            advantage = standardize(advantage)
        surrogate = clipped_surrogate_objective(logp, batch.logp_old, advantage, config.clip_param)
        entropy = distribution.entropy()
        loss = ppo_loss(surrogate, critic_loss, entropy, config.vf_loss_coeff, config.entropy_coeff)
        with torch.no_grad():
            statistics = [
                -surrogate.mean(),
                critic_loss.mean(),
                approximate_kl(logp, batch.logp_old),
                clip_fraction(logp, batch.logp_old, config.clip_param),
                -logp.mean() if entropy is None else entropy.mean(),
            ]
        return loss, statistics

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: Mapping[str, Any], fwd_out: Mapping[str, Any]
    ) -> Tensor:
        """RLlib's loss interface on a batch of its own columns; the same loss as ``minibatch_loss``."""
        obs = self.actor_critic.policy.normalize(batch[Columns.OBS])
        samples = Samples(
            obs,
            batch[Columns.ACTIONS],
            batch[Columns.ACTION_LOGP],
            batch[Postprocessing.ADVANTAGES],
            batch[Postprocessing.VALUE_TARGETS],
        )
        return self.minibatch_loss(samples, warming_up=False)[0]

    # --- between learners

    def _average_flat(self, flat: Tensor) -> None:
        torch.distributed.all_reduce(flat)
        flat /= self.config.num_learners

    def _average_gradients(self, params: Sequence[Tensor]) -> None:
        flat = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
        self._average_flat(flat)
        for p, part in zip(params, torch.split(flat, [p.numel() for p in params]), strict=True):
            p.grad = part.view_as(p)

    def _summed(self, x: Tensor) -> Tensor:
        if self.distributed:
            torch.distributed.all_reduce(x)
        return x

    def _gathered(self, x: Tensor) -> Tensor:
        """All learners' samples ``[B, ...]``, below each other."""
        if not self.distributed:
            return x
        parts = [torch.empty_like(x) for _ in range(self.config.num_learners)]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def _averaged(self, x: Tensor) -> Tensor:
        return self._summed(x) / self.config.num_learners if self.distributed else x

    # --- metrics

    def _log(self, statistics: Mapping[str, float], env_steps: int, module_steps: int) -> None:
        self.metrics.log_dict(dict(statistics), key=DEFAULT_MODULE_ID, window=1)
        for module_id in (ALL_MODULES, DEFAULT_MODULE_ID):
            self.metrics.log_value((module_id, NUM_MODULE_STEPS_TRAINED), module_steps, reduce="sum")
            self.metrics.log_value((module_id, NUM_MODULE_STEPS_TRAINED_LIFETIME), module_steps, reduce="lifetime_sum")
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED), env_steps, reduce="sum")
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME), env_steps, reduce="lifetime_sum")


class RPGLearner(SPGLearner):
    """Residual policy gradient's learner: SPG's with r_RPG for a reward."""

    compares_with_prior = True

    def transform_reward(
        self, rollout: TensorRollout, prior_logp: Tensor | None, weights: Mapping[str, float | Tensor]
    ) -> Tensor:
        """r_RPG: the basic reward does not enter."""
        assert prior_logp is not None
        if self.config.prior_logp_floor is not None:
            median = self._gathered(prior_logp.flatten()).median()
            prior_logp = floored(prior_logp, median, self.config.prior_logp_floor)
        return super().transform_reward(rollout, prior_logp, weights)

    def reward_terms(
        self, rollout: TensorRollout, prior_logp: Tensor | None, weights: Mapping[str, float | Tensor]
    ) -> dict[str, Tensor]:
        """Means of r_R, omega_prime * log pi and -alpha_hat * log pi_theta per step."""
        assert prior_logp is not None
        return {
            "reward_addon_term": weights["addon_weight"] * rollout.addon.mean(),
            "reward_prior_term": prior_term(prior_logp, weights["omega_prime"]).mean(),
            "reward_entropy_term": entropy_term(rollout.logp, weights["alpha_hat"]).mean(),
        }
