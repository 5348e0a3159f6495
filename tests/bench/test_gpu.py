"""bench/gpu.py measures on any device, and without most of kdray's packages."""

import ast
import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"


def test_a_small_run_measures_students_alone_and_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    gpu = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", gpu)
    spec.loader.exec_module(gpu)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny"])
    gpu.main()
    out, lines = capsys.readouterr()
    figures = json.loads(out)
    assert figures["measurements"] == [json.loads(line) for line in lines.splitlines()]
    peak, *steps = figures["measurements"]
    assert peak["tflops"] > 0
    assert not [step for step in steps if "error" in step]
    members = {(step["what"], step["members"]) for step in steps}
    assert members == {("alone", 1), ("fused", 1), ("fused", 2), ("fp32", 1), ("AdamW by weights", 1)}
    (pair,) = [step for step in steps if (step["what"], step["members"]) == ("fused", 2)]
    assert figures["ratio"] == pair["speedup"] > 0


def test_it_imports_torch_and_transformers_alone() -> None:
    for file in (SCRIPT, SCRIPT.parents[1] / "kdray" / "training" / "fused_model.py"):
        imports = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        modules = [node.module or "" for node in imports if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names]
        assert {name.split(".")[0] for name in modules} - sys.stdlib_module_names <= {"torch", "transformers"}
