"""What is asked of a model: one module for each task, with its settings and its behaviour.

- `task`                  Task: the protocol with everything that the rest of kdray needs from a task
- `text_classification`   TextClassification: one label for a text or a pair of texts
"""
