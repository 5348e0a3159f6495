"""A sweep in MLflow: runs, artifacts and the model registry, sent by a thread through a spool on disk.

In reading order:

- `tracker`          Tracker: what a sweep tells of itself
- `settings`         Tracking: where runs go, and how long a server may be silent
- `content`          what a run should hold, and what of it is new
- `spool`            what MLflow has not received yet, as a file
- `sender`           brings an MLflow store up to date
- `mlflow_tracker`   the tracker that writes the spool and sends it while the sweep runs
- `sync`             sends a spool later: `kdray sync`
- `ids`              the run ids that the ledger keeps
- `origin`           the command, the commit and the versions
- `page`             the sweep's page in MLflow's user interface
- `database`         makes the SQLite database of a storage
- `registry`         versions of a registered model, and the alias `champion`
- `mlflow_model`     a student as an MLflow model
"""
