"""The chosen student for others: ONNX and int8 files, checks against PyTorch, the model card, predictions.

In reading order:

- `shipped`      the chosen student of a finished sweep, as it lies in `chosen/`
- `forms`        reads a student in one of its forms: PyTorch, ONNX, ONNX in int8
- `graphs`       writes the ONNX files
- `checks`       compares a form with PyTorch on the test rows, and measures it
- `exporting`    all of it, for `kdray export`
- `card`         the model card: README.md in the student's folder
- `prediction`   what the student answers for new texts and files
"""
