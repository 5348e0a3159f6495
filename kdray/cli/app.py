"""The `kdray` command: its subcommands, in the order in which `kdray --help` lists them."""

import typer

from kdray.cli.options import flatten_groups
from kdray.cli.running import choose_again, run_file
from kdray.cli.student import export_student, predict, register_student
from kdray.cli.viewing import show, sync_sweep, ui

app = typer.Typer(
    help="Distil a large NLP model into the best small one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(flatten_groups(run_file))
app.command("choose")(flatten_groups(choose_again))
app.command("show")(show)
app.command("sync")(sync_sweep)
app.command("ui")(ui)
app.command("export")(export_student)
app.command("predict")(flatten_groups(predict))
app.command("register")(register_student)
