"""What is trained: pretrained checkpoints, fresh models, and students that are built from them.

In reading order:

- `pretrained`        a model and its tokenizer as a folder: found, checked (safetensors only), copied into the cache
- `lineage`           what the students of a sweep come from
- `fresh`             FreshTransformer: a small Transformer with random weights, and a tokenizer made from the texts
- `transformer`       TransformerStudent: a shallower copy of a Transformer
- `student_sources`   the models that students are built from: the teacher, or smaller checkpoints
"""
