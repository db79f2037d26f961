"""Settings by name and by rule, and two of them against each other; through the commands where users meet them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from tests.platform.commands import here, refused
from tests.platform.review.made_sweep import figures, made_sweep

from rpg_platform.review.choice import ChoiceError, choose, is_choice, parse_rule
from rpg_platform.review.found import found_in
from rpg_platform.storage.sweep_folder import SweepFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    storage = tmp_path_factory.mktemp("storage")
    made_sweep(storage, name="single", seeds=1, weights={"omega_prime": 0.2, "alpha_hat": 0.02}, baselines=[])
    return made_sweep(storage)


def test_a_name_is_the_best_setting_and_its_best_seed(folder: SweepFolder) -> None:
    chosen = choose("made", folder.storage)
    totals = {t.trial_id: figures(t)["basic"] + figures(t)["addon"] for t, _, _ in found_in(folder).results}
    groups: dict[str, list[float]] = {}
    for name, total in totals.items():
        groups.setdefault(name.rpartition("-seed=")[0] or name, []).append(total)
    best = max(groups, key=lambda group: statistics.fmean(groups[group]))
    assert chosen.row.group == best
    own = {name: total for name, total in totals.items() if name.startswith(f"{best}-seed=")}
    assert chosen.trial_id == max(own, key=lambda name: own[name])
    assert chosen.checkpoint == f"{folder.uri}/{chosen.trial_id}/checkpoint_000000"
    assert choose("made#2", folder.storage).rank == 2
    assert is_choice("made#2", folder.storage)
    assert not is_choice("other", folder.storage)
    with pytest.raises(ChoiceError, match="made#9: the sweep's table has 8 settings; see rpg show made"):
        choose("made#9", folder.storage)


def test_a_rule_chooses_what_it_says(folder: SweepFolder) -> None:
    rule = "max addon_return where basic_return >= 0.93 * prior and kl_to_prior <= 3.3"
    chosen = choose("made", folder.storage, rule)
    rows = [row for row in found_in(folder).rows if row.seeds]
    able = [r for r in rows if r.deterministic.basic_return.mean >= 0.93 * 6800 and r.kl_to_prior.mean <= 3.3]
    assert 1 < len(able) < len(rows)
    assert chosen.row.group == max(able, key=lambda row: row.deterministic.addon_return.mean).group
    with pytest.raises(ChoiceError, match="no setting satisfies"):
        choose("made", folder.storage, "max total_return where kl_to_prior <= 0.5 and addon_return >= 0")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("min total_return", "expected 'max RETURN"),
        ("max kl_to_prior", "'kl_to_prior' can't be maximised; expected one of 'basic_return'"),
        ("max total_return where basic_retrun >= 3", "'basic_retrun' can't be bounded; did you mean 'basic_return'"),
        ("max total_return where basic_return > 3", "'basic_return > 3': expected MEASURE >= NUMBER"),
        ("max total_return where kl_to_prior <= 0.5 * prior", "with >= alone"),
        ("max total_return where kl_to_prior >= 1", "kl_to_prior.min"),
    ],
)
def test_a_rule_that_cannot_be(rule: str, said: str) -> None:
    with pytest.raises(ChoiceError, match="--rule") as refused:
        parse_rule(rule)
    assert said in str(refused.value)


def test_the_commands(folder: SweepFolder) -> None:
    where = ("--storage", folder.storage)
    shown = here("show", "made", *where)
    assert "1 ★" in shown.output
    rows = json.loads(here("show", "made", *where, "--json").output)
    assert [row["group"] for row in rows] == [row.group for row in found_in(folder).rows]
    listed = here("list", *where)
    assert "made" in listed.output
    assert "as a page" in listed.output.lower()
    page = Path(folder.storage, "index.html").read_text()
    assert '<td class="left">made</td>' in page
    here("report", "made", *where, "--figures", f"{folder.storage}/figures")
    assert {file.name for file in Path(folder.storage, "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("tradeoff", "weights", "curves") for kind in ("png", "svg")
    }
    assert Path(folder.uri, "report.html").stat().st_size < 3_000_000
    assert "did you mean 'made'" in refused("report", "mad", *where)


def test_compare(folder: SweepFolder) -> None:
    """The difference's interval is scipy's for Welch's t; what differs is named."""
    from scipy.stats import ttest_ind

    found = json.loads(here("compare", "made", "made#2", "--storage", folder.storage, "--json").output)
    groups = [row.group for row in found_in(folder).rows[:2]]
    totals = [
        [figures(t)["basic"] + figures(t)["addon"] for t, _, _ in found_in(folder).results if t.group == group]
        for group in groups
    ]
    [total] = [each for each in found["differences"] if each["measure"] == "total_return"]
    expected = ttest_ind(*totals, equal_var=False).confidence_interval(0.95)
    assert total["interval"] == pytest.approx([expected.low, expected.high])
    assert total["first"] - total["second"] == pytest.approx(statistics.fmean(totals[0]) - statistics.fmean(totals[1]))
    assert set(found["changes"]) <= {"weights.omega_prime", "weights.alpha_hat", "weights.kl_coefficient", "method"}
    assert found["changes"]
    said = here("compare", "made", "single", "--storage", folder.storage).output
    assert "One training seed" in said
    assert "seeds:" in said


def test_what_sees_the_hidden_reward_is_chosen_by_no_name_or_rule(tmp_path: Path) -> None:
    """It is first of the table, and may be looked at; it is not ★, and not promoted."""
    made_sweep(tmp_path, name="bound", apart=True, baselines=[{"full": {"alpha": 0.1}}])
    found = found_in(SweepFolder(str(tmp_path), "bound"))
    assert found.rows[0].method == "full"
    assert choose("bound#1", str(tmp_path)).row.method == "full"
    assert choose("bound", str(tmp_path)).row.method != "full"
    for rule in ("max total_return", "max addon_return", "max basic_return where kl_to_prior <= 0.6"):
        assert choose("bound", str(tmp_path), rule).row.is_deployable
    with pytest.raises(ChoiceError, match="hidden reward"):
        choose("bound", str(tmp_path), "max total_return where addon_return >= -900")
    said = refused("promote", "bound#1", "--storage", str(tmp_path), "--name", "x", "--alias", "champion")
    assert "upper bound to compare with" in " ".join(said.split())


def test_a_sweep_stands_for_its_policy_where_policies_are_asked_for(folder: SweepFolder, tmp_path: Path) -> None:
    """`rpg export SWEEP`, `rpg evaluate SWEEP#2 --rule …`: the bundle in the checkpoint that `choose` names."""
    out = tmp_path / "policy.pt"
    said = here("export", "made#2", "--storage", folder.storage, "--format", "torchscript", "--out", str(out))
    assert out.is_file()
    chosen = choose("made#2", folder.storage)
    assert f"made#2: {chosen.row.setting}, seed of the highest objective: {chosen.trial_id}" in said.stderr
    task = ("--task", "halfcheetah-foot-angle", "--episodes", "1", "--json")
    ended = here("evaluate", "made", "--storage", folder.storage, *task)
    assert json.loads(ended.stdout)["eval/deterministic/total_return_mean"] > 0
    wrong = refused("export", "halfcheetah-spg", "--rule", "max total_return", "--out", str(tmp_path / "x.pt"))
    assert "'halfcheetah-spg' is no sweep" in wrong
