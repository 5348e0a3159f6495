"""Who teaches: the teacher model, and the stored outputs of the teacher.

- `labels`     whether a fine-tuned teacher is one for the task, with the labels of the data
- `teacher`    Teacher; finds or fine-tunes the teacher, and refuses a teacher that is not good enough
- `transfer`   Transfer; writes the transfer set: the teacher's logits for every row
"""
