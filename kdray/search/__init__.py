"""The search: what is tried, what is kept of it, and who runs it.

- `ledger`      the durable record of all trials: an Optuna study
- `stopping`    early stopping among trials of the same cost
- `searcher`    settings, and the study that both drivers below ask and tell
- `tuning`      Ray Tune runs the trials, over slots on a cluster
- `sequential`  one trial after the other in this process, without Ray
- `searching`   which of the two a pool is for
"""
