"""Lineage: what the students of a sweep come from, by content and by name."""

from pydantic import BaseModel, ConfigDict


class Lineage(BaseModel):
    """What the students of a sweep come from: lineage.json. All but the name are fingerprints."""

    model_config = ConfigDict(frozen=True)

    teacher: str
    """The name of the teacher."""
    teacher_weights: str
    data: str
    """All rows of all splits, and the labels."""
    test_rows: str
    """The texts and labels of the test rows, whatever the other splits hold."""
