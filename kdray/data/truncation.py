"""How many texts are longer than the maximum length of a sweep, and how much of them no model reads.

Shapes: N texts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdray.data.rows import SPLITS, TRAIN, Rows
from kdray.data.task_data import TaskData
from kdray.data.tokens import TextBlocks, TokenSet
from kdray.sources.tables import short_repr

MEASURED = 1000
"""Texts of a split that are tokenised again, without a limit: enough for a median, and a moment's work."""


def describe_truncation(tokens: TokenSet, text: TextBlocks, task: TaskData, tokenizer: object) -> list[str]:
    """One sentence for each split about how texts are read that no model reads at once.

    How many texts are cut at `max_length`, by how much, and an example; or into how many rows the task divides them.
    Texts without labels have a sentence of their own; changed copies are about as long as their texts.
    """
    notes = []
    for split in SPLITS:
        # Rows that stand there with several masks count once.
        repeats = tokens.layout.repeats if split == TRAIN else 1
        for name, rows, columns in zip(
            (split, "texts without labels"), tokens.unchanged_blocks(split), text.blocks(split), strict=False
        ):
            if len(rows):
                division = _describe_division(name, rows, task, repeats)
                notes.append(division or _describe_cuts(name, rows, columns, task, tokenizer))
    return [note for note in notes if note is not None]


def _describe_division(name: str, rows: Rows, task: TaskData, repeats: int) -> str | None:
    _, text_of_row, parts_N = np.unique(rows.ids, return_inverse=True, return_counts=True)
    tokens_N = np.bincount(text_of_row, weights=rows.lengths).astype(np.int64)
    return task.describe_division(name, parts_N // repeats, tokens_N // repeats)


def _describe_cuts(name: str, rows: Rows, columns: Mapping[str, Any], task: TaskData, tokenizer: object) -> str | None:
    lengths = rows.lengths
    full = np.flatnonzero(lengths >= task.max_length)
    measured = full[:MEASURED]
    if not len(measured):
        return None
    texts = {each: [columns[each][int(row)] for row in measured] for each in ("text", "pair") if each in columns}
    whole = np.asarray(task.lengths(tokenizer, texts))
    is_cut = whole > task.max_length
    if not is_cut.any():
        return None
    lost = whole[is_cut] - task.max_length
    # Rows with exactly the maximum length are not cut: their share among those measured holds for the others, too.
    count = round(is_cut.mean() * len(full))
    about = "" if len(full) == len(measured) else "about "
    return (
        f"{name}: {about}{count:,} of {len(lengths):,} texts are cut to {task.max_length} tokens (task.max_length); "
        f"half of them lose {int(np.median(lost)):,} tokens or more, the longest {int(lost.max()):,}; for example "
        f"{short_repr(texts['text'][int(np.flatnonzero(is_cut)[0])])}."
    )
