"""How a model is trained: one loop for teachers and students, its checkpoints, and a trial as a job.

In reading order:

- `settings`     Training: epochs, batch size, learning rate, precision, checkpoints
- `fit`          the training loop
- `step`         one optimiser step
- `compact`      the token embeddings in a training, without the rows of tokens that no training row has
- `parts`        the loss of outputs over a vocabulary, computed for some answers at a time
- `signal`       Signal: where the states of a teacher come from that inner terms compare; the live teacher
- `stored_signal`  the signal that reads hidden states from files; one that also has the teacher, for attention
- `inside`       the states of student and teacher for the inner terms of a loss
- `quantising`   the forward pass of a student as its int8 file computes it, for a student that is served in int8
- `precision`    whether a model computes in bf16 or in float32
- `checkpoint`   when a checkpoint is due, and how a training continues from it
- `checkpoint_files`   the file of a checkpoint; one that is damaged or does not fit is not used
- `fused`        the training loop of several students that are trained as one batch of models
- `fused_step`     one optimiser step of all of them; their weights and moments
- `fused_loss`     their losses on the same answers
- `fused_model`    their forward pass on the same batch; which models can have one
- `fused_trials`   the job that trains the students of several trials so
- `trial`        Recipe: all settings of a trial; Trial: the job that trains one student
"""
