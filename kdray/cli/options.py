"""Arguments and options of the command line that several commands have."""

from typing import Annotated

import typer

DEFAULT_STORAGE = "results"
UI_PORT = 5000

SweepFolder = Annotated[str, typer.Argument(metavar="STORAGE/NAME", help="The folder of a finished sweep.")]
Storage = Annotated[
    str,
    typer.Option(
        help="Folder for all results, or a bucket: s3://bucket/folder, gs://...",
        metavar="DIR_OR_URL",
        envvar="KDRAY_STORAGE",
    ),
]
Smoke = Annotated[bool, typer.Option("--smoke", help="The same sweep, small: a test of everything in a minute or two.")]
Trials = Annotated[int | None, typer.Option(help="Trials to run; more than before extends a finished sweep.", min=1)]
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
LedgerUrl = Annotated[
    str | None, typer.Option("--ledger", help="Database that keeps the trials; by default a file.", metavar="URL")
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join, such as auto or ray://host:10001.")]
RequireCluster = Annotated[
    bool,
    typer.Option(
        "--require-cluster", help="Fail rather than start a local Ray; so it is on the head of a `ray up` cluster."
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove this sweep's earlier results and start over.")]
Local = Annotated[bool, typer.Option("--local", help="Run every job in this process, one at a time: for a debugger.")]
SweepServer = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow server; by default the sweep's own.")]
