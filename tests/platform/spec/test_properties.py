"""Whatever a specification holds, it is refused with a place in the file or is a plan; nothing gives a traceback."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpg_platform.planning.estimate import all_trials
from rpg_platform.spec.checks import expand
from rpg_platform.spec.errors import SpecError
from rpg_platform.spec.methods import METHODS, WEIGHTS
from rpg_platform.spec.sweep import SECTION_KEYS, SweepSpec
from rpg_platform.spec.trials import count_trials
from rpg_platform.spec.yaml_file import dump_spec, load_spec, parse_spec
from rpg_platform.tasks.registry import TASKS

ROOT = Path(__file__).parents[3]
MALFORMED = 10_000
LOCATED = re.compile(r"\A[^\n]+:[1-9]\d*:[1-9]\d*: [^\n]+\Z")

# ---- specifications as mappings, valid and not ----------------------------------------------------
amounts = st.sampled_from([0, 0.02, 0.1, 1, 2.5])
schedules = st.lists(amounts, min_size=1, max_size=3).map(lambda v: [[1_000 * i, each] for i, each in enumerate(v)])
junk = st.sampled_from([None, True, "many", -1, 1e400, float("nan"), 10**20, [], {}, [[]], {"grid": []}, "é\u202e", ""])


def lists(of: st.SearchStrategy[Any], least: int = 1) -> st.SearchStrategy[list[Any]]:
    return st.lists(of, min_size=least, max_size=3, unique_by=repr)


values = st.one_of(amounts, schedules)
spaces = st.one_of(
    st.fixed_dictionaries({"grid": lists(values)}),
    st.fixed_dictionaries({"choice": lists(values)}),
    st.sampled_from(
        [{"uniform": [0.01, 0.5]}, {"loguniform": [0.01, 1.0]}, {"uniform": [1, 0]}, {"loguniform": [0, 1]}]
    ),
)
settings_of_weights = st.one_of(amounts, amounts, schedules, spaces)


@st.composite
def weights_of(draw: st.DrawFn, method: str) -> dict[str, Any]:
    """What a method takes, and now and then something else."""
    row = METHODS[method]  # type: ignore[index]
    names = list(draw(st.sampled_from(row.ways)))
    if row.optional and draw(st.booleans()):
        names.append(draw(st.sampled_from(row.optional)))
    if draw(st.integers(0, 14)) == 14:
        names.append(draw(st.sampled_from([*WEIGHTS, "omega_prim"])))
    return {name: draw(settings_of_weights) for name in names}


SECTIONS: dict[str, dict[str, list[Any]]] = {
    "training": {
        "lr": [3e-4, {"grid": [1e-3, 1e-4]}, {"loguniform": [1e-5, 1e-2]}, 2],
        "gamma": [0.99, {"choice": [0.9, 0.99]}],
        "rollout_length": [64, {"grid": [64, 128]}, {"uniform": [1, 9]}],
        "minibatch_size": [64, 100_000],
        "start_from_prior": [True, False, {"grid": [True, False]}],
        "network": [{"hidden": [32]}, {"hidden": []}, {"activation": "tanh", "log_std_init": -1}],
        "critic_warmup_iterations": [0, 1, {"choice": [0, 1, 2]}],
    },
    "resources": {"envs_per_runner": [4, 8], "env_runners": [0, 2], "learners": [0, 2, 3], "gpus_per_trial": [0, 0.5]},
    "objective": {
        "maximize": ["basic_return", "returns"],
        "mode": ["sampled"],
        "constraints": [{"kl_to_prior": {"max": 3}}, {"basic_return": {"min_fraction_of_prior": 0.9}}, None, {"x": 1}],
    },
    "evaluation": {"episodes": [1, 20], "seed": [0, 10_000], "validation_seed": [5, 99_999], "validations": [0, 3]},
    "checkpoint": {"every_env_steps": [None, 1e5, 0], "keep": [1]},
    "faults": {"retries": [0, 3], "stall_after_s": [None, 60.0]},
    "tracking": {"uri": ["sqlite:///mlflow.db", "not a uri", "http://host:5000"], "experiment": ["mine", " "]},
    "search": {"method": ["random", "quasi_random", "quasi_random", "optuna", "grid"], "startup": [2]},
    "scheduler": {"asha": [{}, {"reduction_factor": 2}], "median": [{}, {"min_settings": 1}, {"min_settings": 0}]},
}
TASK_MAPPINGS = [
    {"env": "Pendulum-v1", "addons": {"gentle": {"expression": "-abs(action[0])", "weight": 0.5}}},
    {"env": "Pendulum-v1", "addons": {"gentle": "-action[0] ** 2", "slow": {"expression": "-obs[2] **"}}},
    {"env": "a b", "addons": {}},
    {"addons": ["x"]},
]
REQUIRED = ("task", "algorithm", "budget")


@st.composite
def specifications(draw: st.DrawFn) -> dict[str, Any]:
    """A specification of all sections; about half of them can run."""
    method = draw(st.sampled_from(list(METHODS)))
    baselines = [each for each in draw(lists(st.sampled_from(list(METHODS)), 0)) if each != method]
    raw: dict[str, Any] = {
        "task": draw(st.sampled_from([*list(TASKS)[:4] * 3, *[TASK_MAPPINGS[0]] * 3, *TASK_MAPPINGS])),
        "algorithm": method,
        "weights": draw(weights_of(method)),
        "baselines": [{each: draw(weights_of(each))} for each in baselines],
        "budget": {"env_steps": draw(st.sampled_from([2e6] * 6 + [50_000, 100]))},
        "seeds": draw(st.sampled_from([1, 2, [3, 1], [0], 3, [7, 8], [1, 1]])),
    }
    uses = {METHODS[each].prior for each in (method, *baselines)}  # type: ignore[index]
    if "required" in uses or ("optional" in uses and draw(st.booleans())):
        raw["prior"] = "halfcheetah-spg"
    if "uniform" in repr(raw) or "choice" in repr(raw) or draw(st.integers(0, 30)) == 30:
        raw["samples"] = draw(st.sampled_from([1, 2, 3]))
    for section in draw(st.lists(st.sampled_from(list(SECTIONS)), max_size=3, unique=True)):
        fields = SECTIONS[section]
        chosen = draw(st.lists(st.sampled_from(list(fields)), min_size=1, max_size=2, unique=True))
        raw[section] = {name: draw(st.sampled_from(fields[name])) for name in chosen}
    if draw(st.integers(0, 5)) == 5:  # something out of place, at the top or one level down
        key = draw(st.sampled_from([*raw, "bugdet", "prior"]))
        inner = raw.get(key)
        if isinstance(inner, dict) and inner and draw(st.booleans()):
            inner[draw(st.sampled_from([*inner, *SECTION_KEYS.get(key, ()), "x"]))] = draw(junk)
        else:
            raw[key] = draw(junk)
    return raw


def read(text: str) -> SweepSpec | None:
    """The specification; None where it was refused, every message with its place."""
    try:
        return parse_spec(text, source="sweep.yaml", name="sweep", check_files=False)
    except SpecError as error:
        refusal = error
    assert refusal.messages
    for message in refusal.messages:
        assert LOCATED.match(message), message
        assert message.startswith("sweep.yaml:")
        assert int(message.split(":")[1]) <= text.count("\n") + 2
    return None


def test_any_specification_is_refused_with_a_place_or_is_a_plan_and_survives_its_yaml() -> None:
    seen: Counter[bool] = Counter()

    @settings(max_examples=400, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(specifications())
    def hold(raw: dict[str, Any]) -> None:
        spec = read(yaml.safe_dump(raw, allow_unicode=True, sort_keys=False))
        seen[spec is not None] += 1
        if spec is None:
            return
        trials = expand(spec)
        assert len({trial.trial_id for trial in trials}) == len(trials) <= count_trials(spec)
        assert len(all_trials(spec, trials)) == count_trials(spec)
        again = parse_spec(dump_spec(spec), source="again.yaml", check_files=False)
        assert again == spec
        assert expand(again) == trials
        assert SweepSpec.model_validate(spec.model_dump(mode="json")) == spec

    hold()
    assert min(seen[True], seen[False]) > 80, seen


# ---- files that nobody meant ---------------------------------------------------------------------
def _sources() -> list[str]:
    """The shipped specifications without their comments, and some smaller ones."""
    shipped = [path.read_text() for path in sorted((ROOT / "tune_configs").rglob("*.yaml"))]
    bare = [re.sub(r"(?m)^\s*#.*\n|\s+#.*$|^description:.*\n", "", text) for text in shipped]
    small = "task: hopper-height\nalgorithm: spg\nweights: {alpha: {grid: [0.1, 0.2]}}\nbudget: {env_steps: 100_000}\n"
    return [*bare, *[small] * 3 * len(bare)]


TOKENS = (
    *(
        "&a ",
        "*a",
        "<<: *a",
        "!!python/object/apply:os.system ['true']",
        "!!binary |",
        "? ",
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
    ),
    *(
        "|",
        ">",
        "'",
        '"',
        "\\",
        "\t",
        "#",
        "%YAML 9.9\n",
        "---\n",
        "...\n",
        "@",
        "`",
        ",",
        "\n",
        "\r",
        "\u2028",
        "\x85",
    ),
    *(
        "1e400",
        ".nan",
        "-.inf",
        "0x" + "f" * 40,
        "9" * 40,
        "0o9",
        "-0",
        "1_",
        "~",
        "null",
        "yes",
        "2026-01-01",
        "1:30:00",
    ),
    *("\x00", "\x07", "\ud7ff", "\ufeff", "\u202e", "é" * 50, "𝕊", "[" * 40, "{a: " * 40, "- " * 60, "x" * 3_000),
    *(
        "task:",
        "prior: .",
        "prior: /proc/self",
        "seeds: 1e3",
        "samples: 10000",
        "weights:",
        "name: ../x",
        "storage: s3://x",
    ),
    *(
        "grid",
        "choice: [1]",
        "env_steps: -1",
        "env_steps: {grid: [1]}",
        "network: {hidden: [9999999999]}",
        "expression:",
    ),
)


def _bytes(rng: random.Random, source: str) -> bytes:
    return rng.randbytes(rng.randrange(200))


def _printable(rng: random.Random, source: str) -> bytes:
    return "".join(rng.choices("ab:-{}[]&*!|>'\"%@# \n\t,?0.1é", k=rng.randrange(120))).encode()


def _cut(rng: random.Random, source: str) -> bytes:
    raw = source.encode()
    return raw[: rng.randrange(len(raw))]


def _spliced(rng: random.Random, source: str) -> bytes:
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(source))
        source = source[:start] + rng.choice(TOKENS) + source[start + rng.choice((0, 0, 1, 5, 30)) :]
    return source.encode("utf-8", "surrogatepass")


def _flipped(rng: random.Random, source: str) -> bytes:
    raw = bytearray(source.encode())
    for _ in range(rng.randint(1, 4)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


def _lines(rng: random.Random, source: str) -> bytes:
    """Lines doubled (so keys too), moved, dropped or indented."""
    lines = source.splitlines(keepends=True)
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    line = lines[at] if rng.random() < 0.5 else lines.pop(at)
    lines.insert(to, rng.choice((line, line, "  " + line, line.lstrip())))
    return "".join(lines).encode()


def _values(rng: random.Random, source: str) -> bytes:
    """One value of a wrong type."""
    data = yaml.safe_load(source)
    node = data
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.3:
            break
        node = node[key]
    node[key] = rng.choice(
        (None, True, -1, 0, 1e308, 10**30, "x", "", [], {}, [[0]], {"grid": [1, 1]}, "-1", 0.5, [1, "a"])
    )
    return yaml.safe_dump(data).encode()


def _bomb(rng: random.Random, source: str) -> bytes:
    levels = "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9)}]\n" for i in range(1, rng.randint(2, 30)))
    deep = rng.choice(("[", "{a: ", "- ", "? ")) * rng.randint(20, 2_000)
    return rng.choice((f"k0: &k0 [x]\n{levels}{source}", source + "x: " + deep, deep, source + "- a\n" * 50)).encode()


KINDS: dict[Callable[[random.Random, str], bytes], int] = {
    _bytes: 2000,
    _printable: 2500,
    _cut: 1000,
    _spliced: 1500,
    _flipped: 1000,
    _lines: 900,
    _values: 900,
    _bomb: 200,
}


def test_ten_thousand_malformed_files_give_no_traceback(tmp_path: Path) -> None:
    """The command line's own path: a file is read, and expanded if it is not refused."""
    sources, rng = _sources(), random.Random(5)
    refused: Counter[str] = Counter()
    file = tmp_path / "sweep.yaml"
    for kind, count in KINDS.items():
        for _ in range(count):
            raw = kind(rng, rng.choice(sources))
            file.write_bytes(raw)
            try:
                # Code of one's own, which such a file may name, is not for a fuzzer to import.
                expand(load_spec(file, check_files=b"env:" not in raw and b"addons" not in raw))
            except SpecError as error:
                refused[kind.__name__] += 1
                for message in error.messages:
                    assert LOCATED.match(message), (raw, message)
                    assert message.startswith(f"{file}:"), (raw, message)
            except Exception as error:
                raise AssertionError(f"{kind.__name__}: {type(error).__name__} for {raw!r}") from error
    assert sum(KINDS.values()) == MALFORMED
    assert all(refused[kind.__name__] > count / 3 for kind, count in KINDS.items()), refused
