"""What the configurations refuse, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback
from tests.algorithms.registry import CASES, addon, make_prior

from rpg_algorithms import NetworkConfig, RPGConfig, SPGConfig
from rpg_algorithms.maths.schedules import check_weight, scale_weight
from rpg_algorithms.policies.bundle import PriorBundle, load_bundle


class CountSteps(RLlibCallback):
    """Wants to be called at each step, for which there are no episodes here."""

    def on_episode_step(self, **kwargs: Any) -> None:
        pass


def spg(**training: Any) -> SPGConfig:
    return CASES["spg-gaussian"].build_config(Path(), **training)


ONE_WAY = "give exactly one of omega_prime and alpha_hat, omega and alpha_hat, or kl_coefficient"
# weights given to RPG (on top of a prior that records alpha = 0.2, and an add-on) → message
RPG_WEIGHTS: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "RPG's weights are missing: give omega_prime and alpha_hat"),
    "alpha_hat alone": ({"alpha_hat": 0.1}, r"omega_prime \(or omega\) is missing beside alpha_hat"),
    "omega_prime alone": ({"omega_prime": 0.1}, "alpha_hat is missing beside omega_prime"),
    "omega alone": ({"omega": 0.1}, "alpha_hat is missing beside omega"),
    "both omegas": (
        {"omega": 1.0, "omega_prime": 0.1, "alpha_hat": 0.1},
        rf"more than one way \(alpha_hat, omega, omega_prime\): {ONE_WAY}",
    ),
    "kl and omega_prime": (
        {"kl_coefficient": 0.1, "omega_prime": 0.1},
        rf"more than one way \(kl_coefficient, omega_prime\): {ONE_WAY}",
    ),
    "kl and alpha_hat": ({"kl_coefficient": 0.1, "alpha_hat": 0.1}, "more than one way"),
    "negative": ({"omega_prime": -0.1, "alpha_hat": 0.1}, r"omega_prime=-0\.1: expected at least 0"),
    "nan": ({"omega_prime": float("nan"), "alpha_hat": 0.1}, "omega_prime=nan: expected a finite number or a schedule"),
    "text": ({"omega_prime": "0.1", "alpha_hat": 0.1}, "omega_prime='0.1': expected a finite number"),
    "bool": ({"kl_coefficient": True}, "kl_coefficient=True: expected a finite number"),
    "schedule of one point": (
        {"kl_coefficient": [[0, 0.1]]},
        r"kl_coefficient=\[\[0, 0\.1\]\]: expected a schedule .* of at least two points",
    ),
    "schedule that starts late": ({"kl_coefficient": [[5, 0.1], [9, 0.2]]}, "starts at env step 0, not 5"),
    "schedule that goes back": ({"kl_coefficient": [[0, 0.1], [9, 0.2], [9, 0.3]]}, "with increasing env steps"),
    "schedule of fractions": ({"kl_coefficient": [[0, 0.1], [9.5, 0.2]]}, "with whole env steps"),
    "negative in a schedule": ({"kl_coefficient": [[0, 0.1], [9, -0.2]]}, "expected at least 0"),
}


@pytest.mark.parametrize("what", RPG_WEIGHTS)
def test_rpgs_weights_are_given_in_one_way(what: str, tmp_path: Path) -> None:
    weights, message = RPG_WEIGHTS[what]
    config = RPGConfig().environment("Walk-v0").training(prior=make_prior(tmp_path), addon_reward=addon, **weights)
    with pytest.raises(ValueError, match=message):
        config.validate()


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"omega_prime": 0.1, "alpha_hat": 0.1}, True),
        ({"omega": 0.1, "alpha_hat": 0.1}, True),
        ({"omega_prime": 0.1, "alpha_hat": 0.1, "gamma": 0.95}, False),
        ({"omega_prime": 0.0, "alpha_hat": 0.1}, False),  # greedy: log pi is not in the reward
        ({"kl_coefficient": 0.1}, False),  # a penalty, whatever the prior was trained for
    ],
)
def test_a_discount_other_than_the_priors_is_told(
    settings: dict[str, Any], warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prior = load_bundle(make_prior(tmp_path))
    card = prior.card.model_copy(update={"made_by": {"training": {"gamma": 0.95}}})
    config = RPGConfig().environment("Walk-v0").training(prior=PriorBundle(card, prior.weights), addon_reward=addon)
    config.training(**settings).validate()
    told = [record.message for record in caplog.records if record.name == "rpg_algorithms.rllib.rpg"]
    assert bool(told) == warns
    assert all("gamma is 0.99, but the prior 'random' was trained at 0.95" in text for text in told)


# settings of SPG's training() → message
SPG_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "alpha": ({"alpha": -0.1}, r"alpha=-0\.1: expected at least 0"),
    "alpha infinite": ({"alpha": float("inf")}, "alpha=inf: expected a finite number"),
    "gamma": ({"gamma": 1.2}, r"gamma=1\.2: expected a number between 0\.0 and 1\.0"),
    "lambda": ({"lambda_": -0.1}, r"lambda_=-0\.1: expected a number between 0\.0 and 1\.0"),
    "clip": ({"clip_param": 0.0}, r"clip_param=0\.0: expected a number between"),
    "entropy_coeff": ({"entropy_coeff": -1.0}, r"entropy_coeff=-1\.0: expected a number between 0\.0"),
    "vf_loss_coeff": ({"vf_loss_coeff": "half"}, "vf_loss_coeff='half': expected a number"),
    "vf_clip_param": ({"vf_clip_param": 0.0}, r"vf_clip_param=0\.0: expected a positive number or None"),
    "target_kl": ({"target_kl": 0.0}, r"target_kl=0\.0: expected a positive number or None"),
    "grad_clip": ({"grad_clip": -1.0}, r"grad_clip=-1\.0: expected a positive number or None"),
    "grad_clip_by": ({"grad_clip_by": "value"}, "grad_clip_by='value': only 'global_norm' is implemented"),
    "epochs": ({"num_epochs": 0}, "num_epochs=0: expected a number between 1"),
    "warm-up": ({"critic_warmup_iterations": -1}, "critic_warmup_iterations=-1: expected a number between 0"),
    "normalisation": (
        {"normalize_advantages": "always"},
        "normalize_advantages='always': expected one of .*'minibatch'",
    ),
    "add-on without a reward": ({"addon_weight": 1.0}, r"addon_weight=1\.0 but no addon_reward is given"),
    "add-on unknown": ({"addon_reward": "math:nothing"}, "addon_reward=math:nothing: .*has no attribute 'nothing'"),
    "add-on malformed": ({"addon_reward": "math.sin"}, "addon_reward='math.sin': expected 'module:function'"),
    "add-on no function": ({"addon_reward": 3}, "addon_reward=3: expected a callable or 'module:function'"),
    "add-on module": ({"addon_reward": "no_such_module:f"}, "addon_reward=no_such_module:f: No module named"),
    "batch": (
        {"train_batch_size_per_learner": 130},
        r"train_batch_size_per_learner=130 .* multiple of the 4 environments",
    ),
    "minibatch": ({"minibatch_size": 4096}, "minibatch_size=4096 is larger than train_batch_size_per_learner=128"),
}


@pytest.mark.parametrize("what", SPG_SETTINGS)
def test_settings_out_of_range_are_refused(what: str) -> None:
    settings, message = SPG_SETTINGS[what]
    spg().validate()  # good before
    with pytest.raises(ValueError, match=message):
        spg(**settings).validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.env_runners(batch_mode="complete_episodes"), "only 'truncate_episodes' is implemented"),
        (lambda c: c.callbacks(CountSteps), r"callbacks CountSteps\.\['on_episode_step'\] are per episode"),
        (lambda c: c.env_runners(env_to_module_connector=lambda *a, **k: None), "connectors are not used"),
        (lambda c: c.learners(num_learners=3), "cannot be split evenly between num_learners=3"),
        (
            lambda c: c.rl_module(model_config={"hiden": (8,)}),
            r"model_config has unknown settings \['hiden'\]; NetworkConfig knows .*'hidden'",
        ),
        (
            lambda c: c.rl_module(model_config=NetworkConfig(distribution="squashed_gaussian")).training(
                entropy_coeff=0.1
            ),
            "its entropy has no closed form",
        ),
    ],
)
def test_what_this_env_runner_cannot_do_is_refused(change: Any, message: str) -> None:
    config = spg().training(train_batch_size_per_learner=128)
    change(config)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_a_network_beside_a_prior_to_start_from_is_refused(tmp_path: Path) -> None:
    config = CASES["rpg-gaussian"].build_config(tmp_path)
    config.rl_module(model_config=NetworkConfig(hidden=(32,), critic_hidden=(16,)))
    with pytest.raises(ValueError, match=r"model_config sets \['hidden'\], .* set start_from_prior=False"):
        config.validate()
    CASES["rpg-gaussian"].build_config(tmp_path).rl_module(model_config=NetworkConfig(critic_hidden=(16,))).validate()


@pytest.mark.parametrize(
    ("name", "instead"), [("alpha", "use alpha_hat"), ("basic_weight", "use omega_prime or omega")]
)
def test_rpg_refuses_spgs_weights(name: str, instead: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=0\.1 is SPG's; RPG never sees the basic reward: {instead}"):
        RPGConfig().training(**{name: 0.1})


def test_rpg_needs_a_prior_and_an_addon(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prior=None: RPG customises a prior"):
        RPGConfig().training(addon_reward=addon, kl_coefficient=0.1).validate()
    with pytest.raises(ValueError, match="addon_reward=None: RPG needs the reward of the added requirement"):
        RPGConfig().training(prior=make_prior(tmp_path), kl_coefficient=0.1).validate()


def test_omega_needs_a_prior_that_records_its_alpha(tmp_path: Path) -> None:
    config = RPGConfig().training(prior=make_prior(tmp_path, alpha=None), addon_reward=addon, omega=1.0, alpha_hat=0.1)
    with pytest.raises(ValueError, match=r"omega=1\.0: prior 'random' records no alpha"):
        config.environment("Walk-v0").validate()


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="omega_prim"):
        RPGConfig().training(omega_prim=0.1)


# --- what the weights become


@pytest.mark.parametrize(
    ("given", "omega_prime", "alpha_hat"),
    [
        ({"omega_prime": 0.3, "alpha_hat": 0.1}, 0.3, 0.1),
        ({"omega": 1.5, "alpha_hat": 0.1}, 0.3, 0.1),  # the prior's alpha is 0.2
        ({"kl_coefficient": 0.25}, 0.25, 0.25),
        ({"omega": [[0, 1.0], [10, 0.5]], "alpha_hat": 0.0}, [[0, 0.2], [10, 0.1]], 0.0),
    ],
)
def test_every_way_gives_the_two_weights(
    tmp_path: Path, given: dict[str, Any], omega_prime: Any, alpha_hat: Any
) -> None:
    config = RPGConfig().training(prior=make_prior(tmp_path), addon_reward=addon, **given)
    weights = config.reward_weights()
    assert weights["alpha_hat"] == alpha_hat
    assert weights["addon_weight"] == 1.0
    found = weights["omega_prime"]
    if isinstance(omega_prime, list):
        assert [list(map(float, p)) for p in found] == [pytest.approx(p) for p in omega_prime]
    else:
        assert found == pytest.approx(omega_prime)


def test_weights_scale_pointwise_and_leave_the_given_one() -> None:
    schedule = [[0, 1.0], [10, 3.0]]
    assert scale_weight(schedule, 2.0) == [[0, 2.0], [10, 6.0]]
    assert schedule == [[0, 1.0], [10, 3.0]]
    assert scale_weight(0.5, 2.0) == 1.0


def test_weights_may_be_negative_where_they_are_of_a_reward() -> None:
    check_weight("addon_weight", -1.0, minimum=None)
    spg(addon_weight=-1.0, addon_reward=addon).validate()
    with pytest.raises(ValueError, match=r"alpha=-1\.0: expected at least 0"):
        check_weight("alpha", -1.0)
