"""The ONNX graph of a tiny model, written once a session: an export takes seconds."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from kdray.forms.graphs import write_onnx
from kdray.models.fresh import word_tokenizer
from kdray.models.pretrained import Pretrained, save_model
from tests.models.tiny_bert import tiny_bert


@dataclass(frozen=True)
class Exported:
    """A model, and its ONNX graph in float32."""

    student: Pretrained
    model: PreTrainedModel
    graph: Path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    model = tiny_bert()
    save_model(model, word_tokenizer(["a warm film"], 40, 16), folder)
    (folder / "onnx").mkdir()
    write_onnx(Pretrained(folder, ""), folder / "onnx" / "model.onnx")
    return Exported(Pretrained(folder, ""), model.eval(), folder / "onnx" / "model.onnx")
