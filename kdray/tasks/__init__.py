"""What is asked of a model: one module a task, with its settings and its behaviour.

- `task`                  the protocol: what the rest of kdray needs of a task
- `text_classification`   TextClassification: one label for a text or a pair of texts
"""
