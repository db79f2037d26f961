"""``rpg export`` and ``rpg promote``: policies on their way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from rpg_platform.cli import output
from rpg_platform.cli.common import AsJson, Weights, Where, named_sweep, policy_folder, refusals, stdout_console

Source = Annotated[
    str,
    typer.Argument(
        help="A shipped prior's name, the folder of a bundle, a checkpoint or a trial, or a sweep: NAME (its best "
        "setting) or NAME#RANK.",
        metavar="POLICY",
    ),
]
Rule = Annotated[
    str | None,
    typer.Option(
        help="What is best of a sweep: 'max addon_return where basic_return >= 0.9 * prior and kl_to_prior <= 3'."
    ),
]
# As in rpg_platform.export, which is imported when a command runs: it takes torch.
FormatOrAll = Literal["torchscript", "onnx", "mlflow", "bundle", "all"]
Mode = Annotated[
    Literal["distribution", "deterministic"],
    typer.Option(help="Outputs: the action and the distribution's parameters, or the deterministic action alone."),
]
Precision = Annotated[
    Literal["float64", "float32"],
    typer.Option(help="Arithmetic inside; float64 equals the bundle to 1e-6, float32 is for runtimes without it."),
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands to ``rpg``."""
    app.command()(export)
    app.command()(promote)


def export(
    policy: Source,
    out: Annotated[Path, typer.Option(help="File or folder to write; with --format all a folder for all of them.")],
    format_: Annotated[FormatOrAll, typer.Option("--format", help="What to write.")] = "all",
    mode: Mode = "distribution",
    precision: Precision = "float64",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    rule: Rule = None,
    weights: Weights = None,
    storage: Where = None,
    as_json: AsJson = False,
) -> None:
    """Exports a policy as TorchScript, ONNX or an MLflow model, which do not need this package to run, or a bundle."""
    with refusals(), policy_folder(policy, storage, rule, weights=weights) as source:
        from rpg_platform.export import files

        formats = files.FOREIGN if format_ == "all" else (format_,)
        written = files.export(str(source), formats, out, mode, precision, overwrite=overwrite)
    if as_json:
        rows = {each.format: {"path": str(each.path), "deviation": each.deviation} for each in written}
        output.data(json.dumps(rows, indent=2))
        return
    for each in written:
        stdout_console().print(
            f"{each.format:<12}{each.path}  (within {each.deviation:.0e} of the bundle)",
            soft_wrap=True,
            highlight=False,
        )


def promote(
    policy: Source,
    name: Annotated[str, typer.Option(help="Registered model; made if it is missing.")],
    alias: Annotated[str, typer.Option(help="Alias that is set to this version, such as champion.")],
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI",
            help="MLflow store; by default that of the policy's sweep, else that of the default storage.",
        ),
    ] = None,
    mode: Mode = "distribution",
    precision: Precision = "float64",
    rule: Rule = None,
    weights: Weights = None,
    storage: Where = None,
    as_json: AsJson = False,
) -> None:
    """Registers a policy in MLflow with an alias and its lineage; the same policy again only moves the alias."""
    with refusals(), policy_folder(policy, storage, rule, weights=weights, deploys=True) as source:
        from rpg_platform.export import registry

        store = tracking_uri or registry.default_store(source, named_sweep(policy, storage))
        done = registry.promote(source, name, alias, store, mode, precision)
    if as_json:
        fields = ("name", "version", "alias", "created", "run_id", "tracking_uri", "uri")
        output.data(json.dumps({field: getattr(done, field) for field in fields}, indent=2))
        return
    console = stdout_console()
    what = "registered as" if done.created else "had been registered as"
    console.print(f"{policy}: {what} version {done.version} of {done.name}", soft_wrap=True, highlight=False)
    console.print(f"Model       {done.uri}", soft_wrap=True, highlight=False)
    console.print(f"Run         {done.run_id or 'none in this store'}", soft_wrap=True, highlight=False)
