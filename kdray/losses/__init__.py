"""What a student is trained to lower.

- `logits`         pure functions that compare logits, one value an example
- `distillation`   Distillation: the weights of these terms, and the loss of a batch
"""
