"""Files that run programs or fill the memory are refused with a sentence, before either happens."""

import gzip
import json
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdray.data.rows import Layout, Rows
from kdray.data.splits import Data, load_splits
from kdray.data.transfer_set import StoredLogits
from kdray.errors import DataError
from kdray.sources.arrow_types import check_schema, decoded_size
from kdray.sources.opening import read_file
from kdray.sources.reading import Reading
from kdray.tasks.text_classification import TextClassification
from tests.sources.hostile import PICKLES, nested_in, pickled_cells

TASK = TextClassification()
PLACES = ["column", "struct", "list", "map", "struct in a list", "dictionary"]
MB = 10**6


def refusal_of(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    assert caught.value.exit_code == 2
    return str(caught.value)


def refusal(source: Path, **settings: object) -> str:
    return refusal_of(lambda: load_splits(Data(source=str(source), **settings), TASK))


def write_arrow(table: pa.Table, path: Path, stream: bool = False, codec: str | None = None) -> Path:
    new, options = pa.ipc.new_stream if stream else pa.ipc.new_file, pa.ipc.IpcWriteOptions(compression=codec)
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema, options=options) as writer:
        writer.write_table(table)
    return path


def write_table(table: pa.Table, path: Path) -> Path:
    if path.suffix != ".parquet":
        return write_arrow(table, path)
    pq.write_table(table, path)
    return path


# Files that run a program ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
def test_a_table_cannot_run_a_program(tmp_path: Path, ending: str, place: str) -> None:
    if (ending, place) == ("parquet", "dictionary"):
        pytest.skip("Parquet cannot hold a dictionary of an extension type")
    marker = tmp_path / "marker"
    cells = nested_in(pickled_cells(marker, 4), place)
    table = pa.table({"text": ["a", "b", "c", "d"], "label": ["x", "y"] * 2, "more": cells})
    path = write_table(table, tmp_path / f"train.{ending}")
    assert PICKLES in refusal(tmp_path)
    assert PICKLES in refusal_of(lambda: read_file(path, Reading()))  # what `kdray predict` reads with
    assert not marker.exists()
    cells.to_pylist()
    assert marker.exists(), "the file is harmless, so this test shows nothing"


@pytest.mark.parametrize("column", ["text", "label"])
def test_the_columns_of_the_task_cannot_run_a_program(tmp_path: Path, column: str) -> None:
    columns = {"text": ["a", "b", "c", "d"], "label": ["x", "y"] * 2}
    pq.write_table(pa.table({**columns, column: pickled_cells(tmp_path / "marker", 4)}), tmp_path / "train.parquet")
    assert f"column {column!r}: has the Arrow extension type {PICKLES!r}" in refusal(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_a_file_is_refused_whether_or_not_the_type_is_registered(tmp_path: Path) -> None:
    """A process that has not imported Ray Data reads the storage of the type, and its name in the metadata."""
    cells = pickled_cells(tmp_path / "marker", 4)
    pq.write_table(pa.table({"more": nested_in(cells, "struct")}), tmp_path / "train.parquet")
    pa.unregister_extension_type(PICKLES)
    try:
        assert not isinstance(pq.read_table(tmp_path / "train.parquet")["more"].type.field(0).type, pa.ExtensionType)
        assert PICKLES in refusal(tmp_path)
    finally:
        pa.register_extension_type(cells.type)


def test_a_saved_folder_of_datasets_cannot_run_a_program(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]}).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    table = pa.table({"text": pickled_cells(tmp_path / "marker", 2), "label": ["x", "y"]})
    write_arrow(table, file, stream=True)
    assert PICKLES in refusal(tmp_path / "saved")
    assert not (tmp_path / "marker").exists()


def test_a_hub_dataset_cannot_run_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"text": pickled_cells(tmp_path / "marker", 4), "label": ["x", "y"] * 2})
    rows = datasets.Dataset.from_dict({"text": ["a"], "label": ["x"]})
    rows._data = datasets.table.InMemoryTable(table)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: {"train": rows})
    assert PICKLES in refusal(Path("someone/data"))
    assert not (tmp_path / "marker").exists()


def test_token_ids_and_logits_of_a_storage_cannot_run_a_program(tmp_path: Path) -> None:
    table = pa.table({"id": pickled_cells(tmp_path / "marker", 4), "logits": [[0.5, 0.5]] * 4})
    path = write_arrow(table, tmp_path / "train.arrow")
    assert PICKLES in refusal_of(lambda: Rows(path, Layout({}, 8)))
    assert PICKLES in refusal_of(lambda: StoredLogits([path]))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("shape", [b"5", b"[" * 200_000, b"\x80\x04N.", b'{"a": 1}', b""])
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_type_whose_description_is_damaged_is_a_sentence(tmp_path: Path, ending: str, shape: bytes) -> None:
    """Ray reads the shape of its tensors from the file as soon as a schema is read."""
    metadata = {b"ARROW:extension:name": b"ray.data.arrow_tensor_v2", b"ARROW:extension:metadata": shape}
    field = pa.field("text", pa.large_list(pa.int64()), metadata=metadata)
    table = pa.table([pa.array([[1]], field.type)], schema=pa.schema([field]))
    path = write_table(table, tmp_path / f"train.{ending}")
    assert "train" in refusal(tmp_path)
    assert "train" in refusal_of(lambda: read_file(path, Reading()))


def test_harmless_extension_types_are_read_as_their_storage(tmp_path: Path) -> None:
    texts = pa.ExtensionArray.from_storage(pa.json_(), pa.array([f'"{n}"' for n in range(60)]))
    table = pa.table({"text": texts, "label": ["x", "y"] * 30, "image": [[[1, 2]]] * 60})
    write_arrow(table, tmp_path / "train.arrow")
    assert set(load_splits(Data(source=str(tmp_path)), TASK).train["text"]) <= {f'"{n}"' for n in range(60)}


# Files that fill the memory -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def limited_memory() -> Iterator[None]:
    """A test that fails must not end the machine: this process may map 4 GB more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + 4 * 10**9
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def repeated_text(rows: int = 1200, length: int = 3 * MB) -> pa.Table:
    """3.6 GB of text in a few kilobytes: one text, and a number for each row."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["a" * length]))
    label = pa.DictionaryArray.from_arrays(pa.array(np.arange(rows, dtype=np.int32) % 2), pa.array(["x", "y"]))
    return pa.table({"text": text, "label": label})


def bombs(folder: Path) -> dict[str, Path]:
    """Name -> a small file with more than 2 GB of rows."""
    folder.mkdir(exist_ok=True)
    files = {"parquet": folder / "rows.parquet", "nested parquet": folder / "nested.parquet"}
    # Without the Arrow schema, a reader sees a column of texts and no dictionary.
    pq.write_table(repeated_text(), files["parquet"], compression="zstd", store_schema=False)
    text = repeated_text()["text"].combine_chunks()
    nested = pa.ListArray.from_arrays(pa.array(range(len(text) + 1), pa.int32()), text)
    pq.write_table(pa.table({"text": nested}), files["nested parquet"], compression="zstd", store_schema=False)
    files["arrow"] = write_arrow(repeated_text(), folder / "rows.arrow", codec="zstd")
    return files


@pytest.mark.parametrize("name", ["parquet", "nested parquet", "arrow"])
def test_a_value_that_stands_once_for_many_rows_is_counted_for_each(tmp_path: Path, name: str) -> None:
    path = bombs(tmp_path)[name]
    assert path.stat().st_size < 100_000
    before = pa.default_memory_pool().max_memory()
    assert "need more than 2 GB of memory (data.max_gb)" in refusal(path)
    assert "need more than 2 GB" in refusal_of(lambda: read_file(path, Reading()))
    assert pa.default_memory_pool().max_memory() - before < 500 * MB


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("stream", [False, True])
def test_compressed_buffers_of_arrow_are_measured_before_they_are_unpacked(
    tmp_path: Path, codec: str, stream: bool
) -> None:
    numbers = pa.table({"text": np.zeros(6 * MB), "label": np.zeros(6 * MB)})
    path = write_arrow(numbers, tmp_path / "rows.arrow", stream=stream, codec=codec)
    assert path.stat().st_size < MB
    before = pa.total_allocated_bytes()
    assert "need more than 0.05 GB" in refusal(path, max_gb=0.05)
    assert pa.total_allocated_bytes() == before
    compressed = write_arrow(pa.table({"text": ["a", "b"], "label": ["x", "y"]}), path, stream=stream, codec=codec)
    assert read_file(compressed, Reading(max_gb=0.05)).columns["text"].to_pylist() == ["a", "b"]


def test_views_that_share_a_text_are_counted_for_each_row() -> None:
    shared = pa.array(["a" * 1000, "b"], pa.string_view())
    assert decoded_size(shared) >= 1001
    assert decoded_size(shared[1:]) < 100
    values = pa.DictionaryArray.from_arrays(pa.array([0, 0, None, 1], pa.int32()), pa.array(["a" * 1000, "b"]))
    assert 2001 <= decoded_size(values) < 2100
    assert 1001 <= decoded_size(values[1:]) < 1100


def test_long_values_of_a_fixed_length_are_refused(tmp_path: Path) -> None:
    """They are not read in dictionary encoding, so that one of them could fill the memory as often as it occurs."""
    texts = pa.array([b"a" * 100_000] * 1000, pa.binary(100_000))
    pq.write_table(pa.table({"text": texts}), tmp_path / "train.parquet")
    assert (tmp_path / "train.parquet").stat().st_size < MB
    assert "column 'text': has values of 100000 bytes" in refusal(tmp_path)


def test_types_whose_size_cannot_be_told_are_refused() -> None:
    run = pa.run_end_encoded(pa.int32(), pa.string())
    for kind in (
        run,
        pa.list_view(pa.string()),
        pa.struct([("a", pa.list_(run))]),
        pa.sparse_union([pa.field("a", run)]),
    ):
        assert "has the Arrow type" in refusal_of(lambda kind=kind: check_schema(pa.schema([("c", kind)]), "file"))


def test_very_many_empty_rows_are_counted(tmp_path: Path) -> None:
    path = write_arrow(pa.table({"text": pa.nulls(300 * MB)}), tmp_path / "rows.arrow")
    assert path.stat().st_size < 1000
    assert "need more than 2 GB" in refusal(path)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst", ".zip"])
@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_a_compressed_file_is_not_unpacked_beyond_the_limit(tmp_path: Path, kind: str, ending: str) -> None:
    path = tmp_path / f"rows.{kind}{ending}"
    content = {"csv": b"text,label\n", "json": b'[{"text": "', "jsonl": b'{"text": "', "parquet": b"PAR1"}[kind]
    write_packed(path, content + b"a" * 60 * MB)
    assert path.stat().st_size < 200_000
    message = refusal(path, max_gb=0.02)
    assert "need more than 0.02 GB of memory" in message or "a row is longer than 16 MB" in message


def write_packed(path: Path, content: bytes) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, content)
    else:
        codec = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}[path.suffix]
        with pa.CompressedOutputStream(str(path), codec) as stream:
            stream.write(content)
    return path


def test_the_limit_is_for_all_files_together_and_can_be_raised(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        rows = "".join(f"{split} {n} {'x' * 1000},{'ab'[n % 2]}\n" for n in range(600))
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{rows}")
    assert "dev.csv: unpacked, the rows need more than 0.001 GB" in refusal(tmp_path, max_gb=0.001)
    assert len(load_splits(Data(source=str(tmp_path), max_gb=0.01), TASK).validation) == 600


# Files that are absurd ------------------------------------------------------------------------------------------------

LEVELS = 200_000
ABSURD: dict[str, tuple[str, bytes, str]] = {
    "deep json": ("train.json", b'[{"text": ' + b"[" * LEVELS, "too many levels"),
    "deep json lines": ("train.jsonl", b'{"text": ' * LEVELS, "row 1: too many levels"),
    "deep label": ("train.jsonl", b'{"text": "a", "label": ' + b"[" * 900 + b"]" * 900 + b"}", "is not a label"),
    "large number": ("train.jsonl", b'{"text": "a", "label": ' + b"1" * 9000 + b"}", "not JSON"),
    "large csv cell": ("train.csv", b'text,label\n"' + b"a" * 40 * MB, "a row is longer than 16 MB"),
    "large header": ("train.csv", b"a" * 2 * MB, "train.csv"),
    "blank lines": ("train.csv", b" \n" * MB, "the file is empty"),
    "empty csv": ("train.csv", b"", "the file is empty"),
    "empty json": ("train.json", b"", "no column"),
    "empty parquet": ("train.parquet", b"", "the file is empty"),
    "empty arrow": ("train.arrow", b"", "the file is empty"),
    "empty gz": ("train.csv.gz", b"", "the file is empty"),
    "empty zip": ("train.csv.zip", b"", "cannot be read"),
    "no parquet": ("train.parquet", b"PAR1" * 10, "cannot be read"),
    "no arrow": ("train.arrow", b"ARROW1\0\0" + b"\xff" * 100, "cannot be read"),
    "random arrow": ("train.arrow", bytes(range(256)) * 4, "cannot be read"),
    "no gz": ("train.csv.gz", b"text,label\na,b\n", "cannot be read"),
    "no zst": ("train.csv.zst", b"text,label\na,b\n", "cannot be read"),
    "no bz2": ("train.csv.bz2", b"text,label\na,b\n", "cannot be read"),
    "hidden gz": ("train.csv", gzip.compress(b"text,label\na,b\n"), "the file is compressed. Name it train.csv.gz"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_file_is_a_sentence(tmp_path: Path, name: str) -> None:
    file, content, expected = ABSURD[name]
    (tmp_path / file).write_bytes(content)
    assert expected in refusal(tmp_path)


def test_json_rows_with_other_names_in_each_row_are_counted(tmp_path: Path) -> None:
    lines = "".join(f'{{"text": "a", "name {n}": 1}}\n' for n in range(9000))
    (tmp_path / "train.jsonl").write_text(lines)
    assert "need more than 0.1 GB" in refusal(tmp_path, max_gb=0.1)
    (tmp_path / "train.jsonl").write_text(json.dumps({f"name {n}": 1 for n in range(20_000)}))
    assert "has 20,000 columns; at most 10,000 are read" in refusal(tmp_path)


def test_a_header_of_very_many_columns_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(",".join(map(str, range(150_000))) + "\n")
    assert "has 150,000 columns; at most 10,000 are read" in refusal(tmp_path)
    (tmp_path / "train.csv").write_text(",".join(map(str, range(9000))) + "\n")
    assert len(refusal(tmp_path)) < 1000


@pytest.mark.parametrize(
    "feature",
    [
        {"_type": "ClassLabel", "names_file": "SECRET"},
        {"_type": "ClassLabel", "num_classes": 10**12},
        {"_type": "ClassLabel", "names": "SECRET"},
        {"_type": "ClassLabel", "names": [["a"], 3]},
        {"_type": ["ClassLabel"]},
        [],
    ],
)
def test_the_names_of_classes_come_from_the_file_alone(tmp_path: Path, feature: object) -> None:
    (tmp_path / "secret").write_text("password\nother\n")
    described = json.dumps({"info": {"features": {"label": feature}}}).replace("SECRET", str(tmp_path / "secret"))
    table = pa.table({"text": [f"text {n}" for n in range(60)], "label": [n % 2 for n in range(60)]})
    pq.write_table(table.replace_schema_metadata({"huggingface": described}), tmp_path / "train.parquet")
    assert load_splits(Data(source=str(tmp_path)), TASK).labels == ("0", "1")


@pytest.mark.parametrize("file", ["train.csv.gz", "train.csv.bz2", "train.csv.zst", "train.csv.zip"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_truncated_compressed_file_is_a_sentence(tmp_path: Path, file: str, share: float) -> None:
    draw = np.random.default_rng(0)
    rows = "".join(f"{draw.integers(10**9)},{'ab'[n % 2]}\n" for n in range(3000))
    path = write_packed(tmp_path / file, f"text,label\n{rows}".encode())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert file.removesuffix(".zip") in refusal(tmp_path)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_damaged_table_is_a_sentence(tmp_path: Path, ending: str) -> None:
    """Each file is cut off, or some of its bytes are replaced; it is refused or read, and nothing else happens."""
    table = pa.table({"text": [f"text {n}" for n in range(300)], "label": ["x", "y"] * 150})
    path = write_table(table, tmp_path / f"train.{ending}")
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for number in range(120):
        damaged = bytearray(whole)
        for place in draw.integers(len(whole), size=3):
            damaged[place] = draw.integers(256)
        path.write_bytes(damaged if number % 2 else whole[: draw.integers(len(whole))])
        try:
            load_splits(Data(source=str(tmp_path)), TASK)
        except DataError:
            refused += 1
    assert refused > 60


def test_a_zip_archive_writes_no_files_and_hides_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("../../outside.csv", "text,label\na,x\n")
        archive.writestr("/etc/also.csv", "text,label\nb,y\n")
    assert "all 1 rows have the label" in refusal(tmp_path / "rows.zip")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["rows.zip"]
    with zipfile.ZipFile(tmp_path / "packed.csv.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("packed.csv", "text,label\n")
    assert "Pack the archive with deflate" in refusal(tmp_path / "packed.csv.zip")


@pytest.mark.parametrize("name", ["../outside.arrow", "/etc/passwd", "..", "", "a/b.arrow", 7, None])
def test_a_saved_folder_names_no_files_outside_of_it(tmp_path: Path, name: object) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    state = tmp_path / "saved" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": name}]}))
    assert "is no entry of this folder" in refusal(tmp_path / "saved")
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": [str(name)]}))
    state.unlink()
    assert refusal(tmp_path / "saved")


@pytest.mark.parametrize("content", ["[" * LEVELS, "{}", "7", '{"_data_files": 3}', "\xff"])
def test_a_saved_folder_with_a_damaged_state_is_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(content, encoding="latin-1")
    assert "state.json" in refusal(tmp_path)
