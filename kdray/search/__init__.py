"""What is tried next, what is kept of every trial, and who runs the trials.

In reading order:

- `settings`            Search: how long to search, for which objectives, within which limits
- `space`               the searched settings: Ray Tune domains, Optuna distributions, the architectures they make
- `planner`             decides which trial runs next, and takes what trials report
- `sampling`            draws trials with Optuna's samplers
- `stopping`            Halving: early stopping among trials of equal costs and equal length
- `ledger`              the durable record of all trials: an Optuna study
- `ledger_storage`      opens the journal file or database that the ledger is kept in
- `claim`               which sweep a folder belongs to, and whether it may be continued
- `run_search`          runs a search on a pool, with one of the two drivers
- `driver`              what both drivers share
- `tune_driver`         the driver for slots on a cluster: Ray Tune
- `sequential_driver`   the driver without Ray: one trial after the other in this process
- `importance`          which setting matters most
- `optuna_logging`      silences Optuna's log messages
"""
