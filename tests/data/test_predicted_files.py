"""`kdray predict` reads files as people have them, and refuses files that attack."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from kdray.storage.paths import SweepPaths
from tests.cli.test_cli import kdray
from tests.sources.hostile import PICKLES, pickled_cells


def test_the_options_say_how_a_file_is_written(chosen: SweepPaths, tmp_path: Path) -> None:
    (tmp_path / "in.CSV.gz").write_bytes(gzip.compress("id;text\n1;gut, schön\n2;bad\n".encode("cp1252")))
    arguments = ["predict", chosen.root, "--file", tmp_path / "in.CSV.gz", "--to", tmp_path / "out.jsonl"]
    refused = kdray(*arguments)
    assert refused.code == 2
    assert "perhaps windows-1252 (--encoding)" in " ".join(refused.err.split())
    done = kdray(*arguments, "--encoding", "windows-1252")
    assert done.code == 0, done.err
    assert "its columns are separated by ';'" in " ".join((done.out + done.err).split())
    assert [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        "gut, schön",
        "bad",
    ]
    (tmp_path / "in.json").write_text(json.dumps({"data": [{"text": "good"}]}))
    arguments[3] = tmp_path / "in.json"
    assert "set --field" in " ".join(kdray(*arguments).err.split())
    assert kdray(*arguments, "--field", "data").code == 0
    assert "more than 1e-09 GB of memory (--max-gb)" in kdray(*arguments, "--field", "data", "--max-gb", "1e-9").err
    for option, value in (("--delimiter", "xx"), ("--encoding", "none"), ("--max-gb", "0")):
        wrong = kdray(*arguments, option, value)
        assert (wrong.code, option in wrong.err) == (2, True), wrong.err


def test_a_file_to_predict_cannot_run_a_program(chosen: SweepPaths, tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "more": pickled_cells(tmp_path / "marker", 2)})
    pa.parquet.write_table(table, tmp_path / "in.parquet")
    done = kdray("predict", chosen.root, "--file", tmp_path / "in.parquet", "--to", tmp_path / "out.csv")
    assert done.code == 2
    assert PICKLES in done.err
    assert not (tmp_path / "marker").exists()
