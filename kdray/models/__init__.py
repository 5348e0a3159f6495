"""What is trained: pretrained checkpoints, fresh models, and students that are built from them.

In reading order:

- `pretrained`        a model and its tokenizer as a folder: found, checked (safetensors only), copied into the cache
- `lineage`           Lineage: the names and fingerprints of what the students of a sweep are made from
- `fresh`             FreshTransformer: a small Transformer with random weights, and a tokenizer made from the texts
- `transformer`       TransformerStudent: a copy of a Transformer with fewer layers
- `student_sources`   the models that students are built from: the teacher, or smaller checkpoints
"""
