"""What is tried next, what is kept of every trial, and who runs the trials.

In reading order:

- `space`        the searched settings: Ray Tune domains, Optuna distributions, the architectures they make
- `searcher`     Search; the study that hands out trials and takes their evaluations
- `sampling`     draws trials with Optuna's samplers
- `stopping`     Halving: early stopping among trials of equal costs and equal length
- `ledger`       the durable record of all trials: an Optuna study
- `storage`      opens the journal file or database that the ledger is kept in
- `claim`        which sweep a folder belongs to, and whether it may be continued
- `searching`    runs a search on a pool, with one of the two drivers
- `tuning`       the driver for slots on a cluster: Ray Tune
- `sequential`   the driver without Ray: one trial after the other in this process
- `running`      what both drivers share
- `importance`   which setting matters most
- `quiet`        silences Optuna's log messages
"""
