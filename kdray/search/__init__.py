"""Which trial is tried next, what is recorded of each trial, and who runs the trials.

In reading order:

- `settings`            Search: how long to search, for which objectives, within which limits
- `conditions`          which of the searched settings a trial has
- `space`               the searched settings: Ray Tune domains, Optuna distributions, and the architectures they make
- `planner`             decides which trial runs next, and takes the evaluations of the trials
- `sampling`            draws trials with Optuna's samplers
- `tpe`                 Optuna's TPE sampler, at a cost that does not grow with the number of trials
- `cmaes`               Optuna's CMA-ES sampler, without its pickled optimizer
- `stopping`            Halving and Rungs: early stopping among trials with equal costs and equal length
- `ledger`              the durable record of all trials: an Optuna study
- `ledger_storage`      opens the journal file or database that stores the ledger
- `claim`               which sweep a folder belongs to, and whether a sweep may continue there
- `run_search`          runs a search on a pool of slots, with one of the two drivers
- `driver`              what both drivers share
- `tune_driver`         the driver for slots on a cluster: Ray Tune
- `sequential_driver`   the driver without Ray: one trial after the other in this process
- `importance`          which setting matters most
- `optuna_logging`      silences Optuna's log messages
"""
