"""Sweeps whose students learn from changed copies of the texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdray.augmentation.settings import Augmentation
from kdray.choice.reruns import Confirm
from kdray.data.splits import Data, Splits
from kdray.errors import Refused
from kdray.models.fresh import FreshTransformer
from kdray.models.pretrained import Pretrained, save_model
from kdray.report.files import markdown
from kdray.run import Outcome
from kdray.search.settings import Search
from kdray.stages.copying import sweep_text
from kdray.storage.files import read_json
from kdray.storage.paths import StoragePaths
from kdray.sweep import Sweep
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.teacher import Teacher, obtain_source
from kdray.training.settings import Training
from tests.stages.conftest import RunTiny

TRAINED = Training(epochs=4, learning_rate=5e-3, precision="fp32")
WAYS = Augmentation(ways=("mask", "delete", "order"), seed=3)
SEARCHED: dict[str, Any] = {"student.depth": [1], "augmentation.copies": [0, 1, 3]}


def token_sets(outcome: Outcome) -> list[dict[str, Any]]:
    return [read_json(meta) for meta in sorted(outcome.paths.tokens("x").parent.glob("*/meta.json"))]


def test_copies_are_searched_with_one_labelling(run_tiny: RunTiny, splits: Splits) -> None:
    sweep: dict[str, Any] = {
        "augmentation": WAYS,
        "space": SEARCHED,
        "search": Search(trials=3, stopping=None, objectives=("accuracy",), sampler="random"),
        "confirm": Confirm(candidates=1, seeds=1, controls=True),
    }
    outcome, notes = run_tiny(**sweep)
    assert outcome.exit_code == 0
    assert any("3 changed copies of each text" in note for note in notes)
    rows = len(splits.train)
    (tokens,) = token_sets(outcome)
    assert tokens["train_ends"] == [rows, rows, 2 * rows, 3 * rows, 4 * rows]
    assert len(list(outcome.paths.transfer("x").parent.iterdir())) == 1
    # One epoch of a trial has all of its copies, so early stopping and reports count the same steps.
    copies = {record.params["augmentation.copies"] for record in outcome.figures.records}
    assert copies <= {0, 1, 3}
    assert len(copies) > 1
    with_copies = [record for record in outcome.figures.records if record.params["augmentation.copies"]]
    assert {record.state for record in with_copies} == {"completed"}
    # Started again, it repeats no work; the copies are not written again, either.
    again, _ = run_tiny(**sweep)
    assert again.figures.records == outcome.figures.records
    assert token_sets(again) == [tokens]


def test_the_report_says_what_copies_bring(run_tiny: RunTiny) -> None:
    outcome, _ = run_tiny(
        augmentation=WAYS.model_copy(update={"copies": 2}), confirm=Confirm(candidates=1, seeds=1, controls=True)
    )
    report = markdown(outcome.figures)
    assert "more text" in report
    assert any("labelled rows" in str(control.role) for control in outcome.figures.controls)


@pytest.fixture(scope="module")
def two_readers(
    task: TextClassification, splits: Splits, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Pretrained, Pretrained]:
    """Two models whose tokenizers have other mask tokens."""
    paths = StoragePaths(tmp_path_factory.mktemp("readers"))
    model = FreshTransformer(layers=1, width=16, heads=2, feed_forward=32, vocabulary=150)
    source = obtain_source(Teacher(model=model, training=Training()), task, splits, paths, seed=0)
    other = paths.model("other")
    tokenizer = source.tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<hidden>"})
    loaded = source.model()
    loaded.resize_token_embeddings(len(tokenizer))
    save_model(loaded, tokenizer, other)
    return source, Pretrained(other, "other")


def test_a_copy_has_the_mask_token_of_the_model_that_reads_it(
    make_sweep: Callable[..., Sweep], splits: Splits, storage: StoragePaths, two_readers: tuple[Pretrained, Pretrained]
) -> None:
    sweep = make_sweep(augmentation=Augmentation(copies=1, ways=("mask",)))
    text = sweep_text(sweep, splits, two_readers[:1], storage)
    (_, _, own), (_, _, others) = (list(text.read_by(model).blocks("train")) for model in two_readers)
    masked = [row for row, copy in enumerate(own["text"]) if "[MASK]" in copy]
    assert masked
    assert all(own["text"][row].replace("[MASK]", "<hidden>") == others["text"][row] for row in masked)


def test_without_copies_the_text_is_that_of_the_data(
    make_sweep: Callable[..., Sweep], splits: Splits, storage: StoragePaths, source: Pretrained
) -> None:
    """So token sets of sweeps without copies keep their keys."""
    text = sweep_text(make_sweep(augmentation=WAYS), splits, [source], storage)
    assert (text.read_by(source), text.key, text.notes) == (splits, None, ())


def test_ways_without_copies_are_noted(run_tiny: RunTiny) -> None:
    _, notes = run_tiny(augmentation=WAYS)
    assert "augmentation.ways has no effect, because augmentation.copies is 0." in notes


def test_copies_that_equal_their_text_are_noted(run_tiny: RunTiny, tmp_path: Path) -> None:
    rows = [f"{word} {mood},{label}" for word in ("plot", "cast") for mood, label in (("good", "a"), ("bad", "b"))]
    for split, count in (("train", 12), ("dev", 8), ("test", 8)):
        lines = [row.replace(" ", f" {split}{number} ") for number in range(count) for row in rows]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *lines, *(["one,a"] * (split == "train"))]))
    _, notes = run_tiny(
        data=Data(source=str(tmp_path)),
        teacher=Teacher(
            model=FreshTransformer(layers=1, width=16, heads=2, feed_forward=32), training=TRAINED, above_chance=0.0
        ),
        augmentation=Augmentation(copies=2, ways=("order",)),
        space={"student.depth": [1]},
    )
    assert any(note.startswith("augmentation: 2 of 98 copies equal their text") for note in notes)


def test_other_ways_are_another_sweep(run_tiny: RunTiny) -> None:
    run_tiny(augmentation=WAYS.model_copy(update={"copies": 1}))
    with pytest.raises(Refused, match=r"augmentation\.ways: was"):
        run_tiny(augmentation=WAYS.model_copy(update={"copies": 1, "ways": ("delete",)}))
