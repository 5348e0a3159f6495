"""Whether the teacher's states are stored or the teacher runs in the slots, and what is said about it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from kdray.choice.reruns import Confirm
from kdray.data.tokens import TokenSet
from kdray.errors import SpecError, TeacherError
from kdray.losses.distillation import Distillation
from kdray.losses.states import Needs
from kdray.models.fresh import FreshTransformer
from kdray.models.pretrained import Pretrained, save_model
from kdray.report.screen import NullScreen
from kdray.search.settings import Search
from kdray.slots.local import LocalSlots
from kdray.stages.signals import (
    Reader,
    WantedStates,
    give_signals,
    possible_terms,
    reason_to_run_the_teacher,
    stores_for_some,
    wanted_states,
)
from kdray.storage.paths import StoragePaths
from kdray.students.recurrent import RecurrentStudent
from kdray.students.sources import BySource
from kdray.students.transformer import TransformerStudent
from kdray.sweep import Sweep
from kdray.teacher.teacher import Teacher
from kdray.teacher.transfer import Transfer
from kdray.training.settings import Training
from kdray.training.stored_signal import StoredSignal
from kdray.training.trial import TrialInputs
from tests.models.families import random_model, tiny_config
from tests.stages.conftest import RunTiny

Make = Callable[..., Sweep]
RATES = {"training.learning_rate": [1e-3, 3e-3]}
HIDDEN = Distillation(hidden_mse=1.0)


@pytest.fixture
def readers(teacher: Pretrained, tokens: TokenSet) -> BySource[Reader]:
    return BySource(Reader(teacher, tokens), {})


def needs_of(sweep: Sweep, readers: BySource[Reader]) -> Needs:
    (wanted,) = wanted_states(sweep, readers).values()
    return wanted.needs


def hidden(*layers: int) -> Needs:
    return Needs(hidden=frozenset(layers))


@pytest.mark.parametrize(
    ("distillation", "space", "needs"),
    [
        (HIDDEN, {"student.depth": [2]}, hidden(2, 4)),
        (HIDDEN, {"student.depth": [1, 2, 3]}, hidden(1, 2, 3, 4)),
        (HIDDEN, {"student.depth": [2], "distillation.layer_map": ["evenly", "first"]}, hidden(1, 2, 4)),
        (HIDDEN, {"student.depth": [2], "distillation.layer_map": ["2:3"]}, hidden(3)),
        (Distillation(), {"student.depth": [2], "distillation.hidden_cosine": [0.0, 1.0]}, hidden(2, 4)),
        (Distillation(embeddings=1.0), {"student.depth": [2]}, hidden(0)),
        (Distillation(embeddings=1.0, hidden_first=1.0), {"student.depth": [2]}, hidden(0, 2, 4)),
        (Distillation(hidden_mse_end=1.0, schedule="linear"), {"student.depth": [2]}, hidden(2, 4)),
        (Distillation(relations=1.0), {"student.depth": [1]}, Needs(attention=frozenset((4,)))),
        (
            Distillation(hidden_mse=1.0),
            {"student.depth": [1], "distillation.attention_maps": [0.0, 1.0]},
            Needs(frozenset((4,)), frozenset((4,))),
        ),
    ],
)
def test_the_layers_that_a_trial_may_need(
    make_sweep: Make, readers: BySource[Reader], distillation: Distillation, space: dict[str, Any], needs: Needs
) -> None:
    assert needs_of(make_sweep(distillation=distillation, space=space), readers) == needs


def test_layers_of_another_family(make_sweep: Make, readers: BySource[Reader]) -> None:
    sweep = make_sweep(student=RecurrentStudent(width=8), distillation=HIDDEN, space=RATES)
    assert needs_of(sweep, readers) == hidden(4)


def test_without_inner_terms_nothing_is_wanted(make_sweep: Make, readers: BySource[Reader]) -> None:
    sweep = make_sweep(transfer=Transfer(signal="stored"))
    assert possible_terms(sweep) == {}
    assert wanted_states(sweep, readers) == {}
    assert wanted_states(sweep, BySource(None, {})) == {}


def reason(sweep: Sweep, readers: BySource[Reader]) -> str | None:
    return reason_to_run_the_teacher(sweep, list(wanted_states(sweep, readers).values()))


def test_the_size_of_states(make_sweep: Make, readers: BySource[Reader], tokens: TokenSet) -> None:
    (wanted,) = wanted_states(make_sweep(distillation=HIDDEN), readers).values()
    assert wanted.bytes == int(tokens.all_rows("train").lengths.sum()) * len(wanted.needs.hidden) * 32 * 2


@pytest.mark.parametrize("signal", ["auto", "stored"])
def test_states_within_the_budget_are_stored(make_sweep: Make, readers: BySource[Reader], signal: Any) -> None:
    assert reason(make_sweep(distillation=HIDDEN, transfer=Transfer(signal=signal)), readers) is None


def test_live_when_asked_for(make_sweep: Make, readers: BySource[Reader]) -> None:
    sweep = make_sweep(distillation=HIDDEN, transfer=Transfer(signal="live"))
    assert reason(sweep, readers) == "transfer.signal is live"


@pytest.mark.parametrize(
    ("distillation", "transfer", "why"),
    [
        (
            Distillation(hidden_mse=1.0, attention_maps=1.0),
            {},
            "distillation.attention_maps may be above 0, and attention is never stored",
        ),
        (
            HIDDEN,
            {"budget_gb": 0.0001},
            r"its hidden states \(layers 2, 4\) take 0.000\d+ GB, and transfer.budget_gb is 0.0001",
        ),
    ],
    ids=["attention", "budget"],
)
def test_states_that_cannot_be_stored(
    make_sweep: Make, readers: BySource[Reader], distillation: Distillation, transfer: dict[str, Any], why: str
) -> None:
    fields = {"distillation": distillation, "space": {"student.depth": [2]}}
    live = reason(make_sweep(**fields, transfer=Transfer(**transfer)), readers)
    assert live is not None
    assert re.match(why, live)
    with pytest.raises(SpecError, match=f"transfer.signal: got stored, but {why}.* Set it to auto or live"):
        reason(make_sweep(**fields, transfer=Transfer(**transfer, signal="stored")), readers)


@pytest.mark.parametrize(("signal", "refused"), [("auto", False), ("live", True)])
def test_states_that_depend_on_padding_must_be_stored(
    make_sweep: Make,
    trial_inputs: TrialInputs,
    slots: LocalSlots,
    tmp_path: Path,
    signal: Literal["auto", "live"],
    refused: bool,
) -> None:
    sweep = make_sweep(distillation=HIDDEN, transfer=Transfer(precision="fp32", signal=signal))
    session: Any = SimpleNamespace(sweep=sweep, paths=StoragePaths(tmp_path), slots=slots, screen=NullScreen())
    inputs = BySource(trial_inputs, {})
    if refused:
        with pytest.raises(TeacherError, match=r"must be stored, but transfer.signal is live. Change that, or give"):
            give_signals(session, inputs, padding=False)
    else:
        signals = [give_signals(session, inputs, padding).first.signal for padding in (False, True)]
        unpadded, padded = [each.stored.folders for each in signals if isinstance(each, StoredSignal)]
        assert unpadded.keys() == padded.keys() == {2, 4}
        assert not set(unpadded.values()) & set(padded.values())


@pytest.mark.parametrize(
    ("distillation", "space", "transfer", "some"),
    [
        (HIDDEN, {"distillation.relations": [0.0, 1.0]}, {}, True),
        (Distillation(), {"distillation.hidden_mse": [0.0, 1.0], "distillation.relations": [0.0, 1.0]}, {}, True),
        (HIDDEN, {"distillation.relations": [0.5, 1.0]}, {}, False),
        (HIDDEN, {"distillation.relations": [0.0, 1.0]}, {"signal": "live"}, False),
        (HIDDEN, {"distillation.relations": [0.0, 1.0]}, {"budget_gb": 1e-6}, False),
        (Distillation(relations_end=1.0, schedule="linear"), {"distillation.hidden_mse": [0.0, 1.0]}, {}, False),
        (Distillation(), {"distillation.relations": [0.0, 1.0]}, {}, False),
        (HIDDEN, {}, {}, False),
    ],
)
def test_hidden_states_are_stored_for_trials_without_attention(
    make_sweep: Make,
    readers: BySource[Reader],
    distillation: Distillation,
    space: dict[str, Any],
    transfer: dict[str, Any],
    some: bool,
) -> None:
    sweep = make_sweep(distillation=distillation, space=RATES | space, transfer=Transfer(**transfer))
    assert stores_for_some(sweep, list(wanted_states(sweep, readers).values())) == some


def test_the_budget_is_that_of_all_sources(teacher: Pretrained, tokens: TokenSet, make_sweep: Make) -> None:
    one = WantedStates(teacher, tokens, hidden(1))
    sweep = make_sweep(transfer=Transfer(budget_gb=1.5 * one.bytes / 1e9))
    assert reason_to_run_the_teacher(sweep, [one]) is None
    assert reason_to_run_the_teacher(sweep, [one, one]) is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"space": {"student.depth": [1, 2]}, "distillation": Distillation(hidden_mse=1.0, layer_map="2:4")},
            "distillation.layer_map: got '2:4', but the student has no layer 2",
        ),
        (
            {"space": {"student.family": ["recurrent", "static"]}, "distillation": HIDDEN},
            "distillation.hidden_mse: a static student has no layers to compare",
        ),
    ],
)
def test_students_that_cannot_be_compared_are_refused(
    make_sweep: Make, readers: BySource[Reader], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        wanted_states(make_sweep(**fields), readers)


def test_a_source_with_other_tokens_is_refused(
    make_sweep: Make, readers: BySource[Reader], teacher: Pretrained, tokens: TokenSet
) -> None:
    sweep = make_sweep(student=TransformerStudent(depth=2, checkpoint="small"), distillation=HIDDEN, space=RATES)
    same = BySource(readers.teacher, {"small": Reader(teacher, replace(tokens, key="other rows"))})
    (wanted,) = wanted_states(sweep, same).values()
    assert (wanted.teacher, wanted.tokens.key) == (teacher, "other rows")
    other = BySource(readers.teacher, {"small": Reader(teacher, replace(tokens, tokenizer_key="other"))})
    with pytest.raises(SpecError, match="a transformer student with the tokens of small has other tokens than the"):
        wanted_states(sweep, other)


def test_a_student_with_fewer_pieces_learns_from_the_teacher_with_these_pieces(
    make_sweep: Make, readers: BySource[Reader], source: Pretrained, tokens: TokenSet
) -> None:
    student = TransformerStudent(depth=2, vocabulary=40)
    sweep = make_sweep(student=student, distillation=HIDDEN, space=RATES)
    derived = Reader(source, replace(tokens, tokenizer_key="fewer pieces"))
    by_source = BySource(readers.teacher, {}, {(None, student.own_vocabulary): derived})  # type: ignore[dict-item]
    (wanted,) = wanted_states(sweep, by_source).values()
    assert (wanted.teacher, wanted.tokens) == (source, derived.tokens)


def test_a_file_has_no_layers(make_sweep: Make, teacher: Pretrained, tokens: TokenSet) -> None:
    sweep = make_sweep(student=TransformerStudent(depth=2, checkpoint="small"), distillation=HIDDEN, space=RATES)
    with pytest.raises(SpecError, match=r"distillation.hidden_mse: it compares layers, and the teacher is a file"):
        wanted_states(sweep, BySource(None, {"small": Reader(teacher, tokens)}))


def test_a_teacher_without_layers_is_refused(make_sweep: Make, tokens: TokenSet, tmp_path: Path, source: Any) -> None:
    config = tiny_config("xlm")
    config.vocab_size = len(source.tokenizer())
    save_model(random_model(config), source.tokenizer(), tmp_path / "xlm")
    sweep = make_sweep(student=RecurrentStudent(width=8), distillation=HIDDEN, space=RATES)
    reader = Reader(Pretrained(tmp_path / "xlm", "xlm"), tokens)
    with pytest.raises(TeacherError, match="a xlm model has no layers with a state of each token"):
        wanted_states(sweep, BySource(reader, {}))


def test_a_sweep_with_stored_states(run_tiny: RunTiny, tmp_path: Path) -> None:
    outcome, notes = run_tiny(
        distillation=Distillation(hidden_mse=1.0, embeddings=0.5),
        space={"student.depth": [2], "training.learning_rate": [3e-3]},
        transfer=Transfer(precision="fp32", shard_rows=100),
        confirm=Confirm(candidates=1, seeds=1, controls=False),
    )
    assert outcome.exit_code == 0
    (said,) = [note for note in notes if "hidden states" in note]
    assert said.startswith("The teacher's hidden states (layers 0, 2, 4) are stored for all texts to train on: 0.000")
    assert said.endswith(" GB, and transfer.budget_gb is 10.")
    folders = list(StoragePaths(tmp_path).cache.joinpath("states").iterdir())
    assert len(folders) == 3
    assert all(len(list(folder.glob("*.safetensors"))) == 4 for folder in folders)
    size = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    assert size / 1e9 == pytest.approx(float(said.split(": ")[1].split()[0]), rel=0.02)


def test_a_sweep_of_narrower_students_with_fewer_pieces(run_tiny: RunTiny, tmp_path: Path) -> None:
    """They are compared with the teacher with these pieces, whose units are in the order of their importance."""
    outcome, notes = run_tiny(
        student=TransformerStudent(depth=1, hidden=16, vocabulary=20),
        distillation=Distillation(hidden_mse=1.0, layer_map="final"),
        space={"training.learning_rate": [3e-3]},
    )
    assert outcome.exit_code == 0
    assert [note for note in notes if "hidden states (layer 4) are stored" in note]
    (folder,) = StoragePaths(tmp_path).cache.joinpath("states").iterdir()
    assert (folder / "manifest.json").exists()


def test_a_sweep_with_a_live_teacher(run_tiny: RunTiny, tmp_path: Path) -> None:
    outcome, notes = run_tiny(
        distillation=Distillation(relations=1.0), space={"student.depth": [2], "training.learning_rate": [3e-3]}
    )
    assert outcome.exit_code == 0
    (said,) = [note for note in notes if "The teacher runs in each slot" in note]
    assert "because distillation.relations may be above 0, and attention is never stored" in said
    assert not StoragePaths(tmp_path).cache.joinpath("states").exists()


def test_a_sweep_of_which_some_trials_compare_attention(run_tiny: RunTiny, tmp_path: Path) -> None:
    outcome, notes = run_tiny(
        student=TransformerStudent(depth=2),
        distillation=HIDDEN,
        space={"distillation.relations": [0.0, 1.0]},
        search=Search(trials=2, sampler="random", stopping=None),
        confirm=Confirm(candidates=0, controls=False),
    )
    assert outcome.exit_code == 0
    (live,) = [note for note in notes if "The teacher runs in each slot" in note]
    assert "while students that compare attention are trained, because distillation.relations may be above 0" in live
    assert [note for note in notes if "hidden states (layers 2, 4) are stored" in note]
    assert len(list(StoragePaths(tmp_path).cache.joinpath("states").iterdir())) == 2


def test_an_impossible_request_is_refused_before_any_training(run_tiny: RunTiny, tmp_path: Path) -> None:
    fresh = FreshTransformer(layers=2, width=32, heads=2, feed_forward=64, vocabulary=100)
    with pytest.raises(SpecError, match=r"transfer.signal: got stored, but distillation.relations may be above 0"):
        run_tiny(
            teacher=Teacher(model=fresh, training=Training(epochs=1)),
            distillation=Distillation(relations=1.0),
            transfer=Transfer(signal="stored"),
            space={"student.depth": [2], "training.learning_rate": [3e-3]},
        )
    assert not (tmp_path / "cache" / "teachers").exists()


def test_a_sweep_continues_with_another_signal(make_sweep: Make) -> None:
    """The setting changes no figure but by rounding, so it does not identify a sweep."""
    plain = make_sweep()
    changed = make_sweep(transfer=Transfer(precision="fp32", signal="live", budget_gb=3.0))
    assert changed.identity() == plain.identity()
    assert make_sweep(transfer=Transfer(precision="bf16")).identity() != plain.identity()
