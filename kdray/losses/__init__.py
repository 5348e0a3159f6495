"""The loss that a student is trained with.

- `distribution`   Distribution: what the outputs of a model mean, and the terms that compare two of them
- `softmax`        Softmax: each answer is one of several classes
- `sigmoid`        Sigmoid: each of several labels holds or does not hold
- `value`          Value: the answer is a number
- `distillation`   Distillation: the weights of the terms, and the loss of a batch
"""
