"""Costs in ONNX and in int8: measured only if a form is named, and cached beside the other costs; no file is left."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from kdray.data.tokens import TokenSet
from kdray.errors import ExportError, ResourceError, SpecError
from kdray.evaluation import form_costs
from kdray.evaluation.costs import CostMeasuring, Costs, combined_costs
from kdray.evaluation.form_costs import REASON, MeasureForms
from kdray.evaluation.measuring import PYTORCH_METRICS, Latency
from kdray.forms.forms import GRAPH_FORMS
from kdray.forms.metrics import FORM_COSTS
from kdray.models.fresh import word_tokenizer
from kdray.models.pretrained import Pretrained, save_model
from kdray.slots.job import Worker
from kdray.slots.local import LocalSlots
from kdray.storage.files import SCRATCH, fingerprint
from kdray.storage.paths import StoragePaths
from kdray.students.sources import BySource, StudentSource
from kdray.students.transformer import TransformerStudent
from tests.models.tiny_bert import tiny_bert

LATENCY = Latency(length=8, warmup=1, repeats=3, throughput_batch_size=3)
NAMES = tuple(form.name for form in GRAPH_FORMS)
ONE = TransformerStudent(depth=1)
HARDWARE = "kdray.evaluation.costs.hardware_name"


def _save(model: torch.nn.Module, folder: Path) -> Pretrained:
    save_model(model, word_tokenizer(["a warm film"], 40, 16), folder)  # type: ignore[arg-type]
    return Pretrained(folder, folder.name)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return _save(tiny_bert(), tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def longformer(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    """A model without an ONNX graph: it pads its inputs to its attention window, which the exporter cannot trace."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = AutoConfig.for_model("longformer", vocab_size=40, attention_window=4, pad_token_id=0, **sizes)
    model = AutoModelForSequenceClassification.from_config(config)
    return _save(model, tmp_path_factory.mktemp("models") / "longformer")


class Session:
    """Measures the costs of a student of depth 1 in some forms; each call is a new session of a sweep."""

    def __init__(self, paths: StoragePaths, slots: LocalSlots, tokens: TokenSet) -> None:
        self.paths, self._slots, self._tokens = paths, slots, tokens

    def __call__(
        self,
        teacher: Pretrained,
        *forms: str,
        checkpoint: Pretrained | None = None,
        measured_on: dict[str, str] | None = None,
    ) -> Costs:
        students = [ONE if checkpoint is None else TransformerStudent(depth=1, checkpoint="small")]
        checkpoints = {} if checkpoint is None else {"small": StudentSource(checkpoint, self._tokens)}
        measuring = CostMeasuring(
            latency=LATENCY,
            paths=self.paths,
            pool=self._slots,
            measured_on=measured_on,
            forms=tuple(form for form in GRAPH_FORMS if form.name in forms),
        )
        sources = BySource(StudentSource(teacher, self._tokens), checkpoints)
        return measuring.measure(students, sources, lambda done, count: None)

    @property
    def files(self) -> dict[str, bytes]:
        """Name -> content of every file in the cache of costs."""
        return {file.name: file.read_bytes() for file in (self.paths.cache / "costs").iterdir()}


class SharedCosts(Session):
    """A storage in which a teacher and its student were measured in PyTorch, and later in every form."""

    def __init__(self, folder: Path, slots: LocalSlots, tokens: TokenSet, teacher: Pretrained) -> None:
        super().__init__(StoragePaths(folder / "storage"), slots, tokens)
        self.first = self(teacher)
        self.first_files = self.files
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(self.temporary))
            patch.setattr("kdray.evaluation.costs.measure_model", lambda *values: pytest.fail("measured anew"))
            self.second = self(teacher, *NAMES)

    @contextmanager
    def without_int8(self, sizes: dict[str, int]) -> Iterator[None]:
        """Take the costs in int8 of the architecture of these sizes out of the cache, for the block."""
        contents = {file: json.loads(file.read_bytes()) for file in (self.paths.cache / "costs").iterdir()}
        key = ("int8", sizes)
        (file,) = [file for file, each in contents.items() if (each.get("form"), each["architecture"]) == key]
        moved = file.rename(file.with_suffix(".moved"))
        yield
        moved.rename(file)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tokens: TokenSet, bert: Pretrained) -> Iterator[SharedCosts]:
    with LocalSlots() as slots:
        yield SharedCosts(tmp_path_factory.mktemp("costs"), slots, tokens, bert)


# The costs ------------------------------------------------------------------------------------------------------------


def test_a_model_has_the_costs_of_each_form(shared: SharedCosts, bert: Pretrained) -> None:
    costs, teacher = shared.second.of(ONE), shared.second.teacher
    assert tuple(teacher) == (*PYTORCH_METRICS, *FORM_COSTS)
    for form in NAMES:
        assert 0 < costs[f"{form}_latency_ms"] <= costs[f"{form}_latency_p95_ms"]
        assert costs[f"{form}_throughput_per_s"] > 0
        assert 0 < costs[f"{form}_size_mb"] < teacher[f"{form}_size_mb"]
        assert costs[f"{form}_speedup"] == teacher[f"{form}_latency_ms"] / costs[f"{form}_latency_ms"]
    assert costs["int8_size_mb"] < costs["onnx_size_mb"]
    assert shared.second.conditions == shared.first.conditions
    assert shared.second.notes == ()


def test_the_cache_of_a_sweep_without_forms_is_completed(shared: SharedCosts, bert: Pretrained) -> None:
    """The files of the first session keep their names and contents, and nothing of them was measured anew."""
    hardware = shared.first.machine
    keys = {fingerprint(bert.key, sizes, LATENCY.model_dump(), hardware) for sizes in ({}, {"depth": 1})}
    assert set(shared.first_files) == {f"{key}.json" for key in keys}
    assert shared.files.items() >= shared.first_files.items()
    assert len(shared.files) == 2 + 2 * len(NAMES)
    assert shared.second.of(ONE).items() >= shared.first.of(ONE).items()


def test_costs_in_the_cache_are_not_exported_again(
    shared: SharedCosts, bert: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form_costs, "write_graph", lambda *values: pytest.fail("a model was exported"))
    assert shared(bert, *NAMES) == shared.second
    assert shared(bert) == shared.first  # a sweep that names no form has no costs in one, although they are there
    only = shared(bert, "int8").of(ONE)
    assert "int8_size_mb" in only
    assert "onnx_size_mb" not in only


def test_the_files_are_deleted(shared: SharedCosts) -> None:
    assert not list(shared.temporary.glob(f"{SCRATCH}*"))
    assert all(set(json.loads(content)) >= {"costs", "hardware", "latency"} for content in shared.files.values())


def test_the_source_in_the_cache_of_a_worker_is_not_changed(bert: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, models = Worker(), []
    monkeypatch.setattr(form_costs, "write_graph", lambda model, *others: models.append(model))
    monkeypatch.setattr(form_costs, "_open", lambda *values: models[-1])
    for student in (None, ONE):
        assert list(MeasureForms(bert, student, LATENCY, ())(worker)) == [{}]
    (source,) = worker.cache.values()
    assert all(model is not source for model in models)
    expected = bert.model().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in source.state_dict().items())


def test_only_the_first_rank_of_a_slot_measures(bert: Pretrained) -> None:
    assert list(MeasureForms(bert, ONE, LATENCY, NAMES)(Worker(rank=1, world=2))) == []


def test_the_speed_of_several_models_together_is_known_in_the_forms_that_all_of_them_have() -> None:
    both = combined_costs([{"latency_ms": 1.0, "int8_latency_ms": 0.5}, {"latency_ms": 2.0}])
    assert both == {"latency_ms": 3.0}
    assert combined_costs([{"int8_throughput_per_s": 2.0}] * 2) == {"int8_throughput_per_s": 1.0}


# What cannot be measured ----------------------------------------------------------------------------------------------


def test_an_architecture_without_a_graph_is_refused_with_the_reason(
    longformer: Pretrained, bert: Pretrained, shared: SharedCosts
) -> None:
    with pytest.raises(SpecError) as error:
        shared(bert, "int8", checkpoint=longformer)
    sentence = str(error.value)
    assert sentence.startswith(
        "the sweep names a metric of int8, but a student of depth 1 cannot be exported: this longformer model has no "
        "ONNX graph: "
    )
    assert "Leave this architecture out of the space, or name metrics of PyTorch" in sentence


def test_a_teacher_without_a_graph_is_a_note_and_there_is_no_speed_up(
    longformer: Pretrained, bert: Pretrained, shared: SharedCosts
) -> None:
    costs = shared(longformer, *NAMES, checkpoint=bert)
    (note,) = costs.notes
    assert note.startswith("The teacher has no costs in ONNX and int8 (this longformer model has no ONNX graph: ")
    assert note.endswith("so nobody knows onnx_speedup and int8_speedup, the speed-up over it.")
    of_student = costs.of(TransformerStudent(depth=1, checkpoint="small"))
    assert of_student["int8_latency_ms"] == shared.second.of(ONE)["int8_latency_ms"]
    assert "int8_speedup" not in of_student
    assert "speedup" in of_student


def test_costs_of_another_machine_are_not_measured_here(
    shared: SharedCosts, bert: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HARDWARE, lambda device=None: "another machine")
    began = shared.first.machine
    assert shared(bert, *NAMES, measured_on=began) == shared.second
    with pytest.raises(ResourceError, match=r"the costs of the teacher were not measured on"):
        shared(Pretrained(bert.folder, "other"), *NAMES, measured_on=began)
    with (
        shared.without_int8({"depth": 1}),
        pytest.raises(ResourceError, match=r"a student of depth 1 were not measured"),
    ):
        shared(bert, *NAMES, measured_on=began)
    with shared.without_int8({}):
        (note,) = shared(bert, *NAMES, measured_on=began).notes
    assert note.startswith(f"The teacher has no costs in ONNX and int8 (not measured on {began['hardware']}, where")


def test_a_graph_that_answers_otherwise_is_no_form(bert: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny_bert()
    with torch.no_grad():
        other.classifier.bias.add_(1.0)
    monkeypatch.setattr(form_costs, "write_graph", lambda *values: None)
    monkeypatch.setattr(form_costs, "_open", lambda *values: other)
    (report,) = MeasureForms(bert, None, LATENCY, ("onnx",))(Worker())
    assert report[REASON].startswith("the ONNX graph does not answer as the model does: an output is off by ")


def test_a_graph_that_onnxruntime_does_not_load_is_no_form(bert: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form_costs, "write_graph", lambda model, names, file: file.write_bytes(b"no graph"))
    (report,) = MeasureForms(bert, ONE, LATENCY, ("onnx",))(Worker())
    assert report[REASON].startswith("onnxruntime cannot load its ONNX graph: StorageError: ")


def test_an_error_of_an_export_reaches_the_driver_as_a_reason(
    bert: Pretrained, slots: LocalSlots, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*values: object) -> None:
        raise ExportError("no graph today")

    monkeypatch.setattr(form_costs, "write_graph", refuse)
    assert list(slots.run(MeasureForms(bert, ONE, LATENCY, NAMES), "forms")) == [{REASON: "no graph today"}]
