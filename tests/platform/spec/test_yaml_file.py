"""YAML files to specifications: what is refused and in which words, what is read, and nothing else happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.spec.trials import count_trials
from rpg_platform.spec.yaml_file import SpecError, dump_spec, load_spec, parse_spec

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CONFIGS = sorted((ROOT / "tune_configs").rglob("*.yaml"))
TABLE = yaml.safe_load((HERE / "malformed_specs.yaml").read_text(encoding="utf-8"))
BASE: str = TABLE["base"]

fuzzed = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that malformed_specs.yaml speaks of."""
    cards = {
        "bundle": {"env_id": "HalfCheetah-v5", "alpha": 0.1},
        "no-alpha": {"env_id": "HalfCheetah-v5", "alpha": None},
        "hopper": {"env_id": "Hopper-v5", "alpha": 0.1},
        "trained": {"env_id": "HalfCheetah-v5", "alpha": 0.1, "made_by": {"training": {"gamma": 0.99}}},
        "imported": {"env_id": "HalfCheetah-v5", "alpha": 0.1, "made_by": {"import": {"gamma": 0.95}}},
    }
    for name, card in cards.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").write_text(json.dumps(card))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{")
    return tmp_path


def written(folder: Path, text: str | bytes, name: str = "sweep.yaml") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def messages(file: Path) -> list[str]:
    with pytest.raises(SpecError) as refused:
        load_spec(file)
    assert str(refused.value).splitlines() == list(refused.value.messages)
    return [message.removeprefix(f"{file}:") for message in refused.value.messages]


# ---- refused ------------------------------------------------------------------------------------
def test_the_base_of_the_table_is_valid(folder: Path) -> None:
    assert load_spec(written(folder, BASE)).prior == str(folder / "bundle")


def test_the_table_is_long_and_its_cases_are_distinct() -> None:
    assert len(TABLE["cases"]) >= 100
    assert len({case["what"] for case in TABLE["cases"]}) == len(TABLE["cases"])


@pytest.mark.parametrize("case", TABLE["cases"], ids=lambda case: case["what"])
def test_malformed(case: dict[str, Any], folder: Path) -> None:
    text = case.get("text", BASE)
    for old, new in case.get("edit", []):
        assert text.count(old) == 1, f"{old!r} is not in the base once"
        text = text.replace(old, new)
    text += case.get("add", "")
    said = messages(written(folder, text))
    assert said == [message.replace("{dir}", str(folder)) for message in case["says"]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"task: \x00\x01", "1:1: this is a binary file, not YAML text in UTF-8"),
        (b"a: 1\nb: caf\xe9\n", "2:7: this is not YAML text in UTF-8: byte 0xe9"),
        (b"a: 1\nb: \x07\n", "2:4: not valid YAML: character 0x7 is not allowed"),
        (b"a: 1\n" * 60_000, "1:1: more than 262144 bytes: too large for a specification"),
    ],
    ids=["binary", "not UTF-8", "control character", "too large"],
)
def test_not_a_text(content: bytes, says: str, folder: Path) -> None:
    assert messages(written(folder, content)) == [says]


def test_unreadable(folder: Path) -> None:
    assert messages(folder / "nowhere.yaml") == [" cannot be read: No such file or directory"]
    assert messages(folder) == [" cannot be read: Is a directory"]
    with pytest.raises(SpecError, match="cannot be read: embedded null byte"):
        load_spec(f"{folder}/a\0b.yaml")


def test_a_bad_stem_is_no_name(folder: Path) -> None:
    assert messages(written(folder, BASE, "my sweep.yaml")) == [
        "1:1: name: the file's stem takes letters, digits, - and _, and starts with a letter or digit, "
        "got 'my sweep'; rename the file or give a name"
    ]
    assert load_spec(written(folder, BASE + "name: mine\n", "my sweep.yaml")).name == "mine"


def test_an_alias_bomb_costs_nothing(folder: Path) -> None:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 30)]
    said = messages(written(folder, "l0: &l0 [x, x]\n" + "".join(levels)))
    assert "2:10: l1[0]: an alias (*l0) cannot be used here: write the value out" in said


def test_a_faulty_field_does_not_hide_the_others(folder: Path) -> None:
    """The budget is no number, so nothing is said of its size; seeds and weights are still checked."""
    text = BASE.replace("100_000", "lots").replace("alpha_hat", "alpha") + "seeds: [1, 1]\n"
    assert [message.split(" ")[1] for message in messages(written(folder, text))] == [
        "weights.alpha:",
        "budget.env_steps:",
        "seeds[1]:",
    ]


# ---- read ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("written_as", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0E-4", 1e-4),
        (".5", 0.5),
        ("1_0e-3", 0.01),
        ("1", 1.0),
        ("5e-1", 0.5),
        ("+0.5", 0.5),
    ],
)
def test_spellings_of_a_number(written_as: str, value: float) -> None:
    spec = parse_spec(f"{BASE}training: {{lr: {written_as}}}\n", name="x", check_files=False)
    assert spec.training.fixed.lr == value


@pytest.mark.parametrize("written_as", ["200_000", "200000", "2e5", "200_000.0", "+200000", "0x30d40"])
def test_spellings_of_a_whole_number(written_as: str) -> None:
    spec = parse_spec(BASE.replace("100_000", written_as), name="x", check_files=False)
    assert spec.budget.env_steps == 200_000


@pytest.mark.parametrize("text", ["no", "on", "2026-01-01", "1e5x", "'1'"])
def test_what_stays_text(text: str) -> None:
    assert parse_spec(f"{BASE}description: {text}\n", name="x", check_files=False).description == text.strip("'")


@pytest.mark.parametrize("change", [lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), lambda t: "---\n" + t])
def test_other_dresses_of_the_same_text(change: Callable[[str], str]) -> None:
    assert parse_spec(change(BASE), name="x", check_files=False) == parse_spec(BASE, name="x", check_files=False)


def test_the_name_is_the_stem_by_default(folder: Path) -> None:
    assert load_spec(written(folder, BASE, "my-sweep_1.yaml")).name == "my-sweep_1"
    assert load_spec(written(folder, BASE + "name: other\n")).name == "other"


def test_a_section_whose_lines_are_commented_out_is_absent() -> None:
    text = BASE + "training:\n  # lr: 1e-3\nseeds:\nstorage:\n"
    assert parse_spec(text, name="x", check_files=False) == parse_spec(BASE, name="x", check_files=False)


@pytest.mark.parametrize("prior", ["bundle", "./bundle", "../{here}/bundle", "{folder}/bundle"])
def test_a_prior_is_relative_to_the_file(prior: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    text = BASE.replace("./bundle", prior.format(here=folder.name, folder=folder))
    assert load_spec(written(folder, text)).prior == str(folder / "bundle")


def test_a_prior_yet_to_be_made_needs_check_files_off(folder: Path) -> None:
    file = written(folder, BASE.replace("./bundle", "../later"))
    assert messages(file) == [f"2:8: prior: no such folder: {folder.parent / 'later'}"]
    assert load_spec(file, check_files=False).prior == str(folder.parent / "later")


def test_omega_is_accepted_where_the_prior_records_its_alpha(folder: Path) -> None:
    spec = load_spec(written(folder, BASE.replace("omega_prime", "omega")))
    assert spec.weights == {"omega": 0.1, "alpha_hat": 0.02}


def test_validation_starts_without_ray() -> None:
    """What makes `rpg` slow to start must not be needed to say that a file is wrong."""
    code = (
        "import sys, rpg_platform.spec.yaml_file, rpg_platform.spec.checks;"
        "print([m for m in ('ray', 'torch', 'mlflow', 'gymnasium', 'pandas') if m in sys.modules])"
    )
    path = os.pathsep.join(str(ROOT / root) for root in ("algorithms", "platform"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# ---- anything at all ----------------------------------------------------------------------------
OWN_TASK = BASE.replace(
    "task: halfcheetah-foot-angle\n",
    """\
task:
  env: HalfCheetah-v5
  kwargs: {frame_skip: 5}
  wrappers: [{gymnasium.wrappers:ClipReward: {min_reward: -1}}]
  max_episode_steps: 500
  addons:
    foot: -10 * abs(next_obs[7])
    energy: {expression: "-sum(action ** 2)", weight: 0.1}
    gait: {function: my_addons:gait, info_keys: [x_velocity]}
    feet: {task: halfcheetah-foot-angle}
  metric: {name: x, expression: 'where(info["x_position"] > 3, 1, 0)'}
""",
)
TEXTS = [file.read_text(encoding="utf-8") for file in CONFIGS] + [BASE] + [OWN_TASK] * 10
TOKENS = [
    *(
        "[",
        "]",
        "{",
        "}",
        ":",
        ": ",
        "- ",
        ", ",
        "\n",
        "\n  ",
        "\t",
        "#",
        "'",
        '"',
        "|",
        ">",
        "?",
        "!",
        "&a ",
        "*a",
        "%",
        "@",
    ),
    *(
        "null",
        "~",
        "true",
        "yes",
        ".nan",
        "-.inf",
        "1e999",
        "-1",
        "0",
        "1e-4",
        "0x1f",
        "9" * 40,
        "1_0",
        "é",
        "\ud800",
        "\x00",
    ),
    *(
        "grid",
        "choice",
        "uniform",
        "loguniform",
        "omega",
        "kl",
        "prior",
        "<<: ",
        "!!python/name:os.system ",
        "{grid: [1, 2]}",
    ),
    *(
        "[[0, 1], [5, 2]]",
        "{uniform: [0, 1]}",
        "samples: 3\n",
        "seeds: 4\n",
        "baselines: [greedy, prior]\n",
        "training: ",
    ),
]


def accept_or_refuse(text: str | bytes) -> None:
    """The property: a specification that survives its own YAML and expands, or a located refusal."""
    refused: SpecError | None = None
    try:
        spec = parse_spec(text, source="fuzz.yaml", name="fuzz", check_files=False)
    except SpecError as error:
        refused = error
    event("accepted" if refused is None else "refused")
    if refused is not None:
        assert refused.messages
        for message in refused.messages:
            source, line, column, _ = message.split(":", 3)
            assert source == "fuzz.yaml"
            assert int(line) >= 1
            assert int(column) >= 1
            assert "\n" not in message
            message.encode()
        return
    assert parse_spec(dump_spec(spec), check_files=False) == spec
    if count_trials(spec) <= 200:
        assert 0 < len(expand(spec)) <= count_trials(spec)


@st.composite
def mutated_texts(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + draw(st.sampled_from(TOKENS) | st.text(max_size=3)) + text[end:]
    return text


def _paths(data: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path] * bool(path) + [deeper for key, value in items for deeper in _paths(value, (*path, key))]


numbers = st.integers(-5, 10**7) | st.floats() | st.integers()
leaves = st.none() | st.booleans() | numbers | st.text(max_size=5) | st.sampled_from(["kl", "ppo", "prior", "batch"])
spaces = st.dictionaries(
    st.sampled_from(["grid", "choice", "uniform", "loguniform", "x"]),
    st.lists(numbers, max_size=3),
    max_size=2,
)
schedules = st.lists(st.tuples(st.sampled_from([0, 10, 5000]), st.floats(0, 1)).map(list), max_size=3)
KEYS = sorted(
    {
        *SweepSpec.model_fields,
        *("omega", "omega_prime", "alpha_hat", "alpha", "kl_coefficient", "addon_weight", "entropy_coeff"),
        *(
            "lr",
            "network",
            "hidden",
            "minibatch_size",
            "rollout_length",
            "env_runners",
            "learners",
            "nonsense",
        ),
        *("env", "addons", "wrappers", "kwargs", "expression", "function", "weight", "info_keys", "metric"),
    }
)


@st.composite
def mutated_documents(draw: st.DrawFn) -> str:
    """A shipped specification with values replaced, removed or added: valid YAML, seldom a valid sweep."""
    data = yaml.safe_load(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(1, 5))):
        path = draw(st.sampled_from(_paths(data) or [("task",)]))
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        value = draw(leaves | spaces | schedules | st.lists(leaves, max_size=3) | st.dictionaries(st.text(), leaves))
        match draw(st.sampled_from(["replace", "remove", "add", "search"])):
            case "remove" if len(data) > 1:
                del parent[path[-1]]
            case "add" if isinstance(parent, dict):
                parent[draw(st.sampled_from(KEYS))] = value
            case "search":
                parent[path[-1]] = draw(spaces)
            case _:
                parent[path[-1]] = value
    return yaml.safe_dump(data, allow_unicode=True)


@settings(fuzzed, max_examples=600)
@given(mutated_texts())
def test_any_mutated_text_is_accepted_or_refused(text: str) -> None:
    accept_or_refuse(text)


@settings(fuzzed, max_examples=500)
@given(mutated_documents())
def test_any_mutated_document_is_accepted_or_refused(text: str) -> None:
    accept_or_refuse(text)


@settings(fuzzed, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(SpecError):
        parse_spec(raw, check_files=False)


def test_the_discount_is_the_priors_where_rpg_reads_it_and_none_is_given(folder: Path) -> None:
    raw = "{task: halfcheetah-foot-angle, budget: {env_steps: 500_000}, prior: ./%s, %s}"
    rpg = "algorithm: rpg, weights: {omega_prime: 0.1, alpha_hat: 0.1}"
    kl = "algorithm: kl, weights: {kl_coefficient: 0.1}"
    for prior, method, expected in (
        ("trained", rpg, 0.99),
        ("trained", f"{kl}, baselines: [{{rpg: {{omega_prime: 0.1, alpha_hat: 0.1}}}}]", 0.99),
        ("trained", f"{rpg}, training: {{gamma: 0.99}}", 0.99),
        ("trained", kl, 0.98),  # log pi is a penalty there
        ("bundle", rpg, 0.98),  # its card knows none
    ):
        assert load_spec(written(folder, raw % (prior, method))).training.fixed.gamma == expected
