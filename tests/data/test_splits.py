"""Rows from files, folders, generators and the hub; and the message for everything that is refused."""

import json
from collections import Counter
from pathlib import Path

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet
import pytest

from kdray.data.splits import Data, Splits, load_splits
from kdray.errors import DataError
from kdray.sources.generated.reviews import GeneratedReviews
from kdray.tasks.text_classification import TextClassification

TASK = TextClassification()
SST2 = Path(__file__).parents[3] / "shared" / "data" / "sst2"


def write_files(folder: Path, **files: str | bytes) -> Data:
    """Write these files into the folder; `train_tsv` becomes train.tsv."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        content = content.encode() if isinstance(content, str) else content
        (folder / f"{stem}.{suffix}").write_bytes(content)
    return Data(source=str(folder))


def csv_lines(rows: int, header: str = "text,label", labels: tuple[str, ...] = ("bad", "good")) -> str:
    """A csv file of `rows` different texts whose labels take turns."""
    return "\n".join([header, *(f"text {row},{labels[row % len(labels)]}" for row in range(rows)), ""])


def refusal_message(data: Data, task: TextClassification = TASK) -> str:
    with pytest.raises(DataError) as caught:
        load_splits(data, task)
    return str(caught.value)


def rows_of(splits: Splits) -> list[tuple[str, int]]:
    return list(zip(splits.train["text"], splits.train["label"], strict=True))


# What can be read -----------------------------------------------------------------------------------------------------


ROWS = [("it 's good", "good"), ('a "quoted" word', "bad"), ("zwölf, fünf", "good")]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "json", "jsonl", "parquet"])
def test_all_formats_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    objects = [{"text": text, "label": label} for text, label in ROWS]
    quoted = [f'"{text.replace(chr(34), chr(34) * 2)}",{label}' for text, label in ROWS]
    content = {
        "csv": "\r\n".join(["text,label", *quoted]),
        "json": json.dumps(objects, indent=1),
        "jsonl": "\n".join(map(json.dumps, objects)) + "\n",
    }.get(suffix, "\n".join(["text\tlabel", *(f"{text}\t{label}" for text, label in ROWS)]))
    for split in ("train", "dev", "test"):
        path = tmp_path / f"{split}.{suffix}"
        if suffix == "parquet":
            pa.parquet.write_table(pa.Table.from_pylist(objects), path)
        else:
            path.write_text(content, encoding="utf-8")
    splits = load_splits(Data(source=str(tmp_path)), TASK)
    assert splits.labels == ("bad", "good")
    assert rows_of(splits) == [(text, int(label == "good")) for text, label in ROWS]
    assert list(splits.validation["id"]) == [0, 1, 2]
    assert not any(str(tmp_path) in note for note in splits.notes)


def test_quotes_in_tsv_are_ordinary_characters(tmp_path: Path) -> None:
    lines = 'text\tlabel\n"lone quote\tbad\nthey \'ve\tgood\nit"s\tbad\nend"\tgood\n'
    splits = load_splits(write_files(tmp_path, train_tsv=lines, dev_tsv=lines, test_tsv=lines), TASK)
    assert [text for text, _ in rows_of(splits)] == ['"lone quote', "they 've", 'it"s', 'end"']


def test_a_csv_cell_in_quotes_may_contain_a_line_break(tmp_path: Path) -> None:
    lines = 'text,label\n"two\nlines",bad\n"",good\n'
    splits = load_splits(write_files(tmp_path, train_csv=lines, dev_csv=lines, test_csv=lines), TASK)
    assert rows_of(splits) == [("two\nlines", 0), ("", 1)]


def test_files_without_a_header_and_names_for_numbers(tmp_path: Path) -> None:
    lines = "fine\t1\nawful\t0\n"
    data = write_files(tmp_path, train_tsv=lines, dev_tsv=lines, test_tsv=lines)
    data = data.model_copy(update={"columns": ("text", "label")})
    assert load_splits(data, TASK).labels == ("0", "1")
    splits = load_splits(data, TextClassification(labels=("negative", "positive")))
    assert splits.labels == ("negative", "positive")
    assert rows_of(splits) == [("fine", 1), ("awful", 0)]


def test_numbers_are_sorted_by_value_unless_the_task_has_an_order(tmp_path: Path) -> None:
    files = {f"{split}_csv": csv_lines(rows, labels=("10", "9", "-1")) for split, rows in (("train", 30), ("dev", 12))}
    data = write_files(tmp_path, **files)
    assert load_splits(data, TASK).labels == ("-1", "9", "10")
    assert load_splits(data, TextClassification(labels=("9", "10", "-1"))).labels == ("9", "10", "-1")


def test_pairs_of_texts(tmp_path: Path) -> None:
    lines = "first\tsecond\tgold\na\tb\tyes\nc\td\tno\n"
    task = TextClassification(text="first", pair="second", label="gold")
    splits = load_splits(write_files(tmp_path, train_tsv=lines, dev_tsv=lines, test_tsv=lines), task)
    assert splits.train[1] == {"id": 1, "text": "c", "pair": "d", "label": 0}


def test_shards_are_joined_and_named_classes_keep_their_order(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    (tmp_path / "data").mkdir()
    for shard, labels in enumerate(([0, 1, -1], [1, 0, 1])):
        rows = datasets.Dataset.from_dict({"text": [f"{shard}.{i}" for i in range(3)], "label": labels}, features)
        rows.to_parquet(tmp_path / "data" / f"train-{shard:05d}-of-00002.parquet")
    data = Data(source=str(tmp_path), validation_fraction=0.4, test_fraction=0.4)
    with pytest.raises(DataError, match="too few"):
        load_splits(data, TASK)
    rows.to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    rows.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    splits = load_splits(data, TASK)
    assert splits.labels == ("pos", "neg")
    assert rows_of(splits) == [("0.0", 0), ("0.1", 1), ("1.0", 1), ("1.1", 0), ("1.2", 1)]
    assert list(splits.train["id"]) == [0, 1, 3, 4, 5]
    assert "1 of 6 rows have no label" in splits.notes[0]


def test_files_may_have_different_orders_of_named_classes(tmp_path: Path) -> None:
    for split, names in (("train", ["neg", "pos"]), ("test", ["pos", "neg"])):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        rows = {"text": [f"{n}" for n in range(40)], "label": [names.index(("neg", "pos")[n % 2]) for n in range(40)]}
        datasets.Dataset.from_dict(rows, features).to_parquet(
            tmp_path / f"{split}-00000-of-00001-b42a775f407cee45.parquet"
        )
    splits = load_splits(Data(source=str(tmp_path)), TASK)
    assert splits.labels == ("neg", "pos")
    assert [label for text, label in zip(splits.test["text"], splits.test["label"], strict=True)] == [0, 1] * 20


def test_other_files_in_a_copy_of_a_hub_repository_are_not_splits(tmp_path: Path) -> None:
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "LICENSE.txt").write_text("free")
    write_files(tmp_path / "data", train_csv=csv_lines(40))
    assert len(load_splits(Data(source=str(tmp_path)), TASK).labels) == 2


def test_different_spellings_of_a_whole_number_are_one_label(tmp_path: Path) -> None:
    rows = "".join(f"text {n},{(' 0', '0.0', '0 ', '1', '1.0', '1')[n % 6]}\n" for n in range(60))
    splits = load_splits(write_files(tmp_path / "data", train_csv=f"\n\r\ntext,label\n{rows}"), TASK)
    assert splits.labels == ("0", "1")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 60


def test_zero_fractions_stay_if_a_label_is_not_a_whole_number(tmp_path: Path) -> None:
    labels = ("1.0", "1.1", "2.0")
    assert load_splits(write_files(tmp_path / "data", train_csv=csv_lines(90, labels=labels)), TASK).labels == labels


def test_a_test_file_without_rows_is_refused(tmp_path: Path) -> None:
    data = write_files(tmp_path / "data", train_csv=csv_lines(40), test_csv="text,label\n")
    assert "the split has no rows" in refusal_message(data)


def test_two_columns_with_one_name_are_refused(tmp_path: Path) -> None:
    same_name = write_files(tmp_path / "a", train_csv=csv_lines(40, "text,label,text"))
    assert "two columns are called 'text'" in refusal_message(same_name)


def test_missing_splits_are_cut_from_train_by_label_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text(csv_lines(200, labels=("a", "a", "a", "b")))
    data = Data(source=str(tmp_path / "reviews.csv"), validation_fraction=0.2)
    splits = load_splits(data, TASK)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (144, 40, 16)
    assert Counter(splits.validation["label"]) == {0: 30, 1: 10}
    assert sorted([*splits.train["id"], *splits.validation["id"], *splits.test["id"]]) == list(range(200))
    assert "40 rows were cut from train for validation" in splits.notes[0]
    assert "16 rows were cut from train for test" in splits.notes[1]
    assert load_splits(data, TASK).key == splits.key
    other = load_splits(data.model_copy(update={"seed": 1}), TASK)
    assert set(other.validation["id"]) != set(splits.validation["id"])
    assert other.key != splits.key


def test_a_class_with_one_row_stays_in_train(tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text(csv_lines(60) + "rare,odd\n")
    splits = load_splits(Data(source=str(tmp_path / "few.csv")), TASK)
    assert splits.labels == ("bad", "good", "odd")
    assert 2 in splits.train["label"]


def test_unlabelled_test_rows_are_not_used(tmp_path: Path) -> None:
    for unlabelled in ("text\nx\ny\n", "text,label\nx,-1\ny,-1\n"):
        data = write_files(tmp_path, train_csv=csv_lines(40), dev_csv=csv_lines(10), test_csv=unlabelled)
        splits = load_splits(data, TASK)
        assert "no labels" in splits.notes[0]
        assert len(splits.test) == 4
        assert set(splits.test["text"]) <= {f"text {row}" for row in range(40)}


def test_max_rows_keeps_the_shares_of_the_labels(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(csv_lines(400, labels=("a", "a", "a", "b")))
    splits = load_splits(Data(source=str(tmp_path / "r.csv"), max_rows=20), TASK)
    assert Counter(splits.train["label"]) == {0: 15, 1: 5}
    assert (len(splits.validation), len(splits.test)) == (20, 20)


def test_the_key_depends_on_the_content_only(tmp_path: Path) -> None:
    rows = {"train": 20, "dev": 6, "test": 6}
    csv = {f"{split}_csv": csv_lines(count) for split, count in rows.items()}
    tsv = {f"{split}_tsv": csv_lines(count).replace(",", "\t") for split, count in rows.items()}
    key = load_splits(write_files(tmp_path / "a", **csv), TASK).key
    assert load_splits(write_files(tmp_path / "b", **tsv), TASK).key == key
    tsv["dev_tsv"] = "text\tlabel\nx\tbad\ny\tgood\n"
    assert load_splits(write_files(tmp_path / "b", **tsv), TASK).key != key


def test_the_content_of_test_does_not_depend_on_the_other_splits(tmp_path: Path) -> None:
    files = {"train_csv": csv_lines(20), "dev_csv": csv_lines(6), "test_csv": csv_lines(6)}
    one = load_splits(write_files(tmp_path / "a", **files), TASK)
    more = load_splits(write_files(tmp_path / "b", **files | {"train_csv": csv_lines(30)}), TASK)
    other = load_splits(write_files(tmp_path / "c", **files | {"test_csv": csv_lines(7)}), TASK)
    assert more.key != one.key
    assert more.content("test") == one.content("test") != other.content("test")


def test_generated_reviews() -> None:
    reviews = GeneratedReviews(train_rows=60, validation_rows=20, test_rows=20)
    splits = load_splits(Data(source=reviews), TASK)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (60, 20, 20)
    assert splits.labels == ("negative", "positive")
    assert splits.train["text"][:] == reviews.rows("train")["text"]


@pytest.mark.skipif(not SST2.exists(), reason="needs the SST-2 files")
def test_sst2_has_all_its_rows() -> None:
    splits = load_splits(Data(source=str(SST2), columns=("text", "label")), TASK)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6920, 872, 1821)


# The hub --------------------------------------------------------------------------------------------------------------


def test_a_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets.load_dataset` reads a local folder with the layout of a hub repository, under the name of one."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split in ("train", "validation", "test"):
        labels = [-1] * 40 if split == "test" else [0, 1] * 20
        rows = datasets.Dataset.from_dict({"text": [f"{split} {row}" for row in range(40)], "label": labels}, features)
        rows.to_parquet(tmp_path / "hub" / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load_dataset = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, config, revision: load_dataset(str(tmp_path / name.split("/")[1]), config),
    )
    data = Data(source="someone/hub")
    splits = load_splits(data, TASK)
    assert splits.labels == ("no", "yes")
    assert rows_of(splits)[:2] == [("train 0", 0), ("train 1", 1)]
    assert "split 'test': its rows have no labels" in splits.notes[0]
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (36, 40, 4)
    message = refusal_message(data.model_copy(update={"config": "nope"}))
    assert "someone/hub (nope)" in message
    assert "data.config" in message


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal_message(Data(source="stanfordnlp/no-such-set"))
    assert "stanfordnlp/no-such-set" in message
    assert "local copy" in message


# What is refused ------------------------------------------------------------------------------------------------------


def test_a_missing_file_or_folder(tmp_path: Path) -> None:
    for missing in (str(tmp_path / "nowhere"), "nowhere.csv", "./nowhere"):
        assert f"data.source {missing}: no such file or folder" in refusal_message(Data(source=missing))


def test_a_folder_or_file_in_an_unknown_format(tmp_path: Path) -> None:
    assert "no data files" in refusal_message(Data(source=str(tmp_path)))
    (tmp_path / "train.xlsx").write_bytes(b"PK")
    assert "no data files" in refusal_message(Data(source=str(tmp_path)))
    assert "cannot read files ending in '.xlsx'" in refusal_message(Data(source=str(tmp_path / "train.xlsx")))
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    assert "train.parquet: cannot be read" in refusal_message(Data(source=str(tmp_path)))


def test_a_split_in_two_formats(tmp_path: Path) -> None:
    message = refusal_message(write_files(tmp_path, train_csv=csv_lines(20), train_tsv="text\tlabel\na\tb\n"))
    assert "split 'train' has files in several formats, train.csv and train.tsv" in message


def test_an_unknown_split(tmp_path: Path) -> None:
    data = write_files(tmp_path, train_csv=csv_lines(20), dev_csv=csv_lines(10))
    message = refusal_message(data.model_copy(update={"validation": "validation_matched"}))
    assert "no split 'validation_matched' (data.validation)" in message
    assert "Allowed: dev, train." in message
    message = refusal_message(data.model_copy(update={"train": "trian"}))
    assert "no split 'trian' (data.train); did you mean 'train'?" in message


def test_a_split_with_two_roles(tmp_path: Path) -> None:
    data = write_files(tmp_path, train_csv=csv_lines(20), dev_csv=csv_lines(10))
    message = refusal_message(data.model_copy(update={"test": "dev"}))
    assert "data.validation and data.test name the same split 'dev'" in message


def test_an_unknown_column(tmp_path: Path) -> None:
    data = write_files(tmp_path, train_csv=csv_lines(20, header="txt,label"))
    message = refusal_message(data)
    assert "train.csv: no column 'text' (task.text); did you mean 'txt'? Allowed: label, txt." in message
    assert "no column 'second' (task.pair)" in refusal_message(data, TextClassification(text="txt", pair="second"))
    assert "no column 'gold' (task.label)" in refusal_message(data, TextClassification(text="txt", label="gold"))


def test_the_message_for_a_file_without_a_header_names_data_columns(tmp_path: Path) -> None:
    assert "data.columns" in refusal_message(write_files(tmp_path, train_tsv="some text\t0\nother\t1\n"))


@pytest.mark.parametrize("content", ["text,label\n", ""])
def test_an_empty_split(tmp_path: Path, content: str) -> None:
    message = refusal_message(write_files(tmp_path, train_csv=csv_lines(20), dev_csv=content))
    assert "dev.csv" in message
    assert "no rows" in message or "empty" in message


def test_an_empty_json_list(tmp_path: Path) -> None:
    assert "train.json" in refusal_message(write_files(tmp_path, train_json="[]"))


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_split_with_one_class(tmp_path: Path, split: str) -> None:
    files = {"train_csv": csv_lines(20), "dev_csv": csv_lines(20)} | {f"{split}_csv": csv_lines(9, labels=("good",))}
    message = refusal_message(write_files(tmp_path, **files))
    assert f"{split}.csv: all 9 rows have the label 'good'" in message


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"train_csv": "text,label\na,x\n,y\n"}, "train.csv, row 2, column 'text': the cell is empty"),
        ({"train_csv": "text,label\na,x\nb,\n"}, "train.csv, row 2, column 'label': the cell is empty"),
        ({"train_csv": 'text,label\n"a\nb",x\n\n"c",\n'}, "row 2, column 'label': the cell is empty"),
        ({"train_tsv": b"text\tlabel\na\tx\nb\ty\n\xff\tx\n"}, "row 3, column 'text': byte 0xff is not UTF-8"),
        ({"train_tsv": b"text\tlabel\na\tx\nb\t\xe9\n"}, "row 2, column 'label': byte 0xe9 is not UTF-8"),
        ({"train_tsv": b"text\tl\xe9\na\tx\n"}, "train.tsv, header: byte 0xe9 is not UTF-8"),
        ({"train_jsonl": '{"text": "a", "label": 0}\n{"label": 1}\n'}, "row 2, column 'text': the cell is empty"),
        (
            {"train_jsonl": '{"text": "a", "label": 0}\n{"text": 7, "label": 1}\n'},
            "row 2, column 'text': 7 is not a text",
        ),
        ({"train_jsonl": '{"text": "a", "label": 0}\n{"text": "\\ud800", "label": 1}\n'}, "row 2, column 'text'"),
        (
            {"train_jsonl": '{"text": "a", "label": 0}\n{"text": "b", "label": [1]}\n'},
            "column 'label': [1] is not a label",
        ),
        (
            {"train_jsonl": '{"text": "a", "label": 0}\n{"text": "b", "label": 0.5}\n'},
            "label 0.5 is not a whole number",
        ),
        ({"train_jsonl": b'{"text": "a"}\n{"text": "\xff"}\n'}, "train.jsonl, row 2: byte 0xff is not UTF-8"),
        ({"train_jsonl": '{"text": "a"}\n{"text\n'}, "train.jsonl, row 2: not JSON"),
        ({"train_json": '[{"text": "a"}, 3]'}, "train.json, row 2: 3 is not an object"),
        ({"train_json": '[{"text": "a"}'}, "train.json: not JSON"),
    ],
)
def test_the_message_names_the_row_of_a_wrong_cell(
    tmp_path: Path, files: dict[str, str | bytes], expected: str
) -> None:
    assert expected in refusal_message(write_files(tmp_path, **files))


def test_wrong_cells_in_parquet(tmp_path: Path) -> None:
    def message(texts: pa.Array, labels: list[object]) -> str:
        pa.parquet.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "train.parquet")
        return refusal_message(Data(source=str(tmp_path)))

    assert "row 2, column 'text': the cell is empty" in message(pa.array(["a", None, "c"]), [0, 1, 0])
    assert "row 1, column 'text': 1.5 is not a text" in message(pa.array([1.5, 2.5, 3.5]), [0, 1, 0])
    assert "row 3, column 'label': the cell is empty" in message(pa.array(["a", "b", "c"]), [0, 1, None])
    undecodable = pa.array([b"a", b"\xc3(", b"c"]).view(pa.string())
    assert "row 2, column 'text': byte 0xc3 is not UTF-8" in message(undecodable, [0, 1, 0])


def test_a_label_that_train_does_not_have(tmp_path: Path) -> None:
    data = write_files(tmp_path, train_csv=csv_lines(20), dev_csv=csv_lines(4) + "x,ugly\n")
    assert "dev.csv, row 5: label 'ugly'" in refusal_message(data)
    named = TextClassification(labels=("bad", "good", "ugly"))
    assert "dev.csv, row 5: label 'ugly' does not occur in train" in refusal_message(data, named)


def test_task_labels_that_the_data_do_not_have(tmp_path: Path) -> None:
    data = write_files(tmp_path, train_csv=csv_lines(20))
    message = refusal_message(data, TextClassification(labels=("negative", "positive")))
    assert "train.csv, row 1: label 'bad'" in message
    assert "task.labels" in message


def test_rows_with_too_many_cells(tmp_path: Path) -> None:
    message = refusal_message(write_files(tmp_path, train_csv="text,label\na,x\nb, and c,y\n"))
    assert "train.csv, row 2: 3 columns where there should be 2 columns" in message


def test_too_few_rows_to_cut(tmp_path: Path) -> None:
    message = refusal_message(write_files(tmp_path, train_csv=csv_lines(6)))
    assert "too few" in message
    assert "data.validation_fraction" in message
