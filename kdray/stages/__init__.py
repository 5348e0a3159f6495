"""The steps of the story that need a whole sweep; `kdray.run` puts them together.

In reading order:

- `session`          what every stage works with
- `preparing`        the rows, and the models that teacher and students start from
- `warm_start`       which earlier trials may be compared with those of this sweep
- `teaching`         the teacher and its transfer set
- `searching`        costs of the architectures, then the trials
- `bookkeeping`      keeps MLflow, the screen and the disk up to date while trials run
- `retraining`       trains controls and confirms candidates after the search
- `choosing`         applies the rule and writes down the decision
- `shipping`         the chosen student's folder, its card and the report
- `reading`          what is known of a sweep, from values or from its files
- `registering`      registers the student in MLflow's model registry
- `choosing_again`   reads a finished sweep back, so that another rule can choose from it
"""
