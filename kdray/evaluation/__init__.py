"""How good, how fast and how sure: outputs, metrics, costs, statistics, and the record of one trial.

In reading order:

- `trial_record`   TrialRecord: everything that is known about one trial
- `outputs`        the logits of a model on given rows; its agreement with the teacher
- `quality`        a student compared with its teacher: task metrics, loss, agreement, retention
- `measuring`      Latency; the latency, throughput, multiply-adds, parameters and size of one model
- `form_costs`     the costs of one model in ONNX and in int8: exported, timed and deleted
- `costs`          the costs of the teacher and of every architecture, measured once and cached
- `statistics`     bootstrap intervals, McNemar's test, metrics of the confusion matrix
- `randomisation`  approximate randomisation test of the difference of any metric
- `pareto`         which direction of a metric is better; the Pareto front and its knee
- `formatting`     text for people: names and numbers
"""
