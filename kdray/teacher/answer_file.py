"""AnswerFile: where the answers of a teacher are that is no model here, such as a service or a large language model.

`answer_cells` reads their numbers, `answers` joins them with the rows of a sweep.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kdray.sources.reading import Reading


class AnswerFile(Reading):
    """A file, a folder or a pattern of file names with the teacher's answers, and what its columns mean.

    A row has the answers for one text: a column for each label, called like the label; or the columns `labels` and
    `probabilities` with lists of the most probable labels. For a task that answers for each word, every such cell is a
    list with one entry for each word. A regression has one column, called like the column of the numbers.
    """

    source: str = Field(min_length=1)
    """A file (csv, tsv, json lines, Parquet, ...), a folder of such files, or a pattern of file names."""
    form: Literal["probabilities", "logits"] = "probabilities"
    """What the numbers are; without a meaning for a regression."""
    id: str | None = None
    """The column with the number of the row in its split, as `teacher.exporting.texts_to_answer` writes it, beside the
    column `split`. None: answers are found by their texts."""
    text: str | None = Field(None, min_length=1)
    """The column with the texts; None: the column that the task names."""
    pair: str | None = Field(None, min_length=1)
    """The column with the second texts, for pairs; None: the column that the task names."""
    prefix: str = ""
    """What the names of the columns of the labels begin with, such as `p_` for a column p_positive."""
    labels: str = "labels"
    """The column with lists of the most probable labels."""
    probabilities: str = "probabilities"
    """The column with the probabilities of the labels in `labels`."""
    floor: float = Field(1e-6, gt=0, lt=0.1)
    """The smallest probability that a student learns: a probability of 0 has no finite logit."""


def _source_named(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


NameOrAnswerFile = Annotated[AnswerFile, BeforeValidator(_source_named)]
"""The type of a setting that holds the name of a file, or the settings of one."""
