"""The chosen student in the forms that others run: a transformers folder, ONNX, ONNX in int8; and its model card.

`shipped`: what a finished sweep has in `chosen/`. `forms`: reading each form. `graphs`: writing ONNX. `checks`: is it
still the same student, and how fast is it. `exporting`: all of it, for `kdray export`. `card`: README.md in the folder.
"""

from kdray.export.card import write_card
from kdray.export.checks import Exported, FormFigures
from kdray.export.exporting import check_empty, copied, export
from kdray.export.forms import FORMS, Form, opened_form
from kdray.export.shipped import Shipped, keep_forms, shipped

__all__ = [
    "FORMS",
    "Exported",
    "Form",
    "FormFigures",
    "Shipped",
    "check_empty",
    "copied",
    "export",
    "keep_forms",
    "opened_form",
    "shipped",
    "write_card",
]
