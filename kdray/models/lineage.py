"""Lineage: the name and the fingerprints of what the students of a sweep are made from."""

from pydantic import BaseModel, ConfigDict


class Lineage(BaseModel):
    """The content of lineage.json. All fields except `teacher` are fingerprints."""

    model_config = ConfigDict(frozen=True)

    teacher: str
    """The name of the teacher."""
    teacher_weights: str
    """The teacher's weights, configuration and tokenizer."""
    data: str
    """All rows of all splits, and the labels."""
    test_rows: str
    """The texts and labels of the test rows; it does not depend on the other splits."""
