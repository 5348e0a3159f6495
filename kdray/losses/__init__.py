"""The loss that a student is trained with.

- `comparison`        Comparison: the outputs of student and teacher; Outcomes: the probabilities that they mean
- `soft_term`         SoftTerm: a way in which the soft loss compares them
- `divergences`       KL, ReverseKL, JSD, TVD: ways that compare probabilities
- `logit_difference`  MSE: the squared difference of the logits
- `decoupled`         DKD: the target class and the other classes, with weights of their own
- `relations`         DIST: the correlations within each answer and within each class
- `schedule`          how a setting of the loss goes from its start to its end during a training
- `soft_terms`        the one list of the ways
- `distribution`      Distribution: what the outputs of a model mean, and the terms that compare two of them
- `softmax`           Softmax: each answer is one of several classes
- `sigmoid`           Sigmoid: each of several labels holds or does not hold
- `value`             Value: the answer is a number
- `distillation`      Distillation: the weights of the terms, and the loss of a batch
- `checks`            which settings of the loss a sweep is refused for
"""
