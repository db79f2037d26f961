"""How frameworks name the parts of a policy in the files that torch.save writes: one row of ``LAYOUTS`` each.

A new framework is a row. Names are regular expressions of whole names; ``state_dict`` says how a row is used. Numbers
that a file does not hold (epsilons, clips, bounds) are those of the framework's sources:

- CleanRL 1.0 (cleanrl/*.py), rsl_rl 1.0 to 5.5 (modules/actor_critic.py, normalizer.py; models/mlp_model.py,
  modules/distribution.py), rl_games 1.6 (algos_torch/models.py, network_builder.py, running_mean_std.py), skrl 1.4 and
  2.1 (models/torch/gaussian.py, resources/preprocessors), Tianshou 0.5 to 2.0 (utils/net, utils/statistics.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

NOT_THE_POLICY = re.compile(
    r"critic\w*|_actor_critic|central\w*|ass?ym\w*|privileged\w*|memory_c|value\w*|v|vf\w*|qf?\d*|qf?\d*_\w+|"
    r"\w*target\w*|\w+_old|teacher\w*|rnd\w*|log_alpha|alpha|_alpha|\w*optim\w*|\w*scheduler\w*|scaler"
)
"""Parts of a dotted name that say that it belongs to a critic, a target, a teacher or an optimizer."""


@dataclass(frozen=True)
class Statistics:
    """Where an observation normaliser stands, and what it computes: ``clip((x - mean) / spread)``.

    Attributes:
        at: its possible places, in the policy or at the top of the file; the first that is there counts.
        mean, var: the names of its mean and variance ``[D]``.
        epsilon: added to ``added_to``; the file's own ``eps`` or ``epsilon`` goes before it.
        clip: bound on the absolute value; None for none. The file's own ``clip_max`` goes before it.
        added_to: ``var``: spread = sqrt(var + epsilon); ``std``: spread = sqrt(var) + epsilon.
    """

    at: tuple[str, ...]
    mean: str
    var: str
    epsilon: float
    clip: float | None
    added_to: Literal["var", "std"] = "var"


@dataclass(frozen=True)
class Layout:
    """One row: how the policy of a framework's file is told, and what its parts mean.

    Attributes:
        name: of the card, such as ``rsl_rl`` or ``cleanrl/ppo``.
        called: what messages call it.
        marks: each must be the name of something in the file.
        layers: linear layers from observation to mean or logits: a pattern with a group is the layers of a sequence
            by their number, one without is one layer, which may be missing unless ``marks`` has it.
        activation: behind each layer but the last, by the framework's default; None where there is no default.
        under: name of the dictionary that holds the policy; None for any.
        acts_in: kind of the action space.
        family: of continuous actions; None where the framework knows both and ``gaussian`` is its default.
        log_std, std: name of a free (log) standard deviation.
        head: linear layer of a log standard deviation beside the last layer.
        sigma: the (log) standard deviation may be either, as the file does not say; ``--second-output`` does.
        bounds: of the log standard deviation, nats.
        by: how they are kept.
        tanh: without a standard deviation, the action is tanh of the last layer.
        scaled: actions in -1 to 1 are rescaled to the environment's bounds.
        statistics: its observation normalisers.
        notes: what the import takes for granted, for the user to read.
        unnormalised: a note where no normaliser is found.
        refused: why files of this layout are not read; None where they are.
    """

    name: str
    called: str
    marks: tuple[str, ...]
    layers: tuple[str, ...] = ()
    activation: str | None = None
    under: str | None = None
    acts_in: Literal["box", "discrete", "any"] = "box"
    family: Literal["gaussian", "squashed_gaussian"] | None = "gaussian"
    log_std: str | None = None
    std: str | None = None
    head: str | None = None
    sigma: bool = False
    bounds: tuple[float, float] | None = None
    by: Literal["clamp", "tanh"] = "clamp"
    tanh: bool = False
    scaled: bool = False
    statistics: tuple[Statistics, ...] = ()
    notes: tuple[str, ...] = ()
    unnormalised: str = "the file holds no observation normaliser: observations are taken as they are"
    refused: str | None = None

    @property
    def framework(self) -> str:
        """Its name in messages."""
        return self.called.partition("'")[0]

    def fits(self, names: Collection[str], under: str) -> bool:
        """Whether the names in a dictionary, which itself is called ``under``, are those of this layout."""
        return (self.under is None or re.fullmatch(self.under, under) is not None) and all(
            any(re.fullmatch(mark, name) for name in names) for mark in self.marks
        )


# gymnasium's RunningMeanStd as it is, and Tianshou's, which has its own eps and clip_max
_RUNNING = Statistics(("obs_rms",), "mean", "var", 1e-8, 10.0)
_CLEANRL = Layout(
    "cleanrl/ppo",
    "CleanRL's ppo_continuous_action",
    marks=(r"actor_mean\.\d+\.weight", "actor_logstd"),
    layers=(r"actor_mean\.(\d+)",),
    activation="tanh",
    log_std="actor_logstd",
    statistics=(_RUNNING,),
    unnormalised=(
        "CleanRL's ppo_continuous_action normalises observations and the file does not hold the statistics: "
        "give them with --normalizer stats.npz (arrays mean and var), unless this agent was trained without"
    ),
)
_EMPIRICAL = Statistics(
    ("actor_obs_normalizer", "student_obs_normalizer", "obs_normalizer", "obs_norm_state_dict"),
    "_mean",
    "_var",
    epsilon=1e-2,
    clip=None,
    added_to="std",
)
_RSL_RL = Layout(
    "rsl_rl",
    "rsl_rl's checkpoint",
    marks=(r"actor\.\d+\.weight", "std|log_std"),
    layers=(r"actor\.(\d+)",),
    activation="elu",
    log_std="log_std",
    std="std",
    statistics=(_EMPIRICAL,),
)
_RL_GAMES = Layout(
    "rl_games",
    "rl_games' checkpoint",
    marks=(r"a2c_network\.mu\.weight",),
    layers=(r"a2c_network\.actor_mlp\.(\d+)", r"a2c_network\.mu"),
    activation="elu",
    log_std=r"a2c_network\.sigma",
    head=r"a2c_network\.sigma",
    sigma=True,
    scaled=True,
    statistics=(Statistics(("running_mean_std",), "running_mean", "running_var", 1e-5, 5.0),),
    notes=("its mean is taken without an activation behind it (rl_games' mu_activation: None)",),
)
_SKRL = Layout(
    "skrl",
    "skrl's checkpoint",
    marks=(r"(\w+_container|net)\.\d+\.weight", "log_std_parameter"),
    layers=(r"(?:\w+_container|net)\.(\d+)", "(?:policy|mean|output)_layer"),
    activation="elu",
    log_std="log_std_parameter",
    bounds=(-20.0, 2.0),
    statistics=(
        Statistics(
            ("observation_preprocessor", "state_preprocessor"), "running_mean", "running_variance", 1e-8, 5.0, "std"
        ),
    ),
    notes=("its mean is taken as its last layer gives it (skrl's output: ACTIONS, not tanh(ACTIONS))",),
)
_TIANSHOU_STATISTICS = (replace(_RUNNING, epsilon=1.1920928955078125e-07),)


def _tianshou(within: str) -> tuple[Layout, ...]:
    """Tianshou's actors; since 2.0 they stand within the ``policy`` of an algorithm."""
    actor = f"{within}actor\\."
    body = f"{actor}preprocess\\.model\\.model\\.(\\d+)"
    plain = Layout(
        "tianshou/ppo",
        "Tianshou's policy",
        marks=(f"{actor}preprocess\\..*", f"{actor}mu\\.model\\.\\d+\\.weight"),
        layers=(body, f"{actor}mu\\.model\\.(\\d+)"),
        activation="relu",
        family=None,
        log_std=f"{actor}sigma_param",
        head=f"{actor}sigma\\.model\\.0",
        bounds=(-20.0, 2.0),
        scaled=True,
        statistics=_TIANSHOU_STATISTICS,
        notes=("its mean is taken as its last layer gives it (Tianshou's unbounded=True, as in its examples)",),
    )
    critics = r"critics?\d*_old\..*"
    last = replace(
        plain,
        marks=(f"{actor}preprocess\\..*", f"{actor}last\\.model\\.\\d+\\.weight"),
        layers=(body, f"{actor}last\\.model\\.(\\d+)"),
        log_std=None,
        head=None,
        scaled=False,
        notes=(),
    )
    return (
        replace(
            plain,
            name="tianshou/sac",
            called="Tianshou's SAC",
            marks=(*plain.marks, f"{actor}sigma\\.model\\.0\\.weight", critics),
            family="squashed_gaussian",
            scaled=False,
            notes=(),
        ),
        plain,
        replace(
            last,
            name="tianshou/td3-or-ddpg",
            called="Tianshou's TD3 or DDPG",
            marks=(*last.marks, critics),
            family="squashed_gaussian",
            tanh=True,
        ),
        replace(last, name="tianshou/discrete", acts_in="discrete"),
    )


_PERCEPTRON = Layout(
    "perceptron",
    "a perceptron",
    marks=(r"((actor|actor_net|actor_mean|policy|policy_net|pi|mu|mean|mlp|net|layers|model)\.)*\d+\.weight",),
    layers=(r"(?:(?:actor|actor_net|actor_mean|policy|policy_net|pi|mu|mean|mlp|net|layers|model)\.)*(\d+)",),
    acts_in="any",
    family=None,
    log_std="(actor_|action_)?log_?std",
    std="(actor_|action_)?std",
    statistics=(_RUNNING,),
)

LAYOUTS: tuple[Layout, ...] = (
    _CLEANRL,
    replace(
        _CLEANRL,
        name="cleanrl/sac",
        called="CleanRL's SAC",
        marks=(r"fc_mean\.weight", r"fc_logstd\.weight"),
        layers=(r"fc(\d+)", "fc_mean"),
        activation="relu",
        family="squashed_gaussian",
        log_std=None,
        head="fc_logstd",
        bounds=(-5.0, 2.0),
        by="tanh",
        unnormalised=Layout.unnormalised,
    ),
    replace(
        _CLEANRL,
        name="cleanrl/td3-or-ddpg",
        called="CleanRL's TD3 or DDPG",
        marks=(r"fc_mu\.weight",),
        layers=(r"fc(\d+)", "fc_mu"),
        activation="relu",
        family="squashed_gaussian",
        log_std=None,
        tanh=True,
        unnormalised=Layout.unnormalised,
    ),
    _RSL_RL,
    replace(_RSL_RL, marks=(r"student\.\d+\.weight", "std|log_std"), layers=(r"student\.(\d+)",)),
    replace(
        _RSL_RL,
        marks=(r"mlp\.\d+\.weight", r"(distribution\.)?(log_)?std(_param)?"),
        layers=(r"mlp\.(\d+)",),
        log_std=r"log_std|distribution\.log_std_param",
        std=r"std|distribution\.std_param",
        bounds=(math.log(1e-6), math.log(1e6)),
    ),
    replace(  # whose standard deviation is the second half of its outputs
        _RSL_RL,
        marks=(r"(actor|mlp)\.\d+\.weight",),
        layers=(r"(?:actor|mlp)\.(\d+)",),
        under="(model|actor|student)_state_dict",
        bounds=(math.log(1e-6), math.log(1e6)),
    ),
    _RL_GAMES,
    replace(
        _RL_GAMES,
        marks=(r"a2c_network\.logits\.weight",),
        layers=(r"a2c_network\.actor_mlp\.(\d+)", r"a2c_network\.logits"),
        acts_in="discrete",
        notes=(),
    ),
    Layout(
        "rl_games/sac",
        "rl_games' SAC",
        marks=(r"(sac_network\.)?actor\.trunk\.\d+\.weight",),
        refused="the bounds of its log standard deviation stand in its configuration alone; bring it as "
        "module:function, or as TorchScript or ONNX that returns (mean, log_std)",
    ),
    _SKRL,
    replace(
        _SKRL,
        marks=(r"\w+_container\.\d+\.weight",),
        under="policy",
        acts_in="any",
        log_std=None,
        family=None,
        notes=(),
    ),
    *_tianshou(""),
    *_tianshou(r"policy\."),
    replace(
        _CLEANRL,
        called="CleanRL's ppo with a shared network",
        marks=(r"network\.\d+\.weight", r"actor\.weight"),
        layers=(r"network\.(\d+)", "actor"),
        activation="relu",
        acts_in="discrete",
        log_std=None,
        unnormalised=Layout.unnormalised,
    ),
    Layout(
        "dqn",
        "a network of action values",
        marks=(r"(q_network|network|model_old|q_net\w*|policy\.model)\.([\w.]+\.)?\d+\.weight",),
        refused="its names are those of DQN's network of action values, which acts greedily: it is no stochastic "
        "policy. If it is one, save the layers of the actor alone, or bring it as module:function",
    ),
    replace(
        _CLEANRL,
        called="CleanRL's ppo",
        marks=(r"actor\.\d+\.weight",),
        layers=(r"actor\.(\d+)",),
        acts_in="discrete",
        log_std=None,
        unnormalised=Layout.unnormalised,
    ),
    _PERCEPTRON,
)
