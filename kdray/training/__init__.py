"""How a model is trained: one loop for teachers and students, its checkpoints, and a trial as a job.

In reading order:

- `settings`     Training: epochs, batch size, learning rate, precision, checkpoints
- `fit`          the training loop
- `step`         one step of the optimiser
- `precision`    whether a model computes in bf16 or in float32
- `checkpoint`   the state of a training as one file that is whole or not used
- `trial`        Recipe: all that a trial can be told; Trial: the job that trains one student
"""
