"""Models as folders: pretrained checkpoints, checked and copied into the cache, and fresh ones.

In reading order:

- `pretrained`    a model and its tokenizer as a folder: found, checked (safetensors only), copied into the cache
- `checks`        everything that is checked of a model folder, in order
- `folders`       the files of a model folder: which are read, where links may lead, their fingerprint
- `json_files`    JSON that a stranger wrote, with limits
- `config_files`  config.json and the tokenizer's configuration: no code, no absurd numbers
- `weight_files`  the weights: safetensors only, checked by their headers
- `families`      which families of transformers are accepted, and which answers depend on padding
- `vocabulary_head`  the outputs of a model at the answers of a batch, without all logits over a vocabulary
- `lineage`       Lineage: names, fingerprints and figures of what the students of a sweep are made from
- `fresh`         FreshTransformer: a small Transformer with random weights, and a tokenizer made from the texts
"""
