"""The options of the command line: each group of options is a dataclass, and one parameter of a command.

    def command(sweep: SweepFolder, run: RunGroup) -> None: ...
    typer.command()(flatten_groups(command))

Typer sees the single options. The command gets the filled groups.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from kdray.search.ledger_storage import ledger_url
from kdray.sources.memory import DEFAULT_MAX_GB
from kdray.storage.trust import accept_address

DEFAULT_STORAGE = "results"
UI_PORT = 5000

SweepFolder = Annotated[str, typer.Argument(metavar="STORAGE/NAME", help="The folder of a finished sweep.")]
SweepServer = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow server; by default the sweep's own.")]


def accept_ledger(url: str | None) -> str | None:
    """Trust this address, which the user has just given: a command then may use a sweep whose ledger is there."""
    if url is None:
        return None
    try:
        address = ledger_url(url)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    accept_address(address)
    return address


SweepLedger = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        help="The database with the sweep's trials; needed once on each machine, if it is not in the storage.",
        metavar="URL",
        callback=accept_ledger,
    ),
]
MaxGB = Annotated[float, typer.Option("--max-gb", help="The memory in GB that the rows of the data may need.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change any setting; repeatable. A setting that is given here is no longer searched.",
        metavar="NAME=VALUE",
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(help="MLflow server; by default the sweep's, MLFLOW_TRACKING_URI, or a SQLite file in the storage."),
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join, such as auto or ray://host:10001.")]
RequireCluster = Annotated[
    bool,
    typer.Option(
        "--require-cluster", help="Never start a local Ray. This is the default on the head of a `ray up` cluster."
    ),
]
Local = Annotated[bool, typer.Option("--local", help="Run every job in this process, one at a time, for a debugger.")]


@dataclass(frozen=True)
class RunGroup:
    """The options of `kdray run` and of a sweep script."""

    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke", help="Run the same sweep with fewer rows and trials, to test everything in a minute or two."
        ),
    ] = False
    trials: Annotated[
        int | None, typer.Option(help="Number of trials; a larger number than before extends a finished sweep.", min=1)
    ] = None
    changes: Changes = None
    storage: Annotated[
        str,
        typer.Option(
            help="Folder for all results, or a bucket: s3://bucket/folder, gs://...",
            metavar="DIR_OR_URL",
            envvar="KDRAY_STORAGE",
        ),
    ] = DEFAULT_STORAGE
    tracking_uri: TrackingUri = None
    address: Address = None
    require_cluster: RequireCluster = False
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete this sweep's earlier results and start over.")] = False
    local: Local = False
    ledger: Annotated[
        str | None, typer.Option("--ledger", help="Database for the trials; by default a file.", metavar="URL")
    ] = None


@dataclass(frozen=True)
class RuleGroup:
    """The options of `kdray choose` that make up the rule."""

    retention: Annotated[
        float | None, typer.Option(help="Smallest share of the teacher's quality that the student must keep.")
    ] = None
    smallest: Annotated[
        str | None, typer.Option(help="Cost to minimise among the students that are good enough.", metavar="COST")
    ] = None
    best: Annotated[
        str | None,
        typer.Option(
            help="Metric to make best within the limits, or where no student is good enough; quality: the task's own.",
            metavar="METRIC",
        ),
    ] = None
    at_most: Annotated[
        list[str] | None, typer.Option(help="Upper limit of a cost; repeatable.", metavar="COST=VALUE")
    ] = None
    knee: Annotated[bool, typer.Option("--knee", help="Choose the knee of the Pareto front.")] = False


@dataclass(frozen=True)
class ChooseGroup:
    """The other options of `kdray choose`."""

    ledger: SweepLedger = None
    changes: Changes = None
    tracking_uri: TrackingUri = None
    address: Address = None
    require_cluster: RequireCluster = False
    local: Local = False


@dataclass(frozen=True)
class PredictGroup:
    """The options of `kdray predict`."""

    pair: Annotated[
        list[str] | None, typer.Option(help="The second text of a pair; give it once for each text.", metavar="TEXT")
    ] = None
    file: Annotated[
        Path | None, typer.Option(help="Read texts from a csv, tsv, txt, json, jsonl, parquet or arrow file.")
    ] = None
    to: Annotated[Path | None, typer.Option(help="Write answers to csv, jsonl or parquet.", metavar="FILE")] = None
    columns: Annotated[
        str | None, typer.Option(help="Names of the columns of a file without a header.", metavar="A,B")
    ] = None
    delimiter: Annotated[
        str | None, typer.Option(help="The character between the cells of the file, or tab.", metavar="CHARACTER")
    ] = None
    encoding: Annotated[str | None, typer.Option(help="The encoding of the file, by default UTF-8.")] = None
    field: Annotated[str | None, typer.Option(help="The key in a json file with the rows below it.")] = None
    max_gb: MaxGB = DEFAULT_MAX_GB
    form: Annotated[str, typer.Option(help="pytorch, onnx or int8.")] = "pytorch"
    batch_size: Annotated[int, typer.Option(help="Texts per batch.", min=1)] = 64
    tokens: Annotated[int | None, typer.Option(help="The most tokens that continue a text, 32 by default.", min=1)] = (
        None
    )
    temperature: Annotated[
        float | None, typer.Option(help="Draw the tokens that continue a text; by default the most probable.", min=0)
    ] = None
    seed: Annotated[int | None, typer.Option(help="The seed of the drawn tokens, 0 by default.", min=0)] = None
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Write cells and texts as they are: no apostrophe before a cell of a csv file that a spreadsheet "
            "takes for a formula, no escapes for control characters on the screen.",
        ),
    ] = False


def flatten_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace every group among the parameters of a command by its single options.

    Typer reads options from the signature of a function, so the result carries a signature without groups.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _option_parameters(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run_command(**values: Any) -> None:
        filled_groups = {
            name: group(**{option.name: values.pop(option.name) for option in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **filled_groups)

    run_command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run_command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    # functools.wraps sets __wrapped__, through which Typer would read the signature with the groups.
    del run_command.__wrapped__
    return run_command


def _option_parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if option.default is MISSING else option.default,
            annotation=hints[option.name],
        )
        for option in fields(group)
    ]
