"""All forms of a student: their names and files. Each is loaded as a torch module.

A new form is a file with its class, and a line in `GRAPH_FORMS`.
"""

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import AfterValidator
from torch import nn

from kdray.errors import StorageError, did_you_mean
from kdray.forms.form import Form
from kdray.forms.int8 import Int8Form
from kdray.forms.onnx import OnnxForm
from kdray.models.checks import check_safety
from kdray.models.pretrained import Pretrained

PYTORCH = "pytorch"
"""The name of the form in which a student is trained."""

ONNX = OnnxForm()
"""The form that the others are made from."""

GRAPH_FORMS: tuple[Form, ...] = (ONNX, Int8Form())
"""The forms that are made from the ONNX graph, in the order in which they are shown."""

FORM_OF: Mapping[str, Form] = {form.name: form for form in GRAPH_FORMS}
"""The name of a form that is made from the ONNX graph -> the form."""

FORMS: tuple[str, ...] = (PYTORCH, *FORM_OF)
"""The names of all forms."""

FILES: Mapping[str, str] = {PYTORCH: "model.safetensors", **{form.name: form.file for form in GRAPH_FORMS}}
"""The name of a form -> its file, relative to the folder of the student."""


def _check_name(name: str) -> str:
    if name not in FORMS:
        raise ValueError(f"no such form; {did_you_mean(name, FORMS)}")
    return name


FormName: TypeAlias = Annotated[str, AfterValidator(_check_name)]
"""The name of a form; pydantic refuses any other name."""


def open_form(student: Pretrained, name: str, threads: int = 0) -> nn.Module:
    """Load the student in the form of this name; the module is called like a transformers model.

    `threads` is the number of threads of an ONNX session; 0 uses one per core. Raises StorageError for a form that has
    not been exported, ResourceError if onnxruntime is missing, TeacherError if the folder is not safe to load.
    """
    if name == PYTORCH:
        return student.model()
    # The tokenizer and the labels of this form come from the same folder, which PyTorch's form checks by itself.
    check_safety(student.folder, "student")
    file = student.folder / FILES[name]
    if not file.exists():
        raise StorageError(f"{file}: not exported yet. Make it with `kdray export STORAGE/NAME --form {name}`.")
    return FORM_OF[name].open(file, threads)
