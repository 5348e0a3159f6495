"""What inner terms compare is checked before anything starts."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from kdray.data.tokens import TokenSet
from kdray.errors import KDRayError, SpecError, TeacherError
from kdray.losses.distillation import Distillation
from kdray.models.fresh import FreshTransformer
from kdray.models.pretrained import Pretrained
from kdray.stages.inner_checks import check_inner_terms
from kdray.students.convolutional import ConvolutionalStudent
from kdray.students.recurrent import RecurrentStudent
from kdray.students.sources import BySource, StudentSource
from kdray.students.transformer import TransformerStudent
from kdray.sweep import Sweep
from kdray.teacher.teacher import Teacher
from kdray.teacher.transfer import Transfer
from kdray.training.settings import Training
from tests.models.families import random_model, tiny_config
from tests.stages.conftest import RunTiny

Make: TypeAlias = Callable[..., Sweep]
Save: TypeAlias = Callable[..., StudentSource]
RATES = {"training.learning_rate": [1e-3, 3e-3]}
HIDDEN = Distillation(hidden_mse=1.0)
MAPS = Distillation(attention_maps=1.0)


@pytest.fixture(scope="module")
def save(tokens: TokenSet, tmp_path_factory: pytest.TempPathFactory) -> Save:
    """A function that saves a tiny model of a family with these settings, as a source of students."""

    def save(family: str, **settings: Any) -> StudentSource:
        config = tiny_config(family)
        for name, value in settings.items():
            setattr(config, name, value)
        folder = tmp_path_factory.mktemp(family)
        random_model(config).save_pretrained(folder)
        return StudentSource(Pretrained(folder, folder.name), tokens)

    return save


def check(sweep: Sweep, teacher: StudentSource, several_teachers: bool = False, **checkpoints: StudentSource) -> Any:
    return check_inner_terms(sweep, BySource(teacher, checkpoints), several_teachers)


@pytest.mark.parametrize("family", ["bert", "albert", "modernbert", "llama"])
def test_what_can_be_compared_is_accepted(make_sweep: Make, save: Save, family: str) -> None:
    loss = Distillation(hidden_mse=1.0, embeddings=1.0, attention_scores=1.0, attention_maps=1.0, relations=1.0)
    sweep = make_sweep(distillation=loss, space={"student.depth": [1, 2]})
    assert check(sweep, save(family)) == []


@pytest.mark.parametrize(
    "student", [RecurrentStudent(depth=2, width=8), ConvolutionalStudent(depth=2, filters=8)], ids=lambda s: s.family
)
def test_layers_of_other_families_are_compared(make_sweep: Make, save: Save, student: Any) -> None:
    sweep = make_sweep(student=student, distillation=Distillation(hidden_mse=1.0, hidden_first=1.0), space=RATES)
    for teacher in ("bert", "mpnet", "longformer"):
        assert check(sweep, save(teacher)) == [
            "Layers of a student and of the teacher that they learn from: 1 from 2, 2 from 4."
        ]


def test_a_sweep_without_inner_terms_runs_no_model(make_sweep: Make, tokens: TokenSet, tmp_path: Any) -> None:
    assert check(make_sweep(), StudentSource(Pretrained(tmp_path / "missing", "missing"), tokens)) == []


@pytest.mark.parametrize("term", ["attention_scores", "attention_maps", "relations", "value_relation"])
@pytest.mark.parametrize(
    "student", [RecurrentStudent(width=8), ConvolutionalStudent(depth=2, filters=8)], ids=lambda s: s.family
)
def test_students_without_attention_are_refused(make_sweep: Make, save: Save, term: str, student: Any) -> None:
    sweep = make_sweep(student=student, space={f"distillation.{term}": [0.0, 1.0]})
    with pytest.raises(SpecError, match=f"distillation.{term}: it compares attention, but a {student.family} student"):
        check(sweep, save("bert"))


def test_one_family_without_attention_in_the_space_is_refused(make_sweep: Make, save: Save) -> None:
    sweep = make_sweep(distillation=MAPS, space={"student.family": ["transformer", "recurrent"]})
    with pytest.raises(SpecError, match=r"a recurrent student has none. Leave it out, or leave out the family recur"):
        check(sweep, save("bert"))


@pytest.mark.parametrize("family", ["deberta-v2", "mpnet", "gemma2", "gpt_neo"])
def test_models_whose_attention_cannot_be_recorded_are_named(make_sweep: Make, save: Save, family: str) -> None:
    sweep = make_sweep(distillation=MAPS)
    message = rf"distillation.attention_maps: the attention of a {family} model cannot be recorded.* or ModernBERT\."
    with pytest.raises(TeacherError, match=message):
        check(sweep, save(family))
    assert len(check(make_sweep(student=TransformerStudent(depth=2), space=RATES, distillation=HIDDEN), save(family)))


def test_a_checkpoint_whose_attention_cannot_be_recorded_is_named(make_sweep: Make, save: Save) -> None:
    sweep = make_sweep(student=TransformerStudent(depth=2, checkpoint="small"), distillation=MAPS, space=RATES)
    assert check(sweep, save("bert"), small=save("roberta"))
    with pytest.raises(TeacherError, match="the attention of a deberta-v2 model cannot be recorded"):
        check(sweep, save("bert"), small=save("deberta-v2"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_first_token_of_a_causal_model_says_nothing(make_sweep: Make, save: Save, family: str) -> None:
    sweep = make_sweep(distillation=Distillation(hidden_first=1.0))
    with pytest.raises(SpecError, match=rf"distillation.hidden_first: in a {family} model each token sees the tokens"):
        check(sweep, save(family))


@pytest.mark.parametrize("family", ["squeezebert"])
def test_layers_without_a_state_of_each_token_are_refused(make_sweep: Make, save: Save, family: str) -> None:
    with pytest.raises(TeacherError, match=f"the layers of a {family} model do not give one state for each token"):
        check(make_sweep(distillation=HIDDEN), save(family))


@pytest.mark.parametrize(
    ("family", "loss", "student", "message"),
    [
        (
            "bert",
            Distillation(relations=1.0, relation_heads=3),
            {},
            r"got 3; it does not divide the width of the teacher's queries \(16\). Allowed for these two models: 1, 2",
        ),
        (
            "bert",
            Distillation(value_relation=1.0, relation_heads=16),
            {"heads": 1},
            r"got 16; it does not divide the width of the student's values \(8\). Allowed for these two models: 1, 2",
        ),
        ("bert", Distillation(relations=1.0, relation_heads=8), {"heads": 1}, None),
        ("bert", Distillation(relations=1.0, relation_heads=8), {"hidden": 8}, None),
        ("bert", Distillation(relations=1.0), {"heads": 1}, None),
        ("llama", Distillation(relations=1.0, relation_heads=16), {}, None),
    ],
)
def test_relation_heads_divide_all_widths(
    make_sweep: Make, save: Save, family: str, loss: Distillation, student: dict[str, int], message: str | None
) -> None:
    sweep = make_sweep(student=TransformerStudent(depth=2, **student), distillation=loss, space=RATES)
    if message is None:
        assert check(sweep, save(family))
    else:
        with pytest.raises(SpecError, match=f"distillation.relation_heads: {message}"):
            check(sweep, save(family))


def test_all_searched_relation_heads_are_checked(make_sweep: Make, save: Save) -> None:
    space = {"distillation.relation_heads": [2, 4, 5], "distillation.relations": [0.0, 1.0]}
    with pytest.raises(SpecError, match=r"distillation.relation_heads: got 5"):
        check(make_sweep(space=space), save("bert"))


def test_the_heads_of_the_teacher_must_divide_the_width_of_a_student_of_a_checkpoint(
    make_sweep: Make, save: Save
) -> None:
    student = TransformerStudent(depth=2, checkpoint="small")
    sweep = make_sweep(student=student, distillation=Distillation(relations=1.0), space=RATES)
    with pytest.raises(SpecError, match="not given, so it is 3, as many heads as the teacher has; it does not divide"):
        check(sweep, save("bert", hidden_size=24, num_attention_heads=3), small=save("bert"))


@pytest.mark.parametrize(("signal", "refused"), [("live", True), ("auto", False)])
def test_states_that_depend_on_padding(make_sweep: Make, save: Save, signal: Any, refused: bool) -> None:
    student = RecurrentStudent(width=8)
    sweep = make_sweep(student=student, distillation=HIDDEN, space=RATES, transfer=Transfer(signal=signal))
    if refused:
        with pytest.raises(TeacherError, match="the states of this fnet model for a text depend on the padding behind"):
            check(sweep, save("fnet"))
    else:
        assert check(sweep, save("fnet"))


def test_a_student_of_a_checkpoint_needs_one_teacher(make_sweep: Make, save: Save) -> None:
    sweep = make_sweep(student=TransformerStudent(depth=2, checkpoint="small"), distillation=HIDDEN, space=RATES)
    small = save("bert")
    assert check(sweep, save("bert"), small=small)
    with pytest.raises(SpecError, match=r"several teach, and the students are built from small\. Say which teacher"):
        check(sweep, save("bert"), several_teachers=True, small=small)


@pytest.mark.parametrize(
    ("space", "note"),
    [
        ({"student.depth": [2]}, "1 from 2, 2 from 4."),
        ({"student.depth": [2], "student.feed_forward": [12, 24]}, "1 from 2, 2 from 4."),
        ({"student.depth": [2], "distillation.layer_map": ["final"]}, "2 from 4."),
        ({"student.depth": [2], "distillation.layer_map": ["evenly", "1:2,2:4"]}, "1 from 2, 2 from 4."),
        ({"student.depth": [1, 2]}, None),
        ({"student.depth": [2], "distillation.layer_map": ["evenly", "final"]}, None),
    ],
)
def test_the_layers_are_listed_where_all_trials_have_the_same(
    make_sweep: Make, save: Save, space: dict[str, Any], note: str | None
) -> None:
    notes = check(make_sweep(distillation=HIDDEN, space=space), save("bert"))
    expected = [] if note is None else [f"Layers of a student and of the teacher that they learn from: {note}"]
    assert notes == expected


def test_embeddings_alone_need_no_layers_of_the_student(make_sweep: Make, save: Save) -> None:
    sweep = make_sweep(student=ConvolutionalStudent(filters=8), distillation=Distillation(embeddings=1.0), space=RATES)
    assert check(sweep, save("bert")) == []


FRESH = FreshTransformer(layers=2, width=32, heads=2, feed_forward=64, vocabulary=100)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"distillation": Distillation(relations=1.0, relation_heads=5)},
            "distillation.relation_heads: got 5; it does not divide the width of the teacher's queries (32)",
        ),
        (
            {"student": RecurrentStudent(width=8), "distillation": MAPS, "space": RATES},
            "distillation.attention_maps: it compares attention, but a recurrent student has none",
        ),
        (
            {
                "distillation": HIDDEN,
                "space": {"student.depth": [1], "distillation.layer_map": ["final", "1:3"]},
            },
            "distillation.layer_map: got '1:3', but the teacher has no layer 3",
        ),
    ],
)
def test_a_sweep_is_refused_before_any_training(
    run_tiny: RunTiny, tmp_path: Any, fields: dict[str, Any], message: str
) -> None:
    teacher = Teacher(model=FRESH, training=Training(epochs=1))
    with pytest.raises(KDRayError, match=re.escape(message)):
        run_tiny(**{"teacher": teacher, "space": {"student.depth": [1]}, **fields})
    assert not (tmp_path / "cache" / "teachers").exists()


def test_a_sweep_says_which_layers_learn_from_which(run_tiny: RunTiny) -> None:
    outcome, notes = run_tiny(
        distillation=Distillation(hidden_mse=1.0), space={"student.depth": [2], "training.learning_rate": [3e-3]}
    )
    assert outcome.exit_code == 0
    assert "Layers of a student and of the teacher that they learn from: 1 from 2, 2 from 4." in notes
