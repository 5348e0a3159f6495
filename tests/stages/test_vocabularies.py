"""Sweeps whose students read fewer pieces than their source, or whole words."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, BertConfig

from kdray.choice.reruns import Confirm
from kdray.data.splits import Data, Splits
from kdray.errors import Refused
from kdray.models.fresh import FreshTransformer
from kdray.models.pretrained import save_model
from kdray.run import Outcome
from kdray.search.settings import Search
from kdray.sources.generated.mentions import GeneratedMentions
from kdray.storage.files import read_json
from kdray.students.recurrent import RecurrentStudent
from kdray.students.static import StaticStudent
from kdray.students.transformer import TransformerStudent
from kdray.tasks.token_classification import TokenClassification
from kdray.teacher.teacher import Teacher
from kdray.training.settings import Training
from tests.cli.test_cli import kdray
from tests.stages.conftest import RunTiny
from tests.vocabulary.tiny_tokenizers import bert_tokenizer

FINE_TUNED = Training(epochs=3, learning_rate=3e-3, precision="fp32")


@pytest.fixture
def save_bert(splits: Splits, tmp_path: Path) -> Callable[[str, int], str]:
    """A function that saves a tiny untrained BERT of this width, with pieces of the data's words; its folder."""

    def save(name: str, width: int) -> str:
        tokenizer = bert_tokenizer(list(splits.train["text"]), 90)
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            id2label={0: "negative", 1: "positive"},
            initializer_range=0.1,
        )
        save_model(AutoModelForSequenceClassification.from_config(config), tokenizer, tmp_path / name)
        return str(tmp_path / name)

    return save


def chosen(outcome: Outcome) -> tuple[Any, Any]:
    """The shipped student and its tokenizer, loaded by plain transformers."""
    folder = outcome.paths.chosen
    return AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_a_sweep_over_the_vocabulary(run_tiny: RunTiny, save_bert: Callable[..., str]) -> None:
    model = save_bert("bert", 16)
    sweep: dict[str, Any] = {
        "teacher": Teacher(model=model, training=FINE_TUNED, above_chance=0.0),
        "space": {"student.vocabulary": [55, 70, None], "student.depth": [1, 2]},
        "search": Search(trials=6, stopping=None, objectives=("accuracy", "parameters"), sampler="random"),
        "confirm": Confirm(candidates=1, seeds=1, controls=True),
    }
    outcome, notes = run_tiny(**sweep)
    assert outcome.exit_code == 0
    assert {record.state for record in outcome.figures.records} == {"completed"}
    sizes = {
        (record.params["student.depth"], record.params["student.vocabulary"]): record.costs["parameters"]
        for record in outcome.figures.records
    }
    # A row of the table has 16 weights.
    for depth in (1, 2):
        of_depth = {words: size for (each, words), size in sizes.items() if each == depth}
        for words, size in of_depth.items():
            assert all(other - size == 16 * ((more or 90) - (words or 90)) for more, other in of_depth.items())
    assert len({words for _, words in sizes}) > 1
    assert [note for note in notes if note.startswith("student.vocabulary=55: 55 of the 90 pieces stay")]
    # One teacher has answered once, whatever its students read.
    assert len(list(outcome.paths.transfer("x").parent.iterdir())) == 1
    assert len(list(outcome.paths.tokens("x").parent.iterdir())) == 3
    again, _ = run_tiny(**sweep)
    assert again.figures.records == outcome.figures.records


def test_the_student_ships_its_vocabulary(run_tiny: RunTiny, save_bert: Callable[..., str]) -> None:
    # So small a rate that the student stays the teacher that it was cut from.
    outcome, _ = run_tiny(
        teacher=Teacher(model=save_bert("bert", 16), training=FINE_TUNED, above_chance=0.0),
        student=TransformerStudent(vocabulary=60),
        training=Training(epochs=1, learning_rate=1e-12, precision="fp32"),
        space={"distillation.alpha": [0.5]},
    )
    model, tokenizer = chosen(outcome)
    assert model.config.vocab_size == len(tokenizer) == 60
    # It is cut from the fine-tuned teacher, not from the model before.
    (trained,) = outcome.paths.teacher("x").parent.glob("[!.]*")
    teacher, full = AutoModelForSequenceClassification.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    ids = full.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(range(60)))
    tables = [each.get_input_embeddings().weight for each in (model, teacher)]
    assert torch.allclose(tables[0], tables[1][ids], atol=1e-6)
    with torch.inference_mode():
        probabilities = model(**tokenizer("the witty film", return_tensors="pt")).logits.softmax(-1)[0]
    label, probability = kdray("predict", outcome.paths.root, "the witty film").out.split("\t")[:2]
    assert label == model.config.id2label[int(probabilities.argmax())]
    assert float(probability.rstrip("%")) == pytest.approx(float(probabilities.max()), abs=0.01)


@pytest.mark.slow
def test_the_vocabulary_of_a_checkpoint_is_cut(run_tiny: RunTiny, save_bert: Callable[..., str]) -> None:
    outcome, notes = run_tiny(
        student=TransformerStudent(checkpoint=save_bert("small", 8)),
        space={"student.vocabulary": [58]},
    )
    model, tokenizer = chosen(outcome)
    assert model.get_input_embeddings().weight.shape == (58, 8)
    assert len(tokenizer) == 58
    assert any(note.startswith("student.vocabulary=58: 58 of the 90 pieces stay") for note in notes)


@pytest.mark.slow
def test_a_tagger_learns_in_other_pieces_from_the_same_answers(
    run_tiny: RunTiny, save_bert: Callable[..., str]
) -> None:
    """With fewer pieces a sentence has more windows, and as many answers."""
    outcome, notes = run_tiny(
        task=TokenClassification(max_length=12),
        data=Data(source=GeneratedMentions(train_rows=160, validation_rows=60, test_rows=40)),
        teacher=Teacher(model=save_bert("bert", 16), training=FINE_TUNED, above_chance=0.0),
        space={"student.vocabulary": [52, None]},
        search=Search(trials=2, stopping=None, sampler="random"),
    )
    assert outcome.exit_code == 0
    assert {record.state for record in outcome.figures.records} == {"completed"}
    sets = [read_json(meta) for meta in outcome.paths.tokens("x").parent.glob("*/meta.json")]
    rows = [each["train_ends"][0] for each in sets]
    assert len(set(rows)) == 2
    assert len(list(outcome.paths.transfer("x").parent.iterdir())) == 1
    assert any(re.match(r"student\.vocabulary=52: train: \d+ of 160 texts are longer than 12", note) for note in notes)
    AutoModelForTokenClassification.from_pretrained(outcome.paths.chosen)


@pytest.mark.parametrize(
    ("vocabulary", "reason"),
    [(4000, "got 4,000, but the tokenizer"), (20, "got 20, but 42 pieces must stay")],
)
def test_an_impossible_vocabulary_is_refused(
    run_tiny: RunTiny, save_bert: Callable[..., str], vocabulary: int, reason: str
) -> None:
    with pytest.raises(Refused, match=rf"student\.vocabulary: {reason}"):
        run_tiny(
            teacher=Teacher(model=save_bert("bert", 16), training=FINE_TUNED),
            space={"student.vocabulary": [vocabulary]},
        )


@pytest.mark.slow
def test_words_of_a_fresh_teacher_become_unknown(run_tiny: RunTiny) -> None:
    fresh = FreshTransformer(layers=2, width=16, heads=2, feed_forward=32, vocabulary=100)
    _, notes = run_tiny(
        teacher=Teacher(model=fresh, training=FINE_TUNED, above_chance=0.0),
        space={"student.vocabulary": [16]},
    )
    (note,) = [note for note in notes if note.startswith("student.vocabulary=16")]
    assert "0.00% are cut otherwise" in note
    assert "0.00% become unknown" not in note
    assert note.endswith("the texts have 1 times as many tokens.")


def write_vectors(file: Path, splits: Splits, seed: int = 0) -> str:
    """Write vectors of four numbers for the words of the texts but one; the path."""
    draw = random.Random(seed)
    words = sorted({word for text in splits.train["text"] for word in text.split()})
    lines = [f"{word} {' '.join(str(draw.gauss(0, 1)) for _ in range(4))}" for word in words[1:]]
    file.write_text("\n".join(lines))
    return str(file)


@pytest.mark.slow
def test_word_students_are_searched_over_their_embeddings(run_tiny: RunTiny, splits: Splits, tmp_path: Path) -> None:
    file = write_vectors(tmp_path / "glove.txt", splits)
    sweep: dict[str, Any] = {
        "student": RecurrentStudent(tokenizer="words", width=8),
        "space": {"student.embeddings": [file, "source", "drawn"], "student.minimum_count": [1, 2]},
        "search": Search(trials=5, stopping=None, objectives=("accuracy", "parameters"), sampler="random"),
        "confirm": Confirm(candidates=1, seeds=1, controls=True),
    }
    outcome, notes = run_tiny(**sweep)
    assert outcome.exit_code == 0
    assert {record.state for record in outcome.figures.records} == {"completed"}
    # Vectors of four numbers, and embeddings of 32.
    sizes = {
        record.params["student.embeddings"] == file: record.costs["parameters"] for record in outcome.figures.records
    }
    assert sizes[True] < sizes[False]
    assert any("The file has vectors for 95.2% of the vocabulary" in note for note in notes)
    label = kdray("predict", outcome.paths.root, "the witty film").out.split("\t")[0]
    assert label in splits.labels
    again, _ = run_tiny(**sweep)
    assert again.figures.records == outcome.figures.records
    # Its trials have learnt from other vectors.
    write_vectors(tmp_path / "glove.txt", splits, seed=1)
    with pytest.raises(Refused, match=r"student\.embeddings .*glove\.txt: was \w+, now \w+"):
        run_tiny(**sweep)


@pytest.mark.slow
def test_a_tagger_of_words(run_tiny: RunTiny, save_bert: Callable[..., str]) -> None:
    outcome, _ = run_tiny(
        task=TokenClassification(max_length=12),
        data=Data(source=GeneratedMentions(train_rows=160, validation_rows=60, test_rows=40)),
        teacher=Teacher(model=save_bert("bert", 16), training=FINE_TUNED, above_chance=0.0),
        student=RecurrentStudent(width=8),
        space={"student.tokenizer": ["words", "source"]},
        search=Search(trials=2, stopping=None, sampler="random"),
    )
    assert {record.state for record in outcome.figures.records} == {"completed"}
    sets = [read_json(meta) for meta in outcome.paths.tokens("x").parent.glob("*/meta.json")]
    # Words need fewer windows than pieces.
    assert len({each["train_ends"][0] for each in sets}) == 2
    assert len(list(outcome.paths.transfer("x").parent.iterdir())) == 1


@pytest.mark.slow
def test_other_families_read_fewer_pieces(run_tiny: RunTiny, save_bert: Callable[..., str]) -> None:
    outcome, _ = run_tiny(
        teacher=Teacher(model=save_bert("bert", 16), training=FINE_TUNED, above_chance=0.0),
        student=StaticStudent(width=8),
        space={"student.vocabulary": [60]},
    )
    model, tokenizer = chosen(outcome)
    assert len(tokenizer) == len(model.get_input_embeddings().weight) == 60


@pytest.mark.slow
def test_one_search_over_families_and_their_words(run_tiny: RunTiny) -> None:
    """Transformers read no words: the setting is not theirs."""
    outcome, _ = run_tiny(
        space={
            "student.family": ["transformer", "static"],
            "student.tokenizer": ["words"],
            "student.depth": [1],
        },
        search=Search(trials=4, stopping=None, sampler="random"),
    )
    params = {record.params["student.family"]: record.params.keys() for record in outcome.figures.records}
    assert params["transformer"] == {"student.family", "student.depth"}
    assert params["static"] == {"student.family", "student.tokenizer", "student.depth"}


def test_a_file_that_covers_too_little_is_refused(run_tiny: RunTiny, tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_text("film 1 2\n")
    student = RecurrentStudent(tokenizer="words", embeddings=str(tmp_path / "glove.txt"))
    with pytest.raises(Refused, match=r"student\.embeddings .*glove\.txt: it has vectors for 4\.8% of the 21 words"):
        run_tiny(student=student, space={"student.depth": [1]})
