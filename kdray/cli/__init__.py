"""The command line: `main(sweep)` for sweep scripts, the `kdray` command, printing, logging and exit codes.

In reading order:

- `app`       the `kdray` command: the list of its subcommands
- `options`   arguments and options that several subcommands share
- `exits`     how every command logs, prints its errors and ends: exit codes
- `running`   `main(sweep)`, `kdray run`, `kdray choose`
- `viewing`   `kdray show`, `kdray sync`, `kdray ui`
- `student`   `kdray export`, `kdray predict`, `kdray register`
"""
