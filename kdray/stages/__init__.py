"""The stages of a sweep; `kdray.run` calls them in order, and each one returns a value that the next one takes.

In reading order:

- `session`          the objects that every stage uses
- `ancestry`         the sweep that made a teacher
- `named_forms`      the forms that a sweep names a metric of, checked before anything starts
- `preparing`        the rows, and the models that teacher and students start from
- `copying`          the text with changed copies of it, for each model that reads it
- `warm_start`       which earlier trials may be compared with those of this sweep
- `ordering`         the models that narrower students are cut from, with their most important units first
- `inner_checks`     that what the inner terms of the loss compare can be recorded, checked before anything starts
- `signals`          where the teacher's states come from that inner terms of the loss compare
- `teaching`         the teacher and its transfer set
- `searching`        costs of the architectures, then the trials
- `bookkeeping`      keeps MLflow, the screen and the disk up to date with the ledger
- `retraining`       trains controls and confirms candidates after the search
- `choosing`         applies the rule and records the decision
- `shipping`         the chosen student's folder, its card and the report
- `reading`          the figures of a sweep for its report, from values or from files
- `registering`      registers the student in MLflow's model registry
- `choosing_again`   reads a finished sweep from its files, so that another rule can choose from it
"""
