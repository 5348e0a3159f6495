"""A tiny model of each family of transformers' sequence classifiers, and what is tried with it.

    python -m tests.models.families

tries all families and prints the table of docs/models.md (about half an hour on one core).
"""

import re
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from kdray.errors import ExportError, TeacherError
from kdray.evaluation.measuring import Latency, measure_model
from kdray.forms.graphs import write_onnx
from kdray.forms.onnx_model import OnnxModel
from kdray.models.families import FAMILIES, depends_on_padding, reason_against
from kdray.models.fresh import word_tokenizer
from kdray.models.pretrained import Head, Pretrained, find_model, import_model, outline, save_model
from kdray.storage.paths import StoragePaths
from kdray.students.recordable import Recordable
from kdray.students.transformer import TransformerStudent
from kdray.tasks.task import LARGEST_LOGIT_DIFFERENCE
from kdray.tasks.text_classification import TextClassification

LAYERS = 4
LABELS = ("bad", "fair", "good")
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "embedding_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
"""Sizes by their common names; each family has some of them, some under another name."""
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 32}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "deberta": {**RELATIVE, "position_biased_input": False},
    "deberta-v2": {
        **RELATIVE,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
    "diffllama": {"num_key_value_heads": 2},
    "funnel": {"block_sizes": [2, 1, 1], "d_head": 8, "num_hidden_layers": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "squeezebert": {"embedding_size": 16, "q_groups": 1, "k_groups": 1, "v_groups": 1, "post_attention_groups": 1},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh", "local", "lsh"], "num_buckets": 4},
}
"""Sizes that a family needs beside the common ones. DeBERTa has the relative attention of every published model."""


def tiny_config(family: str) -> PreTrainedConfig:
    """The configuration of a tiny model of this family, with three labels."""
    config_class = CONFIG_MAPPING[family]
    names = getattr(config_class, "attribute_map", None) or {}
    default = config_class()
    sizes = {names.get(name, name): size for name, size in SIZES.items() if name in names or name in default.to_dict()}
    sizes |= OWN_SIZES.get(family, {})
    sizes = {name: size for name, size in sizes.items() if size is not None}
    return config_class(
        **sizes, id2label=dict(enumerate(LABELS)), label2id={label: number for number, label in enumerate(LABELS)}
    )


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model whose weights are all random, even norms and biases: a weight in a wrong place changes the logits."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        for module in model.modules():
            # As in every new model. MobileBERT reads the next token, too, and behind the last one there is padding.
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    return model


def save_tiny(family: str, folder: Path) -> PreTrainedModel:
    """Save a tiny model of this family and a tokenizer of the words w0, w1, ... in this folder; return the model."""
    model = random_model(tiny_config(family))
    model.save_pretrained(folder)
    words = " ".join(f"w{number}" for number in range(50))
    word_tokenizer([words], 60, 64).save_pretrained(folder)
    return model


IDS = torch.tensor([[2, 5, 9, 33, 7, 8, 3], [2, 40, 41, 42, 3, 0, 0]])
"""Two texts; the second one is padded."""


def logits(model: torch.nn.Module, ids: Tensor = IDS) -> Tensor:
    """The logits of these texts."""
    with torch.inference_mode():
        result: Tensor = torch.as_tensor(model(input_ids=ids, attention_mask=(ids != 0).long()).logits)
    return result


def try_teacher(family: str, folder: Path) -> None:
    """A folder with a model of this family is accepted, loaded, outlined, trained and measured."""
    model = save_tiny(family, folder / "model")
    found = find_model(str(folder / "model"), None, "teacher.model")
    imported = import_model(found, TextClassification(max_length=12), Head(LABELS), StoragePaths(folder), 0).model()
    assert torch.allclose(logits(imported), logits(model), atol=1e-5)
    described = sum(parameter.numel() for parameter in outline(model.config).parameters())
    assert described == sum(parameter.numel() for parameter in model.parameters())
    imported.train()(input_ids=IDS, attention_mask=(IDS != 0).long()).logits.sum().backward()
    assert any(parameter.grad is not None for parameter in imported.parameters())
    costs = measure_model(imported.eval(), Latency(length=8, warmup=0, repeats=1), torch.device("cpu"))
    assert costs["multiply_adds"] > 0
    if not depends_on_padding(family):
        assert torch.allclose(logits(model, IDS[1:, :5])[0], logits(model)[1], atol=1e-3)


def try_students(family: str, folder: Path) -> None:
    """Students of each depth answer the same when transformers loads them, and one of full depth is the source."""
    source = random_model(tiny_config(family))
    assert torch.allclose(logits(TransformerStudent().build(source, seed=0)), logits(source), atol=1e-5)
    for depth, layers in ((1, "first"), (2, "evenly"), (3, "last")):
        settings = TransformerStudent(depth=depth, layers=layers, dropout=0.0)
        student = settings.build(source, seed=0)
        student.save_pretrained(folder / layers)
        loaded, report = AutoModelForSequenceClassification.from_pretrained(folder / layers, output_loading_info=True)
        assert not report["missing_keys"]
        assert torch.allclose(logits(loaded.eval()), logits(student), atol=1e-5)
        assert torch.isfinite(logits(student)).all()
        outlined = settings.build_outline(outline(source.config))
        assert outlined.state_dict().keys() == student.state_dict().keys()


def try_export(family: str, folder: Path) -> None:
    """The ONNX graph of a student answers as the student does, for other sizes than those that were traced."""
    student = TransformerStudent(depth=2, layers="first").build(random_model(tiny_config(family)), seed=0)
    tokenizer = word_tokenizer([" ".join(f"w{number}" for number in range(50))], 60, 64)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # GPT-2 takes token types for further words
    save_model(student, tokenizer, folder / "student")
    write_onnx(Pretrained(folder / "student", ""), folder / "model.onnx")
    ids = torch.cat([IDS, IDS.flip(0)])
    difference = (logits(OnnxModel(folder / "model.onnx", 1), ids) - logits(student, ids)).abs().max()
    if not difference <= LARGEST_LOGIT_DIFFERENCE:
        raise ExportError("the graph does not answer as the student does")  # `kdray export` refuses it, too


def try_recording(family: str, _folder: Path) -> str:
    """What inner terms of the loss can compare of a model of this family, as a cell of the table."""
    found = Recordable.of(random_model(tiny_config(family)))
    return "yes" if found.hidden and found.attention else "hidden states" if found.hidden else "refused"


TRIED: dict[str, Callable[[str, Path], str | None]] = {
    "teacher": try_teacher,
    "inner terms": try_recording,
    "students": try_students,
    "ONNX": try_export,
}
"""A column of the table -> what is tried. It gives the cell, or None for `yes`."""
SWEEPS = ("albert", "bert", "deberta-v2", "fnet")
"""The families with which the tests run a sweep to a chosen student, as the teacher."""


def row_of(family: str, columns: Iterable[str] = tuple(TRIED)) -> dict[str, str]:
    """The row of the table for this family, with what is tried in these columns.

    Each column is `yes`, `no`, `refused`, or empty for what was not tried; `why` has the reason.
    """
    row = {"family": family, **dict.fromkeys(TRIED, ""), "sweep": "yes" if family in SWEEPS else "", "why": ""}
    if (reason := reason_against(family)) is not None:
        return {**row, "teacher": "refused", "why": reason}
    try:
        logits(random_model(tiny_config(family)))
    except Exception:
        return {**row, "why": "the tests have no tiny model of it"}
    for column in columns:
        if column == "students" and depends_on_padding(family):
            return {
                **row,
                "students": "refused",
                "why": "its answer depends on padding: it is labelled without padding",
            }
        try:
            with tempfile.TemporaryDirectory() as folder:
                row[column] = TRIED[column](family, Path(folder)) or "yes"
        except (TeacherError, ExportError) as error:
            row[column], row["why"] = "refused", _reason(error)
            if column == "students":
                return row
        except Exception as error:
            row[column], row["why"] = "no", _reason(error)
    return row


def table(rows: Iterable[dict[str, str]]) -> str:
    """These rows as a table in Markdown."""
    columns = ["family", *TRIED, "sweep", "why"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(row[column] for column in columns)} |" for row in rows]
    return "\n".join(lines)


def read_table(text: str) -> dict[str, dict[str, str]]:
    """Family -> row, of the table of families at the end of this Markdown text."""
    head, _, *lines = text[text.index("| family |") :].splitlines()
    columns, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in (head, *lines)]
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


def _reason(error: Exception) -> str:
    """The first line of an error, without the advice in it, as the cell of a table."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^(student|this [\w-]+ model has no ONNX graph): ", "", line).split(". ")[0].replace("|", " ")[:160]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(table(row_of(family) for family in sorted(FAMILIES)))  # noqa: T201
