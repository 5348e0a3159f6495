"""The small networks that transformers does not have: recurrent, convolutional and static models.

Each is a model of transformers with a configuration of its own, so it is trained, saved and exported as any other.

- `encoder_model`        what they have in common: embeddings, an encoder, a head
- `recurrent_model`      LSTM and GRU in both directions
- `recurrent_onnx`       a recurrent layer as one operator of ONNX, for the export
- `convolutional_model`  filters of several widths, and residual dilated blocks
- `static_model`         the weighted mean of embeddings
- `registered`           the one list of them, which makes transformers load them
"""
