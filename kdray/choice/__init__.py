"""Which student is chosen, and why: the user's rule, the controls, and the confirmation on the test rows.

In reading order:

- `rule`       Choose: the user's rule, the candidates that satisfy it, and the choice in words
- `controls`   the controls of the front: which of them are trained, and their metrics
- `reruns`     Confirm; trains candidates and controls with given seeds, and stores their logits for the test rows
- `answers`    the outputs of the reruns for the test rows, and the mean figures of each student
- `race`       which candidates are trained with a further seed, and which can no longer be chosen
- `verdict`    the confirmed figures with their intervals, and the rule applied to them
- `decision`   the result of a sweep, as the record choice.json
- `champion`   which of two confirmed students is the better one, for the model registry
"""
