"""One trial of a sweep, as a Tune trainable around an SPG or RPG ``Algorithm``.

A trial trains until its env-step budget is used up and is saved; then it evaluates the policy on the fixed seeds and
leaves it as a prior bundle in its last checkpoint. The method ``prior`` trains nothing: it is the prior, evaluated the
same way.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pyarrow.fs import LocalFileSystem
from ray import tune
from ray.rllib.core import DEFAULT_MODULE_ID

import rpg_platform
from rpg_algorithms.addons import part_names
from rpg_algorithms.policies.bundle import PriorBundle, PriorCard, save_bundle
from rpg_algorithms.policies.network import PolicyNetwork
from rpg_algorithms.policies.temperature import ENTROPY_IN_LOSS, temperature_of
from rpg_algorithms.rllib.rollout import NonFiniteError
from rpg_platform import logs
from rpg_platform.bundles import versions
from rpg_platform.evaluation.episode_file import EvaluatedPolicy, Which, write_episodes
from rpg_platform.evaluation.play import Episodes, as_card_returns, as_metrics, evaluate_both, pooled
from rpg_platform.evaluation.points import Reward, at_points, weights_at
from rpg_platform.evaluation.validation import Best, Validation
from rpg_platform.results.report import (
    BEST,
    ENV_STEPS,
    ENV_STEPS_PER_S,
    EVALUATION_STEPS_PER_S,
    FAILED,
    FINAL,
    FINISHED,
    KL_ESTIMATED,
    POINTS,
    SELECTION,
    Mode,
    Where,
)
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.spec.task import get_task, task_label
from rpg_platform.storage.trial_state import read_state, write_state
from rpg_platform.tasks.environments import spaces_of
from rpg_platform.trial.config import METRIC, algorithm_config
from rpg_platform.trial.room import checkpoint_room
from rpg_platform.trial.sizes import checkpoint_bytes, iterations_per_report, networks_of

if TYPE_CHECKING:
    from rpg_algorithms import SPG

Weights: TypeAlias = tuple[tuple[str, float], ...]
_STEPS = "num_env_steps_sampled_lifetime"
_REPLACING_PAUSE_S = 0.5
_LEARNER_KEYS = {
    "reward_basic_term": "reward_basic_term",
    "reward_addon_term": "reward_addon_term",
    "reward_prior_term": "reward_prior_term",
    "reward_entropy_term": "reward_entropy_term",
    "kl_to_prior": "kl_to_prior",
    "kl_to_prior_estimated": KL_ESTIMATED,
    "entropy": "entropy",
    "clip_fraction": "clip_fraction",
    "approx_kl": "approx_kl",
    "policy_loss": "policy_loss",
    "vf_loss": "vf_loss",
    "vf_explained_var": "explained_variance",
    "reward_scale": "reward_scale",
    "default_optimizer_learning_rate": "learning_rate",
}
_PEAKS = {"kl_to_prior": "kl_to_prior_peak", "approx_kl_max": "approx_kl_peak"}
"""Of what a report has the highest value of all its iterations, and under which key."""
_EPISODE_KEYS = {
    "episode_basic_return_mean": "basic_return",
    "episode_addon_return_mean": "addon_return",
    "episode_total_return_mean": "total_return",
    f"episode_{METRIC}_mean": "task_metric",
    "episode_len_mean": "episode_length",
}


class CustomizationTrial(tune.Trainable):
    """Runs one ``TrialSpec``, given as ``config["trial"]``; the prior comes as a parameter.

    Reports (flat, see ``docs/architecture.md``) come about 200 times a trial; the last has ``done`` and the evaluation,
    and otherwise repeats the report of the end of training.
    """

    algo: SPG | None

    def setup(
        self,
        config: dict[str, Any],
        prior: PriorBundle | None = None,
        start: PriorBundle | None = None,
        checkpoints: Mapping[str, str] | None = None,
    ) -> None:
        """Takes what the trial is; the prior bundle was read once by the driver.

        Args:
            config: the trial, under ``trial``.
            prior: the sweep's prior.
            start: the policy that training starts from instead of it.
            checkpoints: trial id → checkpoint to go on from, a local path or a URI.
        """
        self.trial = TrialSpec.model_validate(config["trial"])
        self._given_prior, self._start = (prior, start) if METHODS[self.trial.method].uses_prior else (None, None)
        logs.about(sweep=self.trial.sweep, trial=self.trial.trial_id, seed=self.trial.seed)
        self._checkpoint = (checkpoints or {}).get(self.trial.trial_id)
        self._evaluated: dict[Which, EvaluatedPolicy] = {}
        self._env_steps = 0
        self.algo = None
        self._is_built = False
        self._last_report: dict[str, Any] = {}

    def build(self, restore: bool = True) -> None:
        """Makes environments and algorithm, the first time that they are needed.

        Not in ``setup``: of a trial that hangs or fails there Tune knows nothing yet, so nobody would end or retry it.

        Args:
            restore: go on from the checkpoint that an earlier attempt left, where there is one.
        """
        if self._is_built:
            return
        self.task = get_task(self.trial.task)
        self._spaces = spaces_of(self.task)
        self.prior = self._given_prior
        self.prior_network = None if self.prior is None else self.prior.build()
        self._validation = Validation(
            self.trial.evaluation,
            self.trial.objective,
            self.trial.env_steps,
            self.task,
            self.prior_network,
            self.trial.rungs,
        )
        if METHODS[self.trial.method].trains:
            built = algorithm_config(self.trial, self.task, self.prior, self._start)
            assert built.algo_class is not None
            self.algo = built.algo_class(config=built, storage=self._storage)
        self._is_built = True
        start = self.trial.starts_from
        checkpoint = self._checkpoint or (None if start is None else start.checkpoint)
        if restore and checkpoint is not None:
            with tune.Checkpoint(checkpoint).as_directory() as folder:
                self.load_checkpoint(folder)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Lets Tune reuse this process for the next trial: a new one takes seconds to import everything."""
        self.cleanup()
        self.setup(new_config)  # Tune's with_parameters gives prior and checkpoints again
        return True

    def step(self) -> dict[str, Any]:
        """Trains for one report's worth of iterations or, when the budget is used up and that is saved, evaluates."""
        self.build()
        if self.algo is None or self._env_steps >= self.trial.env_steps:
            report = (self._last_report or self._report({})) | {"should_checkpoint": False}
            self._last_report = report | self._evaluate() | {"done": True, FINISHED: True}
            return self._last_report
        started, before = time.perf_counter(), self._env_steps
        try:
            report = self._report(self._train(self.algo))
        except NonFiniteError as error:  # it would come again from the last checkpoint: this trial alone ends
            self._last_report = self._report({}) | {"done": True, FAILED: f"NonFiniteError: {error}"}
            return self._last_report
        report[ENV_STEPS_PER_S] = (self._env_steps - before) / (time.perf_counter() - started)
        every = self.trial.checkpoint.every_env_steps
        is_trained = self._env_steps >= self.trial.env_steps  # saved first: whatever the evaluation does, it is kept
        report["should_checkpoint"] = is_trained or (every is not None and self._env_steps // every > before // every)
        if self._validation.due(before, self._env_steps):
            report |= self._validation.consider(self.policy(), self._env_steps, self._reward())
        report |= self._validation.at_rungs()
        self._last_report = report
        return report

    def _train(self, algo: SPG) -> dict[str, Any]:
        """One report's worth of iterations; the last one's result, with the peaks of all."""
        result: dict[str, Any] = {}
        peaks: dict[str, float] = {}
        for _ in range(iterations_per_report(self.trial)):
            if self._env_steps >= self.trial.env_steps:
                break
            result = self._iterate(algo)
            self._env_steps = int(result["env_runners"][_STEPS])
            learner = result["learners"][DEFAULT_MODULE_ID]
            for key, name in _PEAKS.items():
                if key in learner:
                    peaks[name] = max(peaks.get(name, 0.0), float(learner[key]))
        return result | {"peaks": peaks}

    def _iterate(self, algo: SPG) -> dict[str, Any]:
        """One iteration; RLlib comes back without one while env runners are being replaced, and is asked again."""
        while True:
            result: dict[str, Any] = algo.train()
            if result.get("env_runners", {}).get(_STEPS, 0) > self._env_steps:
                return result
            time.sleep(_REPLACING_PAUSE_S)  # for ever, if it comes to that: the watchdog ends what makes no report

    def _report(self, result: Mapping[str, Any]) -> dict[str, Any]:
        report: dict[str, Any] = {ENV_STEPS: float(self._env_steps), "done": False, FINISHED: False}
        report["code"] = running_code()
        learner = result.get("learners", {}).get(DEFAULT_MODULE_ID, {})
        episodes = result.get("env_runners", {})
        parts = {f"episode_addon_{n}_return_mean": f"addon/{n}_return" for n in part_names(self.task.addon)}
        for source, names in ((learner, _LEARNER_KEYS), (episodes, _EPISODE_KEYS | parts)):
            report |= {name: float(source[key]) for key, name in names.items() if key in source}
        report |= result.get("peaks", {})
        report["nonfinite_values"] = float(result.get("nonfinite_values", 0.0))
        report["env_failures"] = float(episodes.get("num_env_step_failures", 0.0))
        report["env_runner_restarts"] = float(result.get("fault_tolerance", {}).get("num_remote_worker_restarts", 0.0))
        return report

    def _evaluate(self) -> dict[str, Any]:
        """Plays the evaluation's episodes with the final policy and, if that is another, with the best.

        The final policy plays the selection's episodes too.
        """
        settings, best, started = self.trial.evaluation, self._validation.best, time.perf_counter()
        final = self._play(self.policy(), settings.episodes, settings.seed, self._env_steps)
        seconds = time.perf_counter() - started
        pools: dict[Where, dict[Weights, dict[Mode, Episodes]]] = {FINAL: final}
        steps = sum(float(episodes.episode_length.sum()) for each in final.values() for episodes in each.values())
        if count := settings.episodes_to_choose_by:
            pools[SELECTION] = self._play(self.policy(), count, settings.selection_seed, self._env_steps)
        if best is not None:
            is_final = best.env_steps == self._env_steps
            pools[BEST] = (
                final if is_final else self._play(best.network, settings.episodes, settings.seed, best.env_steps)
            )
        whole = {where: pooled(list(each.values())) for where, each in pools.items()}
        self._evaluated = {"final": EvaluatedPolicy(self._env_steps, settings.seed, whole[FINAL])}
        metrics: dict[str, Any] = {EVALUATION_STEPS_PER_S: steps / seconds}
        if best is not None:
            self._evaluated["best"] = EvaluatedPolicy(best.env_steps, settings.seed, whole[BEST])
            metrics[f"{BEST}/{ENV_STEPS}"] = float(best.env_steps)
        for where, results in whole.items():
            metrics |= as_metrics(results, where)
        if self.trial.told:
            metrics[POINTS] = [self._point(pools, key, best) for key in final]
        return metrics

    def _play(
        self, policy: PolicyNetwork, episodes: int, seed: int, env_steps: int
    ) -> dict[Weights, dict[Mode, Episodes]]:
        """Weights that the policy is told → its episodes there; of a plain policy none."""
        reward, most = self._reward(), self.trial.evaluation.max_steps
        found: dict[Weights, dict[Mode, Episodes]] = {}
        for told, plain in at_points(policy, self.trial.evaluation):
            weights = None if reward is None else weights_at(reward, env_steps, told)
            found[tuple(told.items())] = evaluate_both(
                plain, self.task, episodes, seed, self.prior_network, weights=weights, max_steps=most
            )
        return found

    def _point(self, pools: Mapping[Where, Mapping[Weights, Any]], key: Weights, best: Best | None) -> dict[str, Any]:
        report: dict[str, Any] = {} if best is None else {f"{BEST}/{ENV_STEPS}": float(best.env_steps)}
        for where, each in pools.items():
            report |= as_metrics(each[key], where)
        return {"weights": dict(key), "report": report}

    def _reward(self) -> Reward | None:
        """The weights of the reward that is trained on; None where nothing is trained."""
        return None if self.algo is None else self.algo.config.reward_weights()

    def policy(self) -> PolicyNetwork:
        """The policy as it is now: the learner's, or the prior itself."""
        if self.algo is None:
            assert self.prior_network is not None
            return self.prior_network
        module = self.algo.get_module()
        assert module is not None
        network: PolicyNetwork = module.policy
        return network

    # --- checkpoints

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The algorithm's checkpoint, the policy and the best so far as bundles, and this trial's own counters.

        Raises:
            DiskFullError: there is no room for it; the checkpoint before stays as it is.
        """
        self.build()
        folder = Path(checkpoint_dir)
        with checkpoint_room(folder, self._local_storage(), self._checkpoint_bytes()):
            self._write_checkpoint(folder)

    def _checkpoint_bytes(self) -> int:
        """Size of a checkpoint, as it is estimated before there is one."""
        return checkpoint_bytes(self.trial, networks_of(self.trial, *self._spaces, self.prior))

    def _local_storage(self) -> str | None:
        """The folder that checkpoints are copied to, where it is on a file system of this machine."""
        storage = self._storage
        is_local = storage is not None and isinstance(storage.storage_filesystem, LocalFileSystem)
        return storage.storage_fs_path if is_local else None

    def _write_checkpoint(self, folder: Path) -> None:
        if FAILED in self._last_report:  # nothing of it is worth keeping; the checkpoint before is
            write_state(folder, self._env_steps, self._last_report)
            return
        if self.algo is not None:
            self.algo.save_to_path(str(folder / "algorithm"))
            (folder / "config").mkdir(exist_ok=True)
            everything = json.dumps(self.algo.config.to_dict(), default=str, indent=2, sort_keys=True)
            (folder / "config" / "algorithm_config.json").write_text(everything, encoding="utf-8")
        save_bundle(folder / "bundle", self.policy(), self._card("final", self._env_steps))
        self._validation.save(folder, lambda best: self._card("best", best.env_steps))
        if self._evaluated:
            write_episodes(folder, self.trial.trial_id, self._evaluated)
        write_state(folder, self._env_steps, self._last_report)

    def load_checkpoint(self, checkpoint_dir: str | dict[str, Any] | None) -> None:
        """Restores weights, optimizer, normaliser and counters; the environments start anew."""
        assert isinstance(checkpoint_dir, str)
        self.build(restore=False)
        folder, start = Path(checkpoint_dir), self.trial.starts_from
        if start is not None and int(read_state(folder)["env_steps"]) <= start.until_env_steps:
            with tune.Checkpoint(start.checkpoint).as_directory() as other:
                self._restore(Path(other))
        else:
            self._restore(folder)

    def _restore(self, folder: Path) -> None:
        if self.algo is not None:
            self.algo.restore_from_path(str(folder / "algorithm"))
        state = read_state(folder)
        self._env_steps, self._last_report = int(state["env_steps"]), dict(state["report"])
        self._validation.load(folder)

    def _card(self, which: Which, env_steps: int) -> PriorCard:
        trial = self.trial
        returns = as_card_returns(self._evaluated[which].results) if which in self._evaluated else {}
        if self.prior is not None and self.algo is None:
            return self.prior.card.model_copy(update={"returns": returns or self.prior.card.returns})
        descent = {} if self.prior is None else self.prior.card.descent()
        start = None if self._start is None else self._start.card
        assert self.algo is not None
        settings = self.algo.config.to_dict()
        return PriorCard.describe(
            trial.sweep,
            self.task.env_id,
            *self._spaces,
            self.policy().spec,
            env_kwargs=dict(self.task.env_kwargs),
            alpha=temperature_of(settings),
            returns=returns,
            **descent,
            made_by={
                "versions": versions("ray", "torch", "numpy", "gymnasium", "mujoco"),
                "env_steps": env_steps,
                "trial": trial.trial_id,
                **trial.model_dump(mode="json", include={"sweep", "prior", "method", "weights", "seed"}),
                **({"alpha_unknown": ENTROPY_IN_LOSS} if settings["entropy_coeff"] else {}),
                **({} if start is None else {"start": {"name": start.name, "content_hash": start.content_hash}}),
                "task": task_label(trial.task),
                **({} if isinstance(trial.task, str) else {"task_spec": trial.model_dump(mode="json")["task"]}),
                "training": trial.training.model_dump(mode="json", exclude_none=True),
            },
        )

    def cleanup(self) -> None:
        """Ends the algorithm's actors and environments."""
        if self.algo is not None:
            self.algo.stop()
            self.algo = None


def running_code() -> str:
    """Which of perhaps several installed copies of the package this process runs: its version and its folder."""
    return f"rpg {rpg_platform.__version__} from {Path(rpg_platform.__file__).parent}"
