"""The libraries of the extra `onnx`, and the error where one of them is missing."""

import importlib.util
from collections.abc import Sequence

from kdray.errors import ResourceError

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
"""What writing a form needs; onnxruntime alone loads one."""
INSTALL = "pip install 'kdray[onnx]'"


def require_installed(libraries: Sequence[str] = LIBRARIES) -> None:
    """Raise ResourceError, with the command to install, if one of these libraries is missing."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise ResourceError(f"ONNX needs {', '.join(missing)}, not installed here: {INSTALL}")
