"""The loss that a student is trained with.

- `comparison`           Comparison: the outputs of student and teacher; Outcomes: the probabilities that they mean
- `soft_term`            SoftTerm: a way in which the soft loss compares them
- `divergences`          KL, ReverseKL, JSD, TVD: ways that compare probabilities
- `logit_difference`     MSE: the squared difference of the logits
- `decoupled`            DKD: the target class and the other classes, with weights of their own
- `relations`            DIST: the correlations within each answer and within each class
- `schedule`             how a setting of the loss goes from its start to its end during a training
- `soft_terms`           the one list of the ways
- `states`               States: what the layers of a model computed for a batch
- `inner_term`           InnerTerm: a way to compare a layer of the student with one of the teacher
- `hidden_states`        HiddenMSE, HiddenCosine, FirstToken, Embeddings: ways that compare hidden states
- `token_pairs`          what each token of a row says about the others, as scores or as shares
- `attention_maps`       AttentionScores, AttentionMaps: ways that compare attention
- `attention_relations`  Relations, ValueRelation: ways that compare relations between queries, keys or values
- `layer_map`            which layer of a student learns from which layer of its teacher
- `inner_settings`       InnerSettings: the weights of these ways, and what they compare
- `inner_terms`          the one list of these ways
- `distribution`         Distribution: what the outputs of a model mean, and the terms that compare two of them
- `softmax`              Softmax: each answer is one of several classes
- `sigmoid`              Sigmoid: each of several labels holds or does not hold
- `value`                Value: the answer is a number
- `top_k`                TopK: the outputs over a vocabulary in few numbers
- `vocabulary`           Vocabulary: each answer is one token of a vocabulary
- `distillation`         Distillation: the weights of all terms, and the loss of the outputs of a batch
- `objective`            Objective: the whole loss of a training, with the projections that it learns
- `checks`               which settings of the loss a sweep is refused for
"""
