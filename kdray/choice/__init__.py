"""Who is chosen, and why: the user's rule, the controls it is checked against, and the confirmation on unseen rows.

In reading order:

- `rule`       Choose: the user's rule, the candidates that satisfy it, and the choice in a sentence
- `controls`   which students are trained as controls, and what a control recipe leaves out
- `reruns`     Confirm; trains candidates and controls again over other seeds, and stores their answers
- `verdict`    the confirmed figures with their intervals, and the rule applied to them
- `decision`   what a sweep came to, as the record choice.json
- `champion`   which of two confirmed students is the better one, for the model registry
"""
