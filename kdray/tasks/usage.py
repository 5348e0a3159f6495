"""Python code for the model card: how a student is used without kdray, in plain transformers and with onnxruntime.

The code runs in the folder of the student. What differs between tasks is how the outputs are read.
"""

from collections.abc import Sequence

_LOAD = """\
import torch
from transformers import {model}, AutoTokenizer

folder = "."  # the folder of this file
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {model}.from_pretrained(folder, use_safetensors=True).eval()
"""
_ONNX = """\
{imports}import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_truncation({max_length})
{encode}
session = onnxruntime.InferenceSession("{file}")
values = {{"input_ids": text.ids, "attention_mask": text.attention_mask, "token_type_ids": text.type_ids}}
inputs = {{entry.name: np.array([values[entry.name]]) for entry in session.get_inputs()}}
"""
_FIRST_TOKENS = "first = {{word: token for token, word in reversed(list(enumerate({words}))) if word is not None}}"
"""Word -> its first token, where a tagger answers for it."""

NEW_TOKENS = 20
"""The most tokens that the code adds to a text."""
SENTENCE = "In May Ada Lovelace left London ."


def classifier_code(max_length: int, has_pair: bool, reading: Sequence[str]) -> str:
    """Code that reads the logits (N x C) of two texts; the first line of `reading` computes, the others print."""
    pairs = 'pairs = ["second text of the first pair", "second text of the second pair"]\n' if has_pair else ""
    compute, *show = reading
    return _LOAD.format(model="AutoModelForSequenceClassification") + "\n".join(
        [
            'texts = ["one text", "another text"]',
            f'{pairs}options = {{"truncation": True, "max_length": {max_length}, "padding": True}}',
            f'inputs = tokenizer({"texts, pairs" if has_pair else "texts"}, **options, return_tensors="pt")',
            "with torch.inference_mode():",
            f"    {compute}",
            *show,
        ]
    )


def number_code(max_length: int, has_pair: bool) -> str:
    """Code that prints the numbers of two texts."""
    texts = ['"one text"', '"another text"']
    if has_pair:
        texts = [f'{{"text": {text}, "text_pair": "its second text"}}' for text in texts]
    return f"""\
from transformers import pipeline

folder = "."  # the folder of this file
predict = pipeline("text-classification", model=folder)
texts = [{texts[0]}, {texts[1]}]
answers = predict(texts, truncation=True, max_length={max_length})
print([round(answer["score"], 4) for answer in answers])"""


def span_code(max_length: int) -> str:
    """Code that prints the spans of a text, for tags that the pipeline of transformers can group: BIO and IOB1."""
    return f"""\
from transformers import pipeline

folder = "."  # the folder of this file
tagger = pipeline("token-classification", model=folder, aggregation_strategy="first", stride={max_length // 4})
tagger.tokenizer.model_max_length = {max_length}  # longer texts are cut into windows that overlap
# The pipeline takes a sign inside a word, such as the first point of U.S., for a word of its own.
for span in tagger("{SENTENCE}"):
    print(span["start"], span["end"], span["word"], span["entity_group"], round(float(span["score"]), 4))"""


def tag_code(max_length: int) -> str:
    """Code that prints the tag of each word of a text."""
    return _LOAD.format(model="AutoModelForTokenClassification") + "\n".join(
        [
            f'words = "{SENTENCE}".split()',
            f'options = {{"is_split_into_words": True, "truncation": True, "max_length": {max_length}}}',
            'inputs = tokenizer(words, **options, return_tensors="pt")',
            "with torch.inference_mode():",
            "    tags = model(**inputs).logits[0].argmax(dim=-1).tolist()",
            _FIRST_TOKENS.format(words="inputs.word_ids()"),
            "print([(words[word], model.config.id2label[tags[first[word]]]) for word in sorted(first)])",
        ]
    )


def onnx_classifier_code(file: str, max_length: int, has_pair: bool, reading: Sequence[str]) -> str:
    """Code that reads the logits of one text (C) from the graph in this file; `reading` prints them."""
    pair = ', "its second text"' if has_pair else ""
    return _onnx_code(file, max_length, f'text = tokenizer.encode("one text"{pair})', reading)


def onnx_tag_code(file: str, max_length: int) -> str:
    """Code that prints the tag of each word of a text, with the graph in this file."""
    encode = f'words = "{SENTENCE}".split()\ntext = tokenizer.encode(words, is_pretokenized=True)'
    reading = [
        'logits = session.run(["logits"], inputs)[0][0]',
        'names = json.load(open("config.json"))["id2label"]',
        _FIRST_TOKENS.format(words="text.word_ids"),
        "print([(words[word], names[str(logits[first[word]].argmax())]) for word in sorted(first)])",
    ]
    return _onnx_code(file, max_length, encode, reading)


def mask_code() -> str:
    """Code that prints the most probable tokens in the place of a mask."""
    return """\
from transformers import pipeline

folder = "."  # the folder of this file
fill = pipeline("fill-mask", model=folder)
for answer in fill(f"one {fill.tokenizer.mask_token} text"):
    print(answer["token_str"], round(answer["score"], 4))"""


def continuing_code() -> str:
    """Code that prints a text with its continuation."""
    return f"""\
from transformers import pipeline

folder = "."  # the folder of this file
generate = pipeline("text-generation", model=folder)
(answer,) = generate("one text", max_new_tokens={NEW_TOKENS}, do_sample=False)
print(answer["generated_text"])"""


def onnx_mask_code(file: str, max_length: int) -> str:
    """Code that prints the most probable tokens in the place of a mask, with the graph in this file."""
    encode = (
        'mask = json.load(open("tokenizer_config.json"))["mask_token"]\ntext = tokenizer.encode(f"one {mask} text")'
    )
    reading = [
        'logits = session.run(["logits"], inputs)[0][0, text.tokens.index(mask)]',
        "print([tokenizer.id_to_token(int(token)) for token in logits.argsort()[::-1][:5]])",
    ]
    return _onnx_code(file, max_length, encode, reading)


def onnx_continuing_code(file: str, max_length: int) -> str:
    """Code that prints a text with its continuation, with the graph in this file."""
    return f"""\
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
end = json.load(open("generation_config.json")).get("eos_token_id")
session = onnxruntime.InferenceSession("{file}")
ids = tokenizer.encode("one text").ids  # at most {max_length} tokens, with the continuation
for _ in range({NEW_TOKENS}):
    values = {{"input_ids": ids, "attention_mask": [1] * len(ids), "position_ids": list(range(len(ids)))}}
    inputs = {{entry.name: np.array([values[entry.name]]) for entry in session.get_inputs()}}
    ids.append(int(session.run(["logits"], inputs)[0][0, -1].argmax()))
    if ids[-1] == end:
        break
print(tokenizer.decode(ids))"""


def _onnx_code(file: str, max_length: int, encode: str, reading: Sequence[str]) -> str:
    imports = "import json\n\n" if any("json." in line for line in (encode, *reading)) else ""
    return _ONNX.format(imports=imports, max_length=max_length, encode=encode, file=file) + "\n".join(reading)
