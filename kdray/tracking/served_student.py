"""A student that MLflow's pyfunc serves: it answers texts in a DataFrame.

The model is the ONNX graph in its folder, which onnxruntime runs, if there is one; else transformers loads its weights.

MLflow copies this file into the folder of the model and runs it there, where kdray is not installed: it must import
nothing of kdray. `mlflow_model` writes such folders.

Shapes: N texts, C outputs, A words.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

BATCH = 32
"""Texts in one forward pass."""
GRAPH = "model.onnx"

Logits = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""A function of the inputs of a batch (each B x L) that gives the outputs, B x C or B x L x C."""


def open_model(folder: Path, head: str) -> Logits:
    """The model in this folder; `head` names the head of transformers, where transformers loads it."""
    return _open_graph(folder / GRAPH) if (folder / GRAPH).exists() else _open_weights(folder, head)


def _open_graph(file: Path) -> Logits:
    import onnxruntime  # noqa: PLC0415  (not needed for a model that transformers loads)

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def logits(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        zeros = np.zeros_like(inputs["input_ids"])
        arrays = {name: np.asarray(inputs.get(name, zeros), np.int64) for name in names}
        return np.asarray(session.run(["logits"], arrays)[0])

    return logits


def _load_weights(folder: Path, head: str) -> Any:
    import torch  # noqa: PLC0415  (not needed for a graph)
    import transformers  # noqa: PLC0415

    model = getattr(transformers, f"AutoModel{head}")
    return model.from_pretrained(folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32).eval()


def _open_weights(folder: Path, head: str) -> Logits:
    import torch  # noqa: PLC0415  (not needed for a graph)

    model = _load_weights(folder, head)

    def logits(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            outputs = model(**{name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()})
        return np.asarray(outputs.logits.numpy())

    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    """The probabilities of the classes, over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


class TextModel:
    """A student that answers for a text, or for a pair of texts, as a whole."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._logits, self._max_length = open_model(folder, "ForSequenceClassification"), settings["max_length"]

    @property
    def names(self) -> list[str]:
        """The name of each output."""
        return [self.config["id2label"][str(output)] for output in range(len(self.config["id2label"]))]

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None) -> np.ndarray:
        """The outputs for these texts (N x C)."""
        parts = []
        for start in range(0, len(texts), BATCH):
            rows = slice(start, start + BATCH)
            inputs = self.tokenizer(
                list(texts[rows]),
                None if pairs is None else list(pairs[rows]),
                truncation=True,
                max_length=self._max_length,
                padding=True,
                return_tensors="np",
            )
            parts.append(self._logits(inputs))
        return np.concatenate(parts)


class Label(TextModel):
    """The answer is the most probable label."""

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None) -> pd.DataFrame:
        """The columns `label` and `score`: the label of each text, and its probability."""
        scores_NxC = softmax(self.logits(texts, pairs).astype(float))
        labels = [self.names[label] for label in scores_NxC.argmax(axis=-1)]
        return pd.DataFrame({"label": labels, "score": scores_NxC.max(axis=-1)})


class Number(TextModel):
    """The answer is a number."""

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None) -> pd.DataFrame:
        """The column `score` with the number of each text."""
        return pd.DataFrame({"score": self.logits(texts, pairs)[:, 0].astype(float)})


class Labels(TextModel):
    """The answer is the labels whose probabilities are above their thresholds, which config.json has."""

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None) -> pd.DataFrame:
        """The column `labels`: for each text a list of objects with label and score, the most probable one first."""
        names, thresholds_C = self.names, self.config["thresholds"]
        cells = []
        for logits_C in self.logits(texts, pairs).astype(float):
            scores_C = 1 / (1 + np.exp(-logits_C))
            given = [label for label in np.argsort(-scores_C) if scores_C[label] > thresholds_C[label]]
            cells.append([{"label": names[int(label)], "score": float(scores_C[label])} for label in given])
        return pd.DataFrame({"labels": cells})


@dataclass(frozen=True)
class Window:
    """A part of a text that the model reads at once."""

    text: int
    """The number of the text."""
    inputs: dict[str, list[int]]
    places: list[int]
    """The first token of each word that this window answers; these words follow each other."""
    first_word: int


class Spans:
    """The answer is the spans of a text, or the tags of its words if the tags make no spans."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
        self._logits = open_model(folder, "ForTokenClassification")
        self._splitter = pre_tokenizers.Split(Regex(settings["word_pattern"]), "removed", invert=True)
        self._max_length, self._has_spans = settings["max_length"], settings["has_spans"]
        self.tokenizer.padding_side = "right"  # the places of the words are counted from the left
        self._special = self._special_tokens()

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None) -> pd.DataFrame:
        """The column `spans`: for each text a list of objects with text, start, end, label and score."""
        words = [self._splitter.pre_tokenize_str(text) for text in texts]
        tags: list[list[str]] = [["O"] * len(each) for each in words]
        scores = [np.zeros(len(each)) for each in words]
        # An empty list of words has nothing to answer, and some tokenizers refuse it.
        with_words = [number for number, each in enumerate(words) if each]
        windows = [
            window for number in with_words for window in self._windows(number, [word for word, _ in words[number]])
        ]
        for start in range(0, len(windows), BATCH):
            batch = windows[start : start + BATCH]
            for window, probabilities_LxC in zip(batch, self._probabilities(batch), strict=True):
                for word, place in enumerate(window.places, window.first_word):
                    tags[window.text][word] = self._names[str(probabilities_LxC[place].argmax())]
                    scores[window.text][word] = probabilities_LxC[place].max()
        return pd.DataFrame({"spans": [self._spans(*each) for each in zip(texts, words, tags, scores, strict=True)]})

    def _spans(
        self, text: str, words: Sequence[Any], tags: Sequence[str], scores_A: np.ndarray
    ) -> list[dict[str, Any]]:
        spans = []
        for first, end, label in _groups(tags, self._has_spans):
            (start, _), (_, after) = words[first][1], words[end - 1][1]
            score = float(scores_A[first:end].mean())
            spans.append({"text": text[start:after], "start": start, "end": after, "label": label, "score": score})
        return spans

    def _probabilities(self, windows: Sequence[Window]) -> np.ndarray:
        """The probabilities of the tags of each token (windows x L x C)."""
        inputs = {name: [window.inputs[name] for window in windows] for name in windows[0].inputs}
        padded = self.tokenizer.pad(inputs, return_tensors="np", return_attention_mask=True)
        return softmax(self._logits(padded))

    def _windows(self, text: int, words: Sequence[str]) -> Iterator[Window]:
        """The windows of a text, as in the training. `kdray.tasks.windows` explains them."""
        encoded = self.tokenizer(list(words), is_split_into_words=True, add_special_tokens=False, verbose=False)
        word_ids = encoded.word_ids()
        ids: list[int] = []
        firsts: list[int] = []
        for word in range(len(words)):
            firsts.append(len(ids))
            # A word without any token is read as an unknown one.
            start, end = bisect_left(word_ids, word), bisect_right(word_ids, word)
            ids += encoded["input_ids"][start:end] or [self._unknown()]
        before, behind, types = self._special
        for begin, end, first_word, end_word in _cut(firsts, len(ids), self._max_length - len(before) - len(behind)):
            inputs = {"input_ids": [*before, *ids[begin:end], *behind]}
            if "token_type_ids" in self.tokenizer.model_input_names:
                middle = [types[len(before)]] * (end - begin)
                inputs["token_type_ids"] = [*types[: len(before)], *middle, *types[len(types) - len(behind) :]]
            places = [first - begin + len(before) for first in firsts[first_word:end_word]]
            yield Window(text, inputs, places, first_word)

    def _special_tokens(self) -> tuple[list[int], list[int], list[int]]:
        """The special tokens before and behind a text, and the token types of a text with one word."""
        encoded = self.tokenizer(["a"], is_split_into_words=True, return_token_type_ids=True)
        inner = [place for place, word in enumerate(encoded.word_ids()) if word is not None]
        ids = encoded["input_ids"]
        return ids[: inner[0]], ids[inner[-1] + 1 :], encoded["token_type_ids"]

    def _unknown(self) -> int:
        names = ("unk_token_id", "mask_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "pad_token_id")
        return next((token for name in names if (token := getattr(self.tokenizer, name, None)) is not None), 0)


class Masks:
    """The answer is the most probable tokens at each mask of a text."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._logits = open_model(folder, "ForMaskedLM")
        self._mask, self._shown = settings["mask"], settings["candidates"]
        encoded = self.tokenizer(["a"], is_split_into_words=True)
        inner = [place for place, word in enumerate(encoded.word_ids()) if word is not None]
        self._before, self._behind = encoded["input_ids"][: inner[0]], encoded["input_ids"][inner[-1] + 1 :]
        self._room = settings["max_length"] - len(self._before) - len(self._behind)

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None) -> pd.DataFrame:
        """The column `masks`: for each mask of a text the token with its score, and the most probable candidates."""
        cells: list[list[dict[str, Any]]] = []
        for text in texts:
            text = text.replace(self._mask, self.tokenizer.mask_token)
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            places = [place for place, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
            masks = []
            # One window at a time: the logits of all its tokens, over the vocabulary, are many numbers.
            for begin, end, inside in _around(places, len(ids), self._room):
                window = np.array([[*self._before, *ids[begin:end], *self._behind]])
                (logits_LxV,) = self._logits({"input_ids": window, "attention_mask": np.ones_like(window)})
                masks += [self._candidates(logits_LxV[place - begin + len(self._before)]) for place in inside]
            cells.append(masks)
        return pd.DataFrame({"masks": cells})

    def _candidates(self, logits_V: np.ndarray) -> dict[str, Any]:
        scores_V = softmax(logits_V.astype(float))
        best = np.argsort(-scores_V)[: self._shown]
        names = [self.tokenizer.decode([int(token)]).strip() for token in best]
        candidates = [{"token": name, "score": float(scores_V[token])} for name, token in zip(names, best, strict=True)]
        return {**candidates[0], "candidates": candidates}


class Continuation:
    """The answer is what the student writes behind a text, taking the most probable token each time."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._model = _load_weights(folder, "ForCausalLM")
        self._tokens, self._room = settings["tokens"], settings["max_length"] - settings["tokens"]

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None) -> pd.DataFrame:
        """The columns `continuation` and `score`, the geometric mean of the probabilities of its tokens."""
        answers = [self._continue(text) for text in texts]
        return pd.DataFrame(answers, columns=["continuation", "score"])

    def _continue(self, text: str) -> tuple[str, float]:
        import torch  # noqa: PLC0415  (not needed for a graph)

        tokenizer = self.tokenizer
        ids = tokenizer(text, verbose=False)["input_ids"]
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]  # some tokenizers end each text; this one goes on
        first = tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        prompt = torch.tensor([ids[-self._room :] or [first]])
        with torch.inference_mode():
            outputs = self._model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=self._tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        new = outputs.sequences[0, prompt.shape[-1] :]
        logs_S = torch.cat(outputs.logits).float().log_softmax(dim=-1).gather(-1, new[:, None])
        before, whole = (tokenizer.decode(each, skip_special_tokens=True) for each in (prompt[0], outputs.sequences[0]))
        return whole[len(before) :], float(logs_S.mean().exp())


def _around(masks: Sequence[int], size: int, room: int) -> Iterator[tuple[int, int, Sequence[int]]]:
    """First token, the token behind the last one, and the masks of each window. `kdray.tasks.token_answers` has it."""
    context, first = room // 4, 0
    while first < len(masks):
        begin = max(0, min(masks[first] - context, size - room))
        end = min(begin + room, size)
        behind = bisect_left(masks, end if end == size else end - context)
        yield begin, end, masks[first:behind]
        first = behind


def _cut(firsts: Sequence[int], size: int, room: int) -> Iterator[tuple[int, int, int, int]]:
    """First token, the token behind the last one, first word, and the word behind the last one of each window."""
    if size <= room:
        yield 0, size, 0, len(firsts)
        return
    context, word = room // 4, 0

    def begin_at(word: int) -> int:
        return firsts[bisect_left(firsts, firsts[word] - context)]

    while word < len(firsts):
        begin, end_word = begin_at(word), len(firsts)
        if begin + room < size:
            end_word = max(bisect_right(firsts, begin + room - context) - 1, word + 1)
            while end_word < len(firsts) and begin_at(end_word) == begin:
                end_word += 1
        yield begin, min(begin + room, size), word, end_word
        word = end_word


def _groups(tags: Sequence[str], has_spans: bool) -> Iterator[tuple[int, int, str]]:
    """First word, the word behind the last one, and label of each span; each word by itself if there are no spans.

    Tags are read as by seqeval's default mode: where they contradict each other, a new span begins.
    """
    if not has_spans:
        yield from ((word, word + 1, tag) for word, tag in enumerate(tags))
        return
    first, before, label = 0, "O", ""
    for word, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        continues = prefix in ("I", "E", "L") and before in ("B", "I") and kind == label
        if not continues and before != "O":
            yield first, word, label
        if not continues:
            first = word
        before, label = prefix, kind


ANSWERS: dict[str, Any] = {
    "label": Label,
    "labels": Labels,
    "number": Number,
    "spans": Spans,
    "masks": Masks,
    "continuation": Continuation,
}
"""The setting `answers` -> what answers."""


class ServedStudent(mlflow.pyfunc.PythonModel):
    """The model that MLflow loads."""

    def load_context(self, context: Any) -> None:
        """Load the student from the folder of the model."""
        settings = dict(context.model_config)
        self._student = ANSWERS[settings["answers"]](Path(context.artifacts["student"]), settings)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Answer texts, in the only column or in the column text, which has second texts in text_pair beside it."""
        if "text_pair" in model_input:
            return self._student.answer(model_input["text"].tolist(), model_input["text_pair"].tolist())
        return self._student.answer(model_input.iloc[:, 0].tolist(), None)


mlflow.models.set_model(ServedStudent())
