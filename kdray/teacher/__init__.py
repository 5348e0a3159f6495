"""Who teaches: the teacher model, and the record of its outputs.

- `teacher`    Teacher; finds or fine-tunes the teacher, and refuses one that should not be taught from
- `transfer`   Transfer; writes the transfer set: the teacher's logits for every row
"""
