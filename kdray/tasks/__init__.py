"""What is asked of a model: one module for each task, with its settings and its behaviour.

- `counts`                Counts: what each row adds to some sums, and the metrics that are functions of these sums
- `answers`               what a model answers, for people: lines and columns
- `heads`                 which class of transformers loads a model with the head of a task
- `label_figures`         F1 and the number of the gold, of each label
- `serving`               how MLflow's pyfunc answers for a model
- `usage`                 Python code for the model card
- `task`                  Task: everything that the rest of kdray needs from a task
- `kinds`                 all tasks: the one list of them
- `texts`                 TextTask: one answer for a text, or for a pair of texts
- `label_order`           the order of the labels
- `kept_thresholds`       the thresholds of labels in the configuration of a model
- `regression`            Regression: a number for a text or a pair of texts
- `multi_label`           MultiLabel: any number of labels for a text or a pair of texts
- `token_classification`  TokenClassification: a tag for each word of a text
- `tag_order`             the order of the tags, from the training rows
- `scheme_difference`     what the tags of one scheme are in another one
- `span_answers`          the spans that a tagger finds, for people
- `confusion`             the confusion matrix of one class for each row as counts: accuracy, macro F1, MCC
- `text_classification`   TextClassification: one label for a text or a pair of texts
- `label_sets`            several labels for each row as counts: F1, subset accuracy; average precision
- `thresholds`            from which probability on a label is given, chosen on validation rows
- `tag_schemes`           how tags write spans (BIO, IOB1, BIOES, BILOU, plain tags): recognised, checked, listed
- `spans`                 the spans of tagged words, as seqeval reads them; tags at impossible places
- `span_metrics`          tagged words as counts: F1 of spans and of types, accuracy
- `windows`               words as sub-words; long sentences as windows that overlap
- `correlation`           one number for each row as counts: Pearson, MSE, MAE; Spearman
"""
