"""The forms in which a student is served: PyTorch, ONNX, ONNX in int8. A form is written, opened, and named in metrics.

In reading order:

- `form`        Form: what every form has that is made from the student's ONNX graph
- `libraries`   the libraries of the extra `onnx`, and the error where one is missing
- `graphs`      writes a model as an ONNX graph in float32, from which every form is made
- `onnx_model`  an ONNX file as a torch module
- `onnx`        the form ONNX: that graph itself
- `int8`        the form int8: that graph with int8 weights
- `forms`       the one list of forms; their files; loads a student in one of its forms
- `metrics`     the metrics of each form, such as int8_latency_ms
- `synthetic`   the examples that a model is traced and timed with
"""
