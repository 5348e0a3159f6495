"""Thresholds in the configuration of a model: what is written is read, and what others write is not trusted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig

from kdray.tasks.kept_thresholds import read_thresholds, write_thresholds


def config(**fields: Any) -> BertConfig:
    return BertConfig(num_labels=3, **fields)


def test_thresholds_survive_the_folder_of_a_model(tmp_path: Path) -> None:
    written = config()
    write_thresholds(written, np.array([0.25, 1e-30, 0.999999]))
    written.save_pretrained(tmp_path)
    read = read_thresholds(BertConfig.from_pretrained(tmp_path))
    assert read is not None
    assert read.tolist() == [0.25, 1e-30, 0.999999]


def test_a_task_without_thresholds_writes_none() -> None:
    written = config()
    write_thresholds(written, None)
    assert not hasattr(written, "thresholds")
    assert read_thresholds(written) is None


@pytest.mark.parametrize(
    "values", [[0.5, 0.5], [0.5] * 4, [0.5, 0.5, 1.0], [0.0, 0.5, 0.5], ["0.5"] * 3, [True] * 3, 0.5, {"a": 0.5}, []]
)
def test_thresholds_that_kdray_does_not_write_are_not_used(values: Any) -> None:
    """Also those of another number of labels, which a configuration from elsewhere may have."""
    assert read_thresholds(config(thresholds=values)) is None
