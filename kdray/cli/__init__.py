"""The command line: `main(sweep)` for sweep scripts, and the `kdray` command; printing, logging and exit codes.

`ending`: how every command logs and ends. `options`: what several of them are told. `running`: run, choose. `looking`:
show, sync, ui. `student`: export, predict, register.
"""

from kdray.cli.ending import app, exits
from kdray.cli.running import main, settings_of

from kdray.cli import looking, student  # isort: skip  (their commands are listed after `run`)

__all__ = ["app", "exits", "looking", "main", "settings_of", "student"]
