"""Soft policy gradient as an RLlib algorithm (Residual Policy Gradient, arXiv 2503.11019)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import ALL_MODULES, COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
    WEIGHTS_SEQ_NO,
)

from rpg_algorithms.addons import resolve_addon
from rpg_algorithms.maths.conditioned import Conditioned
from rpg_algorithms.maths.schedules import Weight, check_weight
from rpg_algorithms.policies.bundle import PriorBundle, load_bundle
from rpg_algorithms.rllib.env_runner import RolloutEnvRunner
from rpg_algorithms.rllib.learner import SPGLearner
from rpg_algorithms.rllib.module import ActorCriticModule, NetworkConfig
from rpg_algorithms.rllib.rollout import NonFiniteError, RolloutBatch
from rpg_algorithms.rllib.vector_env import EnvBackend

UpdateEngine = Literal["auto", "fused", "eager"]
AdvantageNormalization = Literal["minibatch", "batch", "none"]
_EPISODE_CALLBACKS = ("on_episode_created", "on_episode_start", "on_episode_step", "on_episode_end")


class SPGConfig(AlgorithmConfig):
    """Configures SPG: PPO on ``r - alpha * log pi_theta``.

    PPO is ``alpha=0``; repeat-entropy PPO sets ``entropy_coeff`` as well; the paper's full policy is
    ``basic_weight=omega, addon_weight=1`` with an ``addon_reward``.

    Example:
        >>> config = SPGConfig().environment("HalfCheetah-v5").training(alpha=0.1, lr=[[0, 4e-4], [2_000_000, 0.0]])
        >>> algo = config.build_algo()
    """

    _CAN_BE_TOLD: tuple[str, ...] = ("alpha",)

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or SPG)
        self.alpha: Weight | Conditioned = 0.1
        self.basic_weight: Weight = 1.0
        self.addon_weight: Weight = 0.0
        self.addon_reward: Any = None
        self.step_metrics: dict[str, Any] = {}
        self.prior: PriorBundle | str | Path | None = None
        self.start_from_prior = True
        self.start: PriorBundle | str | Path | None = None
        self.critic_warmup_iterations = 10
        self.lr = 3e-4
        self.gamma = 0.99
        self.lambda_ = 0.95
        self.clip_param = 0.2
        self.entropy_coeff = 0.0
        self.vf_loss_coeff = 0.5
        self.vf_clip_param: float | None = None
        self.target_kl: float | None = 0.1
        self.normalize_advantages: AdvantageNormalization = "minibatch"
        self.scale_rewards = True
        self.adam_epsilon = 1e-5
        self.env_backend: EnvBackend = "auto"
        self.update_engine: UpdateEngine = "auto"
        self.grad_clip: float | None = 0.5
        self.num_epochs = 10
        self.minibatch_size = 256
        self._train_batch_size_per_learner = 4096
        self.num_env_runners = 0
        self.num_envs_per_env_runner = 8
        self.env_runner_cls = RolloutEnvRunner
        self.rollout_fragment_length = "auto"

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The actor-critic module."""
        return RLModuleSpec(module_class=ActorCriticModule)

    def get_default_learner_class(self) -> type[SPGLearner]:
        """SPG's learner."""
        return SPGLearner

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        prior = self.prior
        return dataclasses.asdict(NetworkConfig()) | {
            "prior_network": prior.network_spec.to_dict() if isinstance(prior, PriorBundle) else None,
            "start_from_prior": self.start_from_prior,
            "context": [each.to_dict() for each in self.told_weights()],
        }

    def environment(self, *args: Any, env_backend: EnvBackend = NotProvided, **kwargs: Any) -> Self:
        """Sets the environment.

        Args:
            *args: see RLlib.
            env_backend: the engine that steps the environment: ``gymnasium``; ``envpool`` (an extra, for gymnasium ids
                that it has, without keyword arguments); or ``auto``, which takes envpool where it is faster.
            **kwargs: see RLlib.

        Returns:
            This configuration.
        """
        super().environment(*args, **kwargs)
        if env_backend is not NotProvided:
            self.env_backend = env_backend
        return self

    def training(
        self,
        *,
        alpha: Weight | Conditioned = NotProvided,
        basic_weight: Weight = NotProvided,
        addon_weight: Weight = NotProvided,
        addon_reward: Any = NotProvided,
        step_metrics: Mapping[str, Any] = NotProvided,
        prior: PriorBundle | str | Path | None = NotProvided,
        start_from_prior: bool = NotProvided,
        start: PriorBundle | str | Path | None = NotProvided,
        critic_warmup_iterations: int = NotProvided,
        lambda_: float = NotProvided,
        clip_param: float = NotProvided,
        entropy_coeff: float = NotProvided,
        vf_loss_coeff: float = NotProvided,
        vf_clip_param: float | None = NotProvided,
        target_kl: float | None = NotProvided,
        normalize_advantages: AdvantageNormalization = NotProvided,
        scale_rewards: bool = NotProvided,
        adam_epsilon: float = NotProvided,
        update_engine: UpdateEngine = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets the training settings.

        Args:
            alpha: entropy temperature, reward per nat: a number, a schedule ``[[0, v], [env_step, v], ...]``, or a
                range (``Conditioned``) of which each episode's policy is told a value.
            basic_weight: weight of the environment's own reward.
            addon_weight: weight of ``addon_reward``.
            addon_reward: an ``AddonReward``, a plain function with its arguments, or ``module:function``.
            step_metrics: name → vectorised function like an add-on reward, averaged over each episode's steps and
                reported as ``env_runners/episode_<name>_mean``.
            prior: a ``PriorBundle`` or a bundle's folder. It is read at once; checkpoints carry it.
            start_from_prior: start with the prior's weights and its frozen observation normaliser (default), or from
                scratch; the policy may then have another family than the prior (see ``policies.comparison``).
            start: start with the weights of this bundle, which has the prior's network, rather than with the prior's:
                to go on from a customised policy. The prior stays what is kept. A bundle or its folder.
            critic_warmup_iterations: training iterations in which the critic alone learns, when starting from a prior.
            lambda_: GAE's lambda.
            clip_param: half-width of PPO's clipping.
            entropy_coeff: weight of an entropy bonus in the loss, besides the one in the reward.
            vf_loss_coeff: weight of the critic's squared error.
            vf_clip_param: upper bound of a sample's squared error; None for none.
            target_kl: once the approximate KL of a minibatch exceeds this, nats, the critic alone takes the update's
                remaining steps; None for never.
            normalize_advantages: standardise advantages per ``minibatch``, over the whole ``batch``, or not (``none``).
            scale_rewards: divide the whole transformed reward by the running spread of its discounted return (see
                ``maths.advantages.spread``).
            adam_epsilon: Adam's epsilon.
            update_engine: the engine of the minibatch steps: ``fused`` (numpy without autograd, for perceptrons on the
                CPU), ``eager`` (autograd, for any network and for GPUs) or ``auto``, which takes fused where it can.
            **kwargs: RLlib's own: lr, gamma, grad_clip, num_epochs, minibatch_size, train_batch_size_per_learner, ...

        Returns:
            This configuration.
        """
        super().training(**kwargs)
        given = {k: v for k, v in locals().items() if k not in ("self", "kwargs", "__class__") and v is not NotProvided}
        for name in ("prior", "start"):
            if isinstance(given.get(name), (str, Path)):
                given[name] = load_bundle(given[name])
        if "step_metrics" in given:
            given["step_metrics"] = dict(given["step_metrics"])
        for name, value in given.items():
            setattr(self, name, value)
        return self

    @property
    def origin(self) -> PriorBundle | None:
        """The policy whose weights and observation normaliser the training starts from; None: from scratch."""
        origin = (self.start or self.prior) if self.start_from_prior else None
        return origin if isinstance(origin, PriorBundle) else None

    def reward_weights(self) -> dict[str, Weight | Conditioned]:
        """The weights of the reward's terms, each a number, a schedule or a range."""
        alpha = self.alpha.named("alpha") if isinstance(self.alpha, Conditioned) else self.alpha
        return {"alpha": alpha, "basic_weight": self.basic_weight, "addon_weight": self.addon_weight}

    def told_weights(self) -> tuple[Conditioned, ...]:
        """The weights that the policy is told a value of."""
        given = ((name, getattr(self, name)) for name in self._CAN_BE_TOLD)
        return tuple(value.named(name) for name, value in given if isinstance(value, Conditioned))

    def validate(self) -> None:
        """Checks all settings against each other.

        Raises:
            ValueError: names the setting, its value and what was expected.
        """
        super().validate()
        self.prior, self.start = (
            load_bundle(each) if isinstance(each, (str, Path)) else each for each in (self.prior, self.start)
        )
        self._validate_network()
        self._validate_numbers()
        self._validate_sampling()
        for name, value in self.reward_weights().items():
            if isinstance(value, Conditioned):
                self._check_told(name, value)
                continue
            check_weight(name, value, minimum=None if name in ("basic_weight", "addon_weight") else 0.0)
        if self.addon_reward is not None:
            resolve_addon(self.addon_reward)
        elif not self._is_zero(self.addon_weight):
            self._value_error(f"addon_weight={self.addon_weight!r} but no addon_reward is given")

    def _check_told(self, name: str, value: Conditioned) -> None:
        if name in ("basic_weight", "addon_weight"):
            self._value_error(f"{name}={value!r}: a range is possible for {', '.join(self._CAN_BE_TOLD)} alone")
        value.check(name)

    @staticmethod
    def _is_zero(weight: Weight | Conditioned) -> bool:
        if isinstance(weight, Conditioned):
            return False
        return not any(p[1] for p in weight) if isinstance(weight, (list, tuple)) else weight == 0

    def _validate_network(self) -> None:
        known = {f.name for f in dataclasses.fields(NetworkConfig)}
        given = set(self._model_config if isinstance(self._model_config, dict) else vars(self._model_config))
        if unknown := sorted(given - known):
            self._value_error(f"model_config has unknown settings {unknown}; NetworkConfig knows {sorted(known)}")
        fixed = sorted(k for k in given if not k.startswith("critic_") and self._differs_from_default(k))
        distribution = self.model_config["distribution"]
        for what, bundle in (("prior", self.prior), ("start", self.start)):
            if isinstance(bundle, PriorBundle) and bundle.network_spec.context:
                names = ", ".join(each.name for each in bundle.network_spec.context)
                self._value_error(
                    f"{what} {bundle.card.name!r} is a policy for a range of {names}, expected a policy at one "
                    "setting: fold it at the weights that you choose (PolicyNetwork.folded, or `rpg export --weights`)"
                )
        self._validate_start()
        origin = self.origin
        if origin is not None:
            dataclasses.replace(origin.network_spec, context=self.told_weights())  # says what does not go together
            its = origin.network_spec.distribution
            if distribution not in (None, its):
                self._value_error(
                    f"model_config distribution={distribution!r} with start_from_prior=True, but the prior is "
                    f"{its!r}: a policy of another family cannot start from its weights; set start_from_prior=False"
                )
            distribution = its
        if fixed and origin is not None:
            self._value_error(
                f"model_config sets {fixed}, but a policy that starts from its prior has the prior's network; "
                "drop them or set start_from_prior=False"
            )
        if self.entropy_coeff and distribution == "squashed_gaussian":
            self._value_error(
                f"entropy_coeff={self.entropy_coeff} with distribution='squashed_gaussian': its entropy has no closed "
                "form; use alpha, which is an entropy reward"
            )

    def _validate_start(self) -> None:
        if not isinstance(self.start, PriorBundle):
            return
        prior = self.prior
        if not isinstance(prior, PriorBundle) or not self.start_from_prior:
            raise ValueError(
                f"start={self.start.card.name!r}: it takes the place of the prior's weights at the start, so it needs "
                "a prior and start_from_prior=True"
            )
        given, wanted = self.start.network_spec.to_dict(), prior.network_spec.to_dict()
        if others := [name for name in wanted if given[name] != wanted[name] and name != "log_std_init"]:
            words = ", ".join(f"{name} {given[name]} (the prior's: {wanted[name]})" for name in others)
            self._value_error(f"start={self.start.card.name!r}: expected the prior's network, but it has {words}")

    def _differs_from_default(self, name: str) -> bool:
        value, default = self.model_config[name], getattr(NetworkConfig(), name)
        return (list(value) if isinstance(value, tuple) else value) != (
            list(default) if isinstance(default, tuple) else default
        )

    def _validate_numbers(self) -> None:
        for name, low, high in (
            ("gamma", 0.0, 1.0),
            ("lambda_", 0.0, 1.0),
            ("clip_param", 1e-6, float("inf")),
            ("entropy_coeff", 0.0, float("inf")),
            ("vf_loss_coeff", 0.0, float("inf")),
            ("critic_warmup_iterations", 0, float("inf")),
            ("num_epochs", 1, float("inf")),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                self._value_error(f"{name}={value!r}: expected a number between {low} and {high}")
        for name in ("vf_clip_param", "target_kl", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                self._value_error(f"{name}={value!r}: expected a positive number or None")
        for name, choices in (
            ("normalize_advantages", get_args(AdvantageNormalization)),
            ("env_backend", get_args(EnvBackend)),
            ("update_engine", get_args(UpdateEngine)),
        ):
            if getattr(self, name) not in choices:
                self._value_error(f"{name}={getattr(self, name)!r}: expected one of {choices}")
        if self.grad_clip is not None and self.grad_clip_by != "global_norm":
            self._value_error(f"grad_clip_by={self.grad_clip_by!r}: only 'global_norm' is implemented")

    def _validate_sampling(self) -> None:
        if self.in_evaluation:
            return
        envs = self.num_envs_per_env_runner * (self.num_env_runners or 1)
        batch, learners = self.total_train_batch_size, self.num_learners or 1
        if self.rollout_fragment_length == "auto" and batch % envs:
            self._value_error(
                f"train_batch_size_per_learner={self.train_batch_size_per_learner} (x {learners} learners) is not a "
                f"multiple of the {envs} environments (num_env_runners x num_envs_per_env_runner)"
            )
        if envs % learners:
            self._value_error(f"{envs} environments cannot be split evenly between num_learners={learners}")
        if self.minibatch_size and self.minibatch_size > self.train_batch_size_per_learner:
            self._value_error(
                f"minibatch_size={self.minibatch_size} is larger than train_batch_size_per_learner="
                f"{self.train_batch_size_per_learner}"
            )
        if self.batch_mode != "truncate_episodes":
            self._value_error(f"batch_mode={self.batch_mode!r}: only 'truncate_episodes' is implemented")
        for callback in force_list(self.callbacks_class):
            overridden = [n for n in _EPISODE_CALLBACKS if getattr(callback, n, None) is not getattr(RLlibCallback, n)]
            if overridden:
                self._value_error(
                    f"callbacks {callback.__name__}.{overridden} are per episode; this env runner hands back arrays, "
                    "not episodes: use step_metrics or on_sample_end"
                )
        for name in ("_env_to_module_connector", "_module_to_env_connector", "_learner_connector"):
            if getattr(self, name, None) is not None:
                self._value_error(
                    f"{name[1:]}: connectors are not used by this env runner; wrap the environment instead"
                )


class SPG(Algorithm):
    """Soft policy gradient on RLlib's new API stack."""

    @classmethod
    def get_default_config(cls) -> SPGConfig:
        """SPG's default configuration."""
        return SPGConfig()

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Restores a checkpoint and waits until every env runner acts with the restored policy.

        RLlib's own sync is dropped where an env runner still has the first one, of the initial weights, before it.
        """
        super().restore_from_path(path, *args, **kwargs)
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, inference_only=True, timeout_seconds=None
        )

    def _sync_weights(self) -> None:
        """Sends the policy to the env runners; to one in this process directly, not through the object store."""
        if self.env_runner is None or self.env_runner_group.num_remote_workers():
            self.env_runner_group.sync_weights(
                from_worker_or_learner_group=self.learner_group, policies=[DEFAULT_MODULE_ID], inference_only=True
            )
            return
        component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}/{DEFAULT_MODULE_ID}"
        state = self.learner_group.get_state(components=[component], inference_only=True)[COMPONENT_LEARNER]
        self.env_runner.set_state({key: state[key] for key in (COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO)})

    def training_step(self) -> None:
        """Samples one batch of rollouts, learns from it and sends the weights back.

        Raises:
            NonFiniteError: a reward, observation, action or loss was NaN or infinite.
        """
        config = self.config
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            rollouts, results = synchronous_parallel_sample(
                worker_set=self.env_runner_group,
                max_env_steps=config.total_train_batch_size,
                sample_timeout_s=config.sample_timeout_s,
                _uses_new_env_runners=True,
                _return_metrics=True,
            )
            if not rollouts:
                return
            self.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        found = [bad for rollout in rollouts for bad in rollout.nonfinite]
        self.metrics.log_value("nonfinite_values", sum(bad.count for bad in found), reduce="lifetime_sum")
        if found:
            raise NonFiniteError("; ".join(map(str, found)))
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            learner_results = self.learner_group.update(
                training_data=RolloutBatch(rollouts),
                timesteps={
                    NUM_ENV_STEPS_SAMPLED_LIFETIME: self.metrics.peek(
                        (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)
                    ),
                    NUM_MODULE_STEPS_TRAINED_LIFETIME: self.metrics.peek(
                        (LEARNER_RESULTS, ALL_MODULES, NUM_MODULE_STEPS_TRAINED_LIFETIME), default=0
                    ),
                },
                minibatch_size=config.minibatch_size,
            )
            self.metrics.aggregate(learner_results, key=LEARNER_RESULTS)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self._sync_weights()
