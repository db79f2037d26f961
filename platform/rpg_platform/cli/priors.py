"""``rpg priors``: the priors at hand, from elsewhere into a bundle, and whether a prior does what it is said to do."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from rpg_platform.cli import output
from rpg_platform.cli.common import AsJson, refusals, stdout_console
from rpg_platform.priors.formats import names, what_is_read

if TYPE_CHECKING:
    from rpg_algorithms.policies.bundle import PriorCard
    from rpg_platform.evaluation.prior_check import PriorCheck, Returns
    from rpg_platform.evaluation.soft_check import Price, SoftCheck
    from rpg_platform.priors.sources import Import

app = typer.Typer(help="Lists, imports, shows and checks priors.", no_args_is_help=False)

Prior = Annotated[str, typer.Argument(help="A shipped prior's name or a bundle's folder.", metavar="PRIOR")]
TaskName = Annotated[str | None, typer.Option(help="A task whose environment it is; see `rpg tasks`.")]
EnvId = Annotated[str | None, typer.Option(help="The environment's gymnasium id, or module:Class.")]
EnvKwargs = Annotated[
    str | None, typer.Option(help="Keyword arguments of --env as JSON, such as '{\"frame_skip\": 5}'.", metavar="JSON")
]
Wrappers = Annotated[
    list[str] | None,
    typer.Option(
        "--wrapper",
        help='A wrapper of --env, such as gymnasium.wrappers:FlattenObservation or MODULE:CLASS={"argument": value}; '
        "several from the inside out.",
        metavar="MODULE:CLASS",
    ),
]


@app.callback(invoke_without_command=True)
def priors(context: typer.Context, as_json: AsJson = False) -> None:
    """Lists the shipped priors."""
    if context.invoked_subcommand is not None:
        return
    from rpg_algorithms.policies.bundle import load_card
    from rpg_platform.bundles import SHIPPED

    cards = {name: load_card(path) for name, path in SHIPPED.items()}
    if as_json:
        output.data(json.dumps({name: card.model_dump() for name, card in cards.items()}, indent=2))
        return
    table = Table("prior", "environment", "alpha", "basic return (deterministic)", "hash")
    for name, card in cards.items():
        basic = card.returns.get("basic/deterministic")
        returns = "–" if basic is None else f"{basic.mean:,.0f} ± {basic.std:,.0f} over {basic.episodes} episodes"
        table.add_row(
            name, card.env_id, "–" if card.alpha is None else f"{card.alpha:g}", returns, card.content_hash[:12]
        )
    stdout_console().print(table)


Std = Annotated[
    float | None,
    typer.Option(
        help="Standard deviation, before tanh if it has one, to give a deterministic policy (TD3, ARS, a network's "
        "first output)."
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        help="Entropy temperature of the policy, reward per nat, where the source does not say it; `rpg priors check` "
        "measures it."
    ),
]
Normalizer = Annotated[
    Path | None,
    typer.Option(
        help="Observation statistics: a VecNormalize file, or an .npz with mean and var; none: there are none."
    ),
]


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(help=f"The policy: {what_is_read()}.", metavar="SOURCE"),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle that is written.")],
    env: EnvId = None,
    task: TaskName = None,
    env_kwargs: EnvKwargs = None,
    wrappers: Wrappers = None,
    stored_spaces: Annotated[
        bool,
        typer.Option("--stored-spaces", help="Make no environment; take the spaces that the source stores."),
    ] = False,
    name: Annotated[str | None, typer.Option(help="Short name of the prior; by default the source's.")] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help=f"What the source is, where its content should not tell: {', '.join(names())}."),
    ] = None,
    std: Std = None,
    normalizer: Normalizer = None,
    activation: Annotated[
        str | None, typer.Option(help="Activation of the hidden layers, where the source does not say: relu, tanh, ...")
    ] = None,
    module: Annotated[str | None, typer.Option(help="Which RLModule of an RLlib checkpoint that has several.")] = None,
    distribution: Annotated[
        Literal["gaussian", "squashed_gaussian"] | None,
        typer.Option(help="Family of continuous actions of TorchScript, ONNX and module:function; default: gaussian."),
    ] = None,
    second_output: Annotated[
        Literal["log_std", "std"] | None,
        typer.Option(help="What such a network's second output is, where its name does not say."),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store of models:/ and runs:/; default: your own."),
    ] = None,
    alpha: Alpha = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Makes a bundle out of a policy that was trained elsewhere. Nothing that a file contains is executed."""
    with refusals():
        from rpg_platform.priors.environment import wrapper
        from rpg_platform.priors.imported import ImportOptions
        from rpg_platform.priors.sources import import_prior

        unnormalized = normalizer == Path("none")
        options = ImportOptions(
            env_id=env,
            env_kwargs=_parse_kwargs(env_kwargs),
            std=std,
            normalizer=None if unnormalized else normalizer,
            unnormalized=unnormalized,
            activation=activation,
            module=module,
            distribution=distribution,
            second_output=second_output,
        )
        done = import_prior(
            source,
            out,
            options,
            task=task,
            wrappers=[wrapper(each) for each in wrappers or ()],
            stored_spaces=stored_spaces,
            name=name,
            form=format_,
            tracking_uri=tracking_uri,
            alpha=alpha,
            force=force,
        )
    if as_json:
        output.data(json.dumps(done.as_json(), indent=2))
        return
    check = ["rpg", "priors", "check", str(done.folder)]
    check += ["--task", task] if task else []
    if wrappers:
        check += ["--env", str(env), *(part for each in wrappers for part in ("--wrapper", each))]
    _print_import(done, shlex.join(check))


@app.command()
def show(prior: Prior, as_json: AsJson = False) -> None:
    """Shows what a prior's card says, and the line of priors that it comes from."""
    from rpg_algorithms.policies.bundle import load_bundle
    from rpg_platform.bundles import resolve_prior
    from rpg_platform.priors.ancestry import lineage_lines

    with refusals():
        card = load_bundle(resolve_prior(prior)).card
    if as_json:
        output.data(json.dumps(card.model_dump(), indent=2))
        return
    rows = _card_rows(card)
    rows += [
        (f"return, {key}", f"{value.mean:,.1f} ± {value.std:,.1f} over {value.episodes} episodes")
        for key, value in sorted(card.returns.items())
    ]
    rows += _flat(card.made_by)
    rows.append(("created", card.created or "–"))
    rows.append(("hash", card.content_hash))
    _print_rows(rows)
    if card.parents:
        _print_rows([("line" if index == 0 else "", line) for index, line in enumerate(lineage_lines(card))])


@app.command()
def check(
    prior: Prior,
    task: TaskName = None,
    env: EnvId = None,
    env_kwargs: EnvKwargs = None,
    wrappers: Wrappers = None,
    episodes: Annotated[int, typer.Option(min=1, max=100_000, help="Episodes of each mode, all finished.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="First of the evaluation seeds.")] = 10_000,
    steps: Annotated[
        int,
        typer.Option(
            min=0,
            max=100_000_000,
            help="Env steps to measure what a nat of log π costs in return; 0: don't measure it.",
        ),
    ] = 300_000,
    out: Annotated[Path | None, typer.Option(help="PNG file for a picture of the distribution of returns.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plays a prior, compares its returns with its card, and measures whether its log-probability tells lost return."""
    from rpg_algorithms.policies.bundle import load_bundle
    from rpg_platform.bundles import resolve_prior

    with refusals():
        from rpg_platform.evaluation.prior_check import check_prior, returns_png
        from rpg_platform.evaluation.soft_check import soft_check
        from rpg_platform.priors.environment import chosen_task, wrapper

        bundle = load_bundle(resolve_prior(prior))
        wrapped = [wrapper(each) for each in wrappers or ()]
        chosen = chosen_task(task, env, bundle.card, _parse_kwargs(env_kwargs), wrapped)
        if out is not None and out.is_dir():
            raise ValueError(f"--out {out}: a folder; name a PNG file")
        done = check_prior(bundle, chosen, episodes, seed)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes(returns_png(done))
        soft = soft_check(bundle, chosen, steps) if steps else None
    if as_json:
        log_prob = {} if soft is None else {"log_prob": soft.as_json()}
        output.data(json.dumps(done.as_json() | log_prob, indent=2))
        return
    _print_check(done, episodes)
    if soft is not None:
        _print_soft_check(soft, prior)
    if out is not None:
        _print_rows([("picture", str(out))])


# ---- printing -----------------------------------------------------------------------------------
def _parse_kwargs(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--env-kwargs {text!r}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"--env-kwargs {text!r}: expected a JSON object, such as '{{\"frame_skip\": 5}}'")
    return value


def _print_rows(rows: list[tuple[str, str]]) -> None:
    """One line each; what comes from a card of somebody else's is printed, not acted on."""
    from rpg_platform.priors.imported import printable

    console = stdout_console()
    for label, value in rows:
        console.print(printable(f"{label:<28}{value}"), soft_wrap=True, highlight=False, markup=False)


def _card_rows(card: PriorCard) -> list[tuple[str, str]]:
    from rpg_algorithms.policies.network import NetworkSpec
    from rpg_algorithms.policies.spaces import space_from_json

    spec = NetworkSpec.from_dict(card.network)
    kwargs = f" {json.dumps(card.env_kwargs)}" if card.env_kwargs else ""
    if spec.graph is not None:
        network = f"a graph of {len(spec.graph.nodes)} operations"
    else:
        network = f"{' – '.join(map(str, spec.hidden)) or 'linear'}, {spec.activation}"
    std = ""
    if spec.distribution != "categorical":
        std = ", std by state" if spec.state_dependent_std else ", one std for all states"
    return [
        ("prior", card.name),
        ("environment", f"{card.env_id or 'none was named'}{kwargs}"),
        ("observations", str(space_from_json(card.observation_space)).replace("\n", "")),
        ("actions", str(space_from_json(card.action_space)).replace("\n", "")),
        ("network", network),
        ("distribution", f"{spec.distribution.replace('_', ' ')}{std}"),
        ("observation filter", "mean and variance in the bundle" if spec.normalize_observations else "none"),
        ("alpha", "unknown (use omega_prime, not omega)" if card.alpha is None else f"{card.alpha:g}"),
    ]


def _flat(made_by: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What produced a policy, one row an entry."""
    return [
        (
            key,
            ", ".join(f"{inner} {_short(each)}" for inner, each in value.items())
            if isinstance(value, dict)
            else _short(value),
        )
        for key, value in made_by.items()
    ]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_short(each)}" for key, each in value.items()) + ")"
    return value if isinstance(value, str) else json.dumps(value)


def _print_import(done: Import, check: str) -> None:
    _print_rows(
        [
            ("read", f"{done.imported.format} from {done.imported.facts.get('source', '')}"),
            *_card_rows(done.card),
            *(("note", note) for note in done.notes),
            ("bundle", f"{done.folder}  {done.card.content_hash[:12]}"),
            ("next", check),
            ("then", f"`prior: {done.folder}` in a sweep's specification customises it"),
        ]
    )


def _print_check(done: PriorCheck, episodes: int) -> None:
    from rpg_platform.evaluation.prior_check import sparkline
    from rpg_platform.priors.imported import printable

    table = Table(
        "return",
        "mode",
        "mean ± std",
        "min",
        "max",
        "card",
        title=Text(printable(f"{done.card.name} in {done.task.env_id}: {episodes} episodes of each mode")),
    )
    for label, group in (("basic", done.basic), ("add-on", done.addon)):
        for mode, returns in group.items():
            table.add_row(
                label,
                mode,
                f"{returns.mean:,.2f} ± {returns.std:,.2f}",
                f"{returns.values.min():,.2f}",
                f"{returns.values.max():,.2f}",
                _verdict(returns),
            )
    stdout_console().print(table)
    everything = [returns.values for returns in done.basic.values()]
    low, high = min(x.min() for x in everything), max(x.max() for x in everything)
    _print_rows(
        [
            (mode, f"{low:,.0f} {sparkline(returns.values, low, high)} {high:,.0f}")
            for mode, returns in done.basic.items()
        ]
    )


_MEANS = {
    "good": "a nat of log π costs about as much return whatever it is lost by: RPG can rely on it",
    "weak": "log π tells lost return, but not evenly: look at the response curve of omega_prime",
    "not informative": "log π does not tell what loses return: expect RPG to lose more basic return than omega says",
}


def _print_soft_check(soft: SoftCheck, prior: str) -> None:
    from rpg_algorithms.policies.discount import recorded_gamma
    from rpg_platform.priors.imported import printable

    title = Text(printable(f"what a nat of log π costs: {soft.states} states, {soft.env_steps:,} env steps"))
    table = Table("acting with", "return per nat", "95 % interval", "return", "log π", title=title)
    for each in soft.prices:
        table.add_row(each.change, *_price_cells(each))
    stdout_console().print(table)
    stated, gamma = soft.card.alpha, f"{soft.gamma:g}"
    estimate = f"{soft.alpha.value:.3g} ({soft.alpha.low:.3g} to {soft.alpha.high:.3g})"
    rows = [
        ("discount", gamma if recorded_gamma(soft.card.made_by) else f"{gamma} is assumed; its card does not say"),
        ("alpha", f"{'its card says nothing' if stated is None else f'{stated:g} on its card'}; measured {estimate}"),
        (
            "one step of training",
            f"gains {100 * soft.step.value:.2f} % ({100 * soft.step.low:.2f} to {100 * soft.step.high:.2f} %)",
        ),
        ("verdict", f"{soft.verdict}: {_MEANS[soft.verdict]}"),
        *(("because", text) for _, text in soft.reasons),
    ]
    if soft.omega_prime is not None:
        low, high = soft.omega_prime
        rows.append(
            ("omega_prime", f"{soft.reference:.3g} keeps the reward at full weight; try {low:.2g} to {high:.2g}")
        )
    if stated is None and soft.verdict != "not informative":
        rows.append(("next", f"rpg priors import {shlex.quote(prior)} --alpha {soft.alpha.value:.3g} --out FOLDER"))
    _print_rows(rows)


def _price_cells(each: Price) -> list[str]:
    price = each.price
    return [f"{price.value:.3g}", f"{price.low:.3g} to {price.high:.3g}", f"{each.gained:,.1f}", f"{each.nats:,.0f}"]


def _verdict(returns: Returns) -> str:
    if returns.stated is None:
        return "says nothing"
    stated = f"{returns.stated.mean:,.2f} ± {returns.stated.std:,.2f}"
    distance = returns.standard_errors
    return f"{stated}: {'agrees' if returns.agrees else 'differs'} ({distance:.1f} SE)"
