"""The loss that a student is trained with.

- `logits`         the terms: pure functions that compare logits, with one value for each example
- `distillation`   Distillation: the weights of the terms, and the loss of a batch
"""
