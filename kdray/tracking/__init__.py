"""A sweep in MLflow: runs, artifacts and the model registry. A thread sends the changes that a spool on disk holds.

In reading order:

- `tracker`          the Tracker protocol: what a sweep reports about itself
- `settings`         Tracking: the address of the MLflow store, and how long to wait for a server
- `content`          the desired content of a run, and the part of it that the store lacks
- `spool`            the file of changes that MLflow has not received yet
- `client_process`   an MLflow client in a process of its own
- `sender`           brings the runs in an MLflow store up to date
- `mlflow_tracker`   the tracker that writes the spool and sends the changes while the sweep runs
- `sync`             sends the spool after the sweep has ended: `kdray sync`
- `ids`              the MLflow run ids in the ledger
- `origin`           the command, the commit and the versions of a sweep
- `page`             the page of a sweep in MLflow's user interface
- `database`         creates the default SQLite database of a storage
- `registry`         the versions of a registered model, and its alias `champion`
- `mlflow_model`     writes a student as an MLflow model
- `served_student`   the script that MLflow runs to answer texts, without kdray
"""
