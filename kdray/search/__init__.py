"""The search: what is tried, what is kept of it, and who runs it.

- `searcher`    the settings, and the study that the drivers below ask and tell
- `sampling`    how trials are drawn: Optuna's samplers
- `ledger`      the durable record of all trials: an Optuna study
- `storage`     where that is kept: a journal file, or a database
- `stopping`    early stopping among trials of the same costs
- `searching`   runs a search on a pool, by one of the two drivers
- `tuning`      the driver for slots on a cluster: Ray Tune
- `sequential`  the driver without Ray: one trial after the other in this process
- `running`     what the drivers share
- `importance`  which setting matters
- `quiet`       Optuna without its remarks
"""
