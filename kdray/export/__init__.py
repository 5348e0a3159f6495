"""Ways to use the chosen student elsewhere: ONNX files, checks against PyTorch, the model card, and predictions.

In reading order:

- `shipped`        the chosen student of a finished sweep: the folder `chosen/` and the settings for its use
- `student_files`  which files of a student are copied and published
- `checks`         compares a form with PyTorch on the test rows, and measures its size and speed
- `exporting`      all steps of `kdray export`
- `card`           the model card: README.md in the student's folder
- `prediction`     predicts for new texts and files
"""
