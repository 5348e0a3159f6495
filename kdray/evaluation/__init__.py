"""How good, how fast and how sure: outputs, metrics, costs, statistics, and one trial as a record.

In reading order:

- `trial_record`   TrialRecord: all that is known of one trial
- `outputs`        the logits of a model for given rows; agreement with the teacher
- `quality`        the metrics of a student beside its teacher: task metrics, loss, agreement, retention
- `measuring`      Latency; latency, throughput, multiply-adds, parameters and size of one model
- `costs`          the costs of the teacher and of every architecture, measured once and cached
- `statistics`     bootstrap intervals, McNemar's test, metrics of the confusion matrix
- `pareto`         which direction of a metric is better; the Pareto front and its knee
- `formatting`     how names and numbers are written for people
"""
