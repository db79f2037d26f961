"""Shows that two checkouts train the same: seeded losses, weights and metrics, compared to the bit.

    python -m benchmarks.same_results ../before .

SPG and RPG on HalfCheetah and CartPole, five iterations each: with a local env runner, with two remote ones, and with
two learners. Both checkouts run in this interpreter, one after the other. The exit code is 1 where anything differs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ITERATIONS = 5
PRIORS = {"HalfCheetah-v5": "halfcheetah-spg", "CartPole-v1": None}
"""Each environment's shipped prior; None where the benchmark trains a small one first."""
SHAPES = {"local": (0, 0), "two env runners": (2, 0), "two learners": (0, 2)}
_TIMING = ("time", "throughput", "perf", "timer", "_sec", "memory", "pid", "hostname", "date")
_SECONDS = "sample"  # how long an env runner sampled


def compare(before: Path, after: Path) -> int:
    """Runs both checkouts and prints what differs; returns the exit code."""
    old, new = (_run(folder) for folder in (before, after))
    differing = 0
    for case in sorted({*old, *new}):
        first, second = old.get(case, {}), new.get(case, {})
        wrong = sorted(key for key in {*first, *second} if first.get(key) != second.get(key))
        differing += bool(wrong)
        print(f"{'DIFFERS' if wrong else 'same'}  {case}: {len(first)} values" + _example(wrong, first, second))
    print(f"{len(old)} cases, {differing} differ")
    return int(differing > 0 or not old)


def _example(wrong: list[str], first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    if not wrong:
        return ""
    return f", {len(wrong)} differ, e.g. {wrong[0]}: {first.get(wrong[0])} → {second.get(wrong[0])}"


def _run(checkout: Path) -> dict[str, dict[str, Any]]:
    root = checkout.resolve()
    environment = os.environ | {
        "PYTHONPATH": f"{root / 'algorithms'}{os.pathsep}{root / 'platform'}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--in", str(root), str(out)]
        subprocess.run(command, check=True, cwd=folder, env=environment)
        results: dict[str, dict[str, Any]] = json.loads(out.read_text())
    return results


# ---- in a checkout: public names only, so that both versions understand it ------------------------
def measure(root: Path) -> dict[str, dict[str, Any]]:
    """Every case's values by name, of the packages that this process imports."""
    import ray

    import rpg_algorithms

    assert root in Path(rpg_algorithms.__file__).parents, rpg_algorithms.__file__
    ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for env, name in PRIORS.items():
            shipped = root / "platform" / "rpg_platform" / "shipped_priors"
            prior = shipped / name if name else _make_prior(Path(folder), env)
            for method in ("spg", "rpg"):
                for shape in SHAPES:
                    print(f"{root}: {method} on {env}, {shape}", flush=True)
                    results[f"{method} on {env}, {shape}"] = dict(_values(method, env, shape, prior))
    ray.shutdown()
    return results


def _config(method: str, env: str, prior: Path | None) -> Any:
    from rpg_algorithms import NetworkConfig, RPGConfig, SPGConfig

    if method == "rpg":
        config: Any = RPGConfig().training(
            prior=str(prior),
            omega_prime=0.2,
            alpha_hat=0.05,
            addon_reward=_addon,
            critic_warmup_iterations=1,
        )
    else:
        config = SPGConfig().training(alpha=0.1).rl_module(model_config=NetworkConfig(hidden=(64, 64)))
    config.environment(env).debugging(seed=3)
    return config.training(train_batch_size_per_learner=512, minibatch_size=64, num_epochs=3, lr=3e-4)


def _addon(obs: Any, actions: Any, next_obs: Any, infos: Any) -> Any:
    return -abs(next_obs[:, 0])


def _make_prior(folder: Path, env: str) -> Path:
    """A policy of two seeded iterations, as a bundle."""
    from rpg_algorithms import PriorCard, save_bundle

    algorithm = _config("spg", env, None).env_runners(num_envs_per_env_runner=4).build_algo()
    algorithm.train()
    module = algorithm.get_module()
    made = algorithm.env_runner.env
    spaces = (made.single_observation_space, made.single_action_space)
    card = PriorCard.describe("same-results", env, *spaces, module.policy.spec, alpha=0.1)
    save_bundle(folder, module.policy, card)
    algorithm.stop()
    return folder


def _values(method: str, env: str, shape: str, prior: Path) -> Iterator[tuple[str, Any]]:
    runners, learners = SHAPES[shape]
    config = _config(method, env, prior)
    config.env_runners(num_env_runners=runners, num_envs_per_env_runner=4).learners(num_learners=learners)
    if learners:
        config.training(train_batch_size_per_learner=256)
    algorithm = config.build_algo()
    try:
        for iteration in range(ITERATIONS):
            result = algorithm.train()
            for part in ("learners", "env_runners"):
                for key, value in _numbers(result.get(part, {}), part):
                    yield f"{iteration}/{key}", value
            weights = algorithm.learner_group.get_weights()
            yield f"{iteration}/weights", _digest(weights)
    finally:
        algorithm.stop()


def _numbers(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if key == _SECONDS or key.endswith("_s") or any(word in key for word in _TIMING):
            continue
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}/{key}")
        elif isinstance(value, int | float) or hasattr(value, "item"):
            yield f"{prefix}/{key}", repr(float(value))


def _digest(tree: Any) -> str:
    import numpy as np

    digest = hashlib.sha256()

    def visit(node: Any) -> None:
        if isinstance(node, Mapping):
            for key in sorted(node):
                digest.update(str(key).encode())
                visit(node[key])
        else:
            digest.update(np.asarray(node).tobytes())

    visit(tree)
    return digest.hexdigest()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in"]:
        Path(sys.argv[3]).write_text(json.dumps(measure(Path(sys.argv[2]))))
    else:
        sys.exit(compare(Path(sys.argv[1]), Path(sys.argv[2])))
