"""Who teaches: one model, several, or a file with answers; and the stored outputs of the teacher.

- `labels`        whether a fine-tuned teacher is one for the task, with the labels of the data
- `answer_file`   AnswerFile: where the answers of a teacher are that is a file, and what its columns mean
- `teacher`       Teacher; finds or fine-tunes the teacher, and refuses a teacher that is not good enough
- `own_rows`      the rows that a teacher is fine-tuned on, where they are others than those of its students
- `answer_cells`  the numbers in the columns of a file with answers
- `answers`       the answers of a file, checked and joined with the rows
- `shard_files`   files that the slots write together, each with a part of the rows
- `transfer`      Transfer; writes the transfer set: the teacher's logits for every row
- `state_files`   writes the teacher's hidden states for all texts to train on
- `averaging`     the transfer set with the mean of several teachers
- `exporting`     the texts of a sweep for others to answer, and a transfer set as a file with answers
"""
