"""The steps of the story that need a whole sweep; `kdray.run` puts them together.

In reading order:

- `warm_start`       which earlier trials may be compared with those of this sweep
- `bookkeeping`      keeps MLflow, the screen and the disk up to date while trials run
- `retraining`       trains controls and confirms candidates after the search
- `choosing`         applies the rule, ships the student, gathers the report's figures
- `registering`      registers the student in MLflow's model registry
- `choosing_again`   reads a finished sweep back, so that another rule can choose from it
"""
