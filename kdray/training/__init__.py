"""How a model is trained: one loop for teachers and students, its checkpoints, and a trial as a job.

In reading order:

- `settings`     Training: epochs, batch size, learning rate, precision, checkpoints
- `fit`          the training loop
- `step`         one optimiser step
- `precision`    whether a model computes in bf16 or in float32
- `checkpoint`   the state of a training in one file; a damaged file is not used
- `trial`        Recipe: all settings of a trial; Trial: the job that trains one student
"""
