"""The table of families in docs/models.md is what the tests find with a tiny model of each family."""

from pathlib import Path

import pytest

from kdray.models.families import FAMILIES, depends_on_padding, reason_against
from tests.models.families import SWEEPS, TRIED, read_table, row_of, try_students, try_teacher

TABLE = read_table((Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8"))
QUICK = (
    "albert",
    "bert",
    "camembert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "gpt_neo",
    "modernbert",
    "mpnet",
    "qwen3",
    "reformer",
    "roberta",
    "xlm-roberta",
)
"""Families that are tried in each run of the tests: the frequent ones, and those with layers of their own kind."""


def test_the_table_has_a_row_for_each_family() -> None:
    """Of the version of transformers that it was made with; a newer one may have more."""
    assert list(TABLE) == sorted(TABLE)
    assert not FAMILIES - TABLE.keys() or len(FAMILIES - TABLE.keys()) < len(FAMILIES) / 10


@pytest.mark.parametrize("family", sorted(FAMILIES & TABLE.keys()))
def test_the_row_of_a_family_says_what_is_refused(family: str) -> None:
    row = TABLE[family]
    reason = reason_against(family)
    assert (row["teacher"] == "refused") == (reason is not None)
    assert reason is None or row["why"] == reason
    assert not depends_on_padding(family) or row["students"] == "refused"
    assert (row["sweep"] == "yes") == (family in SWEEPS)
    assert row["why"] or row["teacher"] == row["students"] == "yes"


@pytest.mark.parametrize("family", QUICK)
def test_a_frequent_family_teaches_and_is_made_shallower(family: str, tmp_path: Path) -> None:
    assert TABLE[family]["teacher"] == TABLE[family]["students"] == "yes"
    try_teacher(family, tmp_path)
    try_students(family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(family for family in FAMILIES & TABLE.keys() if TABLE[family]["teacher"]))
def test_the_row_of_a_family_is_what_is_found(family: str) -> None:
    found = row_of(family, [column for column in TRIED if TABLE[family][column]])
    assert {name: found[name] for name in TRIED} == {name: TABLE[family][name] for name in TRIED}
