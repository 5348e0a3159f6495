"""The options of the command line: each group of options is a dataclass, and commands take whole groups.

    def command(sweep: SweepFolder, run: RunGroup) -> None: ...
    typer.command()(flat(command))

`flat` shows Typer the single options, and hands the command the groups filled in.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

DEFAULT_STORAGE = "results"
UI_PORT = 5000

SweepFolder = Annotated[str, typer.Argument(metavar="STORAGE/NAME", help="The folder of a finished sweep.")]
SweepServer = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow server; by default the sweep's own.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change any setting; repeatable. A searched one is then searched no more.", metavar="NAME=VALUE"
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
        "--require-cluster", help="Fail rather than start a local Ray; so it is on the head of a `ray up` cluster."
    ),
]
Local = Annotated[bool, typer.Option("--local", help="Run every job in this process, one at a time: for a debugger.")]


@dataclass(frozen=True)
class RunGroup:
    """What `kdray run` and a sweep script are told."""

    smoke: Annotated[
        bool, typer.Option("--smoke", help="The same sweep, small: a test of everything in a minute or two.")
    ] = False
    trials: Annotated[
        int | None, typer.Option(help="Trials to run; more than before extends a finished sweep.", min=1)
    ] = None
    changes: Set = None
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
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove this sweep's earlier results and start over.")] = False
    local: Local = False
    ledger: Annotated[
        str | None, typer.Option("--ledger", help="Database that keeps the trials; by default a file.", metavar="URL")
    ] = None


@dataclass(frozen=True)
class RuleGroup:
    """The rule that `kdray choose` is told."""

    retention: Annotated[float | None, typer.Option(help="Least share of the teacher's quality to keep.")] = None
    smallest: Annotated[str | None, typer.Option(help="Cost to have least of.", metavar="COST")] = None
    best: Annotated[str | None, typer.Option(help="Quality to have most of.", metavar="METRIC")] = None
    at_most: Annotated[list[str] | None, typer.Option(help="Limit of a cost; repeatable.", metavar="COST=VALUE")] = None
    knee: Annotated[bool, typer.Option("--knee", help="Take the knee of the front.")] = False


@dataclass(frozen=True)
class AgainGroup:
    """What `kdray choose` is told beside the rule."""

    changes: Set = None
    tracking_uri: TrackingUri = None
    address: Address = None
    require_cluster: RequireCluster = False
    local: Local = False


@dataclass(frozen=True)
class PredictGroup:
    """What `kdray predict` is told beside the sweep and the texts."""

    pair: Annotated[
        list[str] | None, typer.Option(help="The second text of a pair, once for each text.", metavar="TEXT")
    ] = None
    file: Annotated[Path | None, typer.Option(help="Read csv, tsv, txt, json, jsonl or parquet.")] = None
    to: Annotated[Path | None, typer.Option(help="Write csv, jsonl or parquet.", metavar="FILE")] = None
    columns: Annotated[
        str | None, typer.Option(help="Names of the columns of a file without a header.", metavar="A,B")
    ] = None
    form: Annotated[str, typer.Option(help="pytorch, onnx or int8.")] = "pytorch"
    batch_size: Annotated[int, typer.Option(help="Texts at once.", min=1)] = 64


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every group of options replaced by its single options, for Typer to read."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _options(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def flattened(**values: Any) -> None:
        filled = {
            name: group(**{each.name: values.pop(each.name) for each in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **filled)

    flattened.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flattened.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del flattened.__wrapped__  # else the signature of the command itself would be read
    return flattened


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.default is MISSING else each.default,
            annotation=hints[each.name],
        )
        for each in fields(group)
    ]
