"""``rpg weights``: the weight that a rule asks for, of policies that are told their weights."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rpg_platform.cli import output
from rpg_platform.cli.common import AsJson, SweepName, Where, parse_weights, refusals, stdout_console

if TYPE_CHECKING:
    from rpg_platform.review.finding import FoundWeight
    from rpg_platform.review.range_policies import RangePolicies
    from rpg_platform.spec.sections import Objective


def weights(
    name: SweepName,
    rule: Annotated[
        str | None,
        typer.Option(help="What is asked for: 'max addon_return where basic_return >= 0.9 * prior'; else the sweep's."),
    ] = None,
    of: Annotated[str | None, typer.Option(help="The weight to find; default: the first that is told.")] = None,
    at: Annotated[
        str | None, typer.Option(help="The other weights, NAME=VALUE,…; default: the middle of their ranges.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Of which method's policies; default: the algorithm's.")] = None,
    episodes: Annotated[int, typer.Option(min=2, help="Episodes of each policy at each weight.")] = 20,
    storage: Where = None,
    as_json: AsJson = False,
) -> None:
    """Finds the weight that satisfies a rule, without training: a policy for a range is evaluated until it is known."""
    from rpg_platform.review.choice import parse_rule
    from rpg_platform.review.found import found_in
    from rpg_platform.review.range_policies import range_policies
    from rpg_platform.storage.location import storage_path
    from rpg_platform.storage.sweep_folder import SweepFolder

    with refusals():
        found = found_in(SweepFolder(storage_path(storage), name))
        objective = found.spec.objective if rule is None else parse_rule(rule)
        policies = range_policies(found, method)
        of, rest = _asked(policies, of, parse_weights(at))
        settings = found.spec.evaluation
        answer = _find(policies, objective, of, rest, episodes, settings.selection_seed)
    chosen = {of: float(f"{answer.value:.3g}"), **rest}
    played = policies.play(chosen, objective, episodes, settings.seed)
    summary = _summary(policies, objective, chosen, played, policies.play_prior(objective, episodes, settings.seed))
    if as_json:
        data = {**summary, "interval": answer.interval, "of": of, "evaluated_at": list(answer.at)}
        output.data(json.dumps(data, indent=2))
        return
    _say(name, storage, answer, summary)


def _asked(policies: RangePolicies, of: str | None, fixed: Mapping[str, float]) -> tuple[str, dict[str, float]]:
    """The weight to find, and the values of the others.

    Raises:
        ValueError: the policies are not told one of them, or it is outside its range.
    """
    from rpg_platform.wording import suggestion

    ranges = {each.name: each for each in policies.told}
    of = of or next(iter(ranges))
    for asked in (of, *fixed):
        if asked not in ranges:
            raise ValueError(f"{asked!r}: the policies are told {', '.join(ranges)}{suggestion(asked, ranges)}")
    if of in fixed:
        raise ValueError(f"--at {of}=…: it is the weight to find; give the others, or find another with --of")
    for each, value in fixed.items():
        ranges[each].told(value)
    middle = {each: float(f"{ranges[each].weight(0.0):.3g}") for each in ranges if each != of}
    return of, {**middle, **fixed}


def _find(
    policies: RangePolicies, objective: Objective, of: str, rest: Mapping[str, float], episodes: int, seed: int
) -> FoundWeight:
    from rpg_platform.review.finding import find_weight

    told = next(each for each in policies.told if each.name == of)
    with Console(stderr=True).status(f"evaluating {len(policies.networks)} policies") as status:
        return find_weight(
            told,
            objective,
            lambda weight: policies.play({of: weight, **rest}, objective, episodes, seed),
            policies.play_prior(objective, episodes, seed),
            lambda weight, figures: status.update(
                f"{of} {weight:.3g}: {objective.maximize} {figures[objective.maximize]:,.0f}"
            ),
        )


def _summary(
    policies: RangePolicies,
    objective: Objective,
    chosen: Mapping[str, float],
    played: Mapping[str, Any],
    of_prior: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What the policies do at the chosen weights, on episodes that chose nothing."""
    from rpg_platform.results.difference import mean_interval
    from rpg_platform.results.ranking import violations
    from rpg_platform.results.report import kept_share

    means = {name: float(values.mean()) for name, values in played.items()}
    prior = None if of_prior is None else {name: float(values.mean()) for name, values in of_prior.items()}
    basic = played["basic_return"].mean(1)
    shares = [] if prior is None else [kept_share(float(each), prior["basic_return"]) for each in basic]
    kept = [share for share in shares if share is not None]
    return {
        "weights": dict(chosen),
        "method": policies.method,
        "seeds": len(policies.networks),
        "figures": means,
        "kept": sum(kept) / len(kept) if kept else None,
        "kept_interval": mean_interval(kept) if len(kept) > 1 else None,
        "violations": [str(each) for each in violations(objective.constraints, means, prior)],
    }


def _say(name: str, storage: str | None, answer: FoundWeight, found: Mapping[str, Any]) -> None:
    console = stdout_console()

    def line(head: str, text: str) -> None:
        console.print(f"{head:<12}{text}", soft_wrap=True, highlight=False, markup=False)

    low, high = answer.interval
    others = ", ".join(f"{each} {value:g}" for each, value in found["weights"].items() if each != answer.name)
    beside = f", at {others}" if others else ""
    line("Weight", f"{answer.name} {found['weights'][answer.name]:g} [{low:.3g}, {high:.3g}]{beside}")
    figures = found["figures"]
    kept, ends = found["kept"], found["kept_interval"]
    share = "" if kept is None else f", {100 * kept:.1f} % of the prior's"
    share += "" if ends is None else f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
    line("Basic", f"{figures['basic_return']:,.0f}{share}")
    line("Add-on", f"{figures['addon_return']:,.0f}")
    line("Total", f"{figures['total_return']:,.0f}")
    for each in found["violations"]:
        line("Broken", f"on these episodes: {each}")
    seeds = f"{found['seeds']} seed{'s' if found['seeds'] > 1 else ''}"
    line("Of", f"{found['method']}, {seeds}; other episodes than the {len(answer.at)} weights were judged by")
    words = ",".join(f"{each}={value:g}" for each, value in found["weights"].items())
    where = "" if storage is None else f" --storage {shlex.quote(storage)}"
    line("Export", f"rpg export {name} --weights {words} --out policy{where}")
