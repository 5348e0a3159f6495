"""Local data as people have them: one function for each kind of file and folder."""

import bz2
import gzip
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from kdray.tasks.text_classification import TextClassification

Rows = list[tuple[str, str]]
RowsBySplit = Mapping[str, Rows]
Settings = dict[str, Any]

TEXTS = ("it 's good", "fünf, sechs; 7 €", "a | b", "naïve")
ROWS: dict[str, Rows] = {
    "train": [(f"train {n} {TEXTS[n % 4]}", ("bad", "good")[n % 2]) for n in range(24)],
    "validation": [(f"validation {n} {TEXTS[n % 4]}", ("bad", "good")[n % 2]) for n in range(8)],
    "test": [(f"test {n} {TEXTS[n % 4]}", ("bad", "good")[n % 2]) for n in range(6)],
}


def csv_of(rows: Rows, delimiter: str = ",", end: str = "\n") -> bytes:
    lines = [delimiter.join(("text", "label")), *(f'"{text}"{delimiter}{label}' for text, label in rows)]
    return end.join([*lines, ""]).encode()


def objects(rows: Rows) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in rows]


def lines_of(rows: Rows) -> bytes:
    return "\n".join(map(json.dumps, objects(rows))).encode()


def table_of(rows: Rows) -> pa.Table:
    return pa.Table.from_pylist(objects(rows))


def zipped(name: str, content: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"__MACOSX/._{name}", "x")
        archive.writestr(name, content)


def each_split(splits: RowsBySplit, write: Callable[[str, Rows], None]) -> Settings:
    for split, rows in splits.items():
        write(split, rows)
    return {}


# Each function writes all splits below a folder, and gives the settings that they need beside data.source.


def compressed_gz(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(splits, lambda split, rows: put(folder / f"{split}.csv.gz", gzip.compress(csv_of(rows))))


def compressed_bz2(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(splits, lambda split, rows: put(folder / f"{split}.jsonl.bz2", bz2.compress(lines_of(rows))))


def compressed_zst(folder: Path, splits: RowsBySplit) -> Settings:
    def write(split: str, rows: Rows) -> None:
        with pa.CompressedOutputStream(str(folder / f"{split}.json.zst"), "zstd") as stream:
            stream.write(json.dumps(objects(rows)).encode())

    return each_split(splits, write)


def zip_for_each_split(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(splits, lambda split, rows: zipped(f"{split}.csv", csv_of(rows), folder / f"{split}.csv.zip"))


def zip_with_other_names(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(splits, lambda split, rows: zipped("rows.csv", csv_of(rows), folder / f"{split}.zip"))


def one_zip(folder: Path, splits: RowsBySplit) -> Settings:
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for split, rows in splits.items():
            archive.writestr(f"reviews/{split}.csv", csv_of(rows))
    return {"source": str(folder / "all.zip")}


def compressed_parquet(folder: Path, splits: RowsBySplit) -> Settings:
    def write(split: str, rows: Rows) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table_of(rows), sink)
        put(folder / f"{split}.parquet.gz", gzip.compress(sink.getvalue().to_pybytes()))

    return each_split(splits, write)


def arrow_files(folder: Path, splits: RowsBySplit) -> Settings:
    def write(split: str, rows: Rows) -> None:
        with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as file, pa.ipc.new_file(file, table_of([]).schema) as _:
            pass
        table = table_of(rows)
        with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)

    return each_split(splits, write)


def arrow_streams(folder: Path, splits: RowsBySplit) -> Settings:
    def write(split: str, rows: Rows) -> None:
        table = table_of(rows)
        with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)

    return each_split(splits, write)


def feather_files(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(
        splits, lambda split, rows: pa.feather.write_feather(table_of(rows), str(folder / f"{split}.feather"))
    )


def dictionary_columns(folder: Path, splits: RowsBySplit) -> Settings:
    def write(split: str, rows: Rows) -> None:
        table = table_of(rows)
        columns = {name: table[name].dictionary_encode() for name in table.column_names}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")

    return each_split(splits, write)


def text_views(folder: Path, splits: RowsBySplit) -> Settings:
    def write(split: str, rows: Rows) -> None:
        table = pa.table({name: table_of(rows)[name].cast(pa.string_view()) for name in ("text", "label")})
        with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    return each_split(splits, write)


def saved_by_datasets(folder: Path, splits: RowsBySplit) -> Settings:
    datasets.DatasetDict(
        {split: datasets.Dataset.from_list(objects(rows)) for split, rows in splits.items()}
    ).save_to_disk(folder, num_shards={"train": 3, "validation": 1, "test": 1})
    return {}


def saved_with_named_classes(folder: Path, splits: RowsBySplit) -> Settings:
    names = sorted({label for rows in splits.values() for _, label in rows})
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    datasets.DatasetDict(
        {split: datasets.Dataset.from_list(objects(rows), features=features) for split, rows in splits.items()}
    ).save_to_disk(folder)
    return {}


def folder_for_each_split(folder: Path, splits: RowsBySplit) -> Settings:
    def write(split: str, rows: Rows) -> None:
        (folder / split).mkdir()
        put(folder / split / "part-a.csv", csv_of(rows[:3]))
        put(folder / split / "part-b.csv", csv_of(rows[3:]))

    return each_split(splits, write)


def saved_folder_for_each_split(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(
        splits, lambda split, rows: datasets.Dataset.from_list(objects(rows)).save_to_disk(folder / split)
    )


def capital_endings(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(splits, lambda split, rows: put(folder / f"{split}.CSV", csv_of(rows)))


def ndjson(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(splits, lambda split, rows: put(folder / f"{split}.ndjson", lines_of(rows)))


def rows_below_a_key(folder: Path, splits: RowsBySplit) -> Settings:
    def write(split: str, rows: Rows) -> None:
        content = {"version": 1, "result": {"rows": objects(rows)}}
        put(folder / f"{split}.json", json.dumps(content, indent=1).encode())

    each_split(splits, write)
    return {"field": "result.rows"}


def nested_json(folder: Path, splits: RowsBySplit) -> Settings:
    def write(split: str, rows: Rows) -> None:
        nested = [{"review": {"body": {"en": text}}, "label": {"name": label}} for text, label in rows]
        put(folder / f"{split}.jsonl", "\n".join(map(json.dumps, nested)).encode())

    each_split(splits, write)
    return {"task": TextClassification(text="review.body.en", label="label.name")}


def nested_parquet(folder: Path, splits: RowsBySplit) -> Settings:
    def write(split: str, rows: Rows) -> None:
        nested = [{"a.review": {"body": text, "stars": 1}, "label": label} for text, label in rows]
        pq.write_table(pa.Table.from_pylist(nested), folder / f"{split}.parquet")

    each_split(splits, write)
    return {"task": TextClassification(text="a.review.body")}


def semicolons(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(splits, lambda split, rows: put(folder / f"{split}.csv", csv_of(rows, ";")))


def tabs_in_csv(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(splits, lambda split, rows: put(folder / f"{split}.csv", csv_of(rows, "\t")))


def bars_in_txt_without_header(folder: Path, splits: RowsBySplit) -> Settings:
    def write(split: str, rows: Rows) -> None:
        put(folder / f"{split}.txt", csv_of(rows, "^").split(b"\n", 1)[1])

    each_split(splits, write)
    return {"columns": ("text", "label"), "delimiter": "^"}


def western_encoding(folder: Path, splits: RowsBySplit) -> Settings:
    each_split(splits, lambda split, rows: put(folder / f"{split}.csv", csv_of(rows).decode().encode("cp1252")))
    return {"encoding": "windows-1252"}


def utf16_with_a_mark(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(splits, lambda split, rows: put(folder / f"{split}.csv", csv_of(rows).decode().encode("utf-16")))


def utf16_json(folder: Path, splits: RowsBySplit) -> Settings:
    each_split(splits, lambda split, rows: put(folder / f"{split}.json", json.dumps(objects(rows)).encode("utf-16-be")))
    return {"encoding": "utf-16-be"}


def old_mac_line_ends(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(splits, lambda split, rows: put(folder / f"{split}.csv", csv_of(rows, end="\r")))


def old_mac_json_lines(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(
        splits, lambda split, rows: put(folder / f"{split}.jsonl", lines_of(rows).replace(b"\n", b"\r") + b"\r")
    )


def windows_line_ends_and_a_mark(folder: Path, splits: RowsBySplit) -> Settings:
    return each_split(
        splits, lambda split, rows: put(folder / f"{split}.csv", b"\xef\xbb\xbf" + csv_of(rows, end="\r\n"))
    )


def mark_without_a_header(folder: Path, splits: RowsBySplit) -> Settings:
    each_split(
        splits, lambda split, rows: put(folder / f"{split}.csv", b"\xef\xbb\xbf" + csv_of(rows).split(b"\n", 1)[1])
    )
    return {"columns": ("text", "label")}


def columns_without_names(folder: Path, splits: RowsBySplit) -> Settings:
    def write(split: str, rows: Rows) -> None:
        lines = ["text,,label,", *(f'"{text}",{n},{label},z{n}' for n, (text, label) in enumerate(rows))]
        put(folder / f"{split}.csv", "\n".join(lines).encode())

    return each_split(splits, write)


def patterns(folder: Path, splits: RowsBySplit) -> Settings:
    (folder / "2024" / "deep").mkdir(parents=True)
    put(folder / "2024" / "a-1.csv", csv_of(splits["train"][:9]))
    put(folder / "2024" / "deep" / "a-2.csv", csv_of(splits["train"][9:]))
    put(folder / "held.jsonl", lines_of(splits["validation"]))
    put(folder / "last.csv", csv_of(splits["test"]))
    return {"train": "2024/**/a-*.csv", "validation": "held.jsonl", "test": "last*"}


def lists_of_files(folder: Path, splits: RowsBySplit) -> Settings:
    put(folder / "one.csv", csv_of(splits["train"][:9]))
    put(folder / "two.jsonl", lines_of(splits["train"][9:]))
    put(folder / "dev.csv", csv_of(splits["validation"]))
    put(folder / "holdout.csv", csv_of(splits["test"]))
    return {"train": ("one", "two.jsonl"), "test": ("holdout",)}


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


Kind = Callable[[Path, RowsBySplit], Settings]

KINDS: tuple[Kind, ...] = (
    compressed_gz,
    compressed_bz2,
    compressed_zst,
    compressed_parquet,
    zip_for_each_split,
    zip_with_other_names,
    one_zip,
    arrow_files,
    arrow_streams,
    feather_files,
    dictionary_columns,
    text_views,
    saved_by_datasets,
    saved_with_named_classes,
    saved_folder_for_each_split,
    folder_for_each_split,
    capital_endings,
    ndjson,
    rows_below_a_key,
    nested_json,
    nested_parquet,
    semicolons,
    tabs_in_csv,
    bars_in_txt_without_header,
    western_encoding,
    utf16_with_a_mark,
    utf16_json,
    old_mac_line_ends,
    old_mac_json_lines,
    windows_line_ends_and_a_mark,
    mark_without_a_header,
    columns_without_names,
    patterns,
    lists_of_files,
)
