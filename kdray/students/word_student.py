"""WordStudent: students whose layers are drawn, so that they may read whole words, and have embeddings of a file."""

from typing import Literal, Self

from pydantic import Field, model_validator

from kdray.settings import later_field
from kdray.students.student import Student
from kdray.students.vocabularies import Vocabulary
from kdray.students.word_vocabulary import OwnWords

FROM_SOURCE, DRAWN = "source", "drawn"
LEAST_COUNT = 2
"""A word that the texts have once teaches a student less than the unknown token that takes its place."""


class WordStudent(Student):
    """The settings of a student that may read words, and may have other embeddings than its source."""

    embeddings: str = Field(FROM_SOURCE, min_length=1)
    """The initial embeddings: `source`, those of the source, of a word the mean of its pieces; `drawn`, random ones; or
    the vectors of words in a text file of GloVe's format, in a .npy file with the words beside it, or in a folder."""
    tokenizer: Literal["source", "words"] = later_field("source")
    """What the student reads: the pieces of the source's tokenizer, or whole words of the texts to train on."""
    minimum_count: int = later_field(LEAST_COUNT, ge=1)
    """How often the texts to train on must have a word; others are unknown. It has a meaning for words only."""

    @model_validator(mode="after")
    def _check_vectors(self) -> Self:
        if self.vector_file is not None and self.tokenizer != "words":
            raise ValueError(
                f"student.embeddings: got {self.embeddings!r}, which is neither 'source' nor 'drawn', so it names a "
                "file with vectors of words; the pieces of the source's tokenizer have none. Set "
                "student.tokenizer='words', too."
            )
        return self

    @property
    def vector_file(self) -> str | None:
        """The file or folder with the vectors of the words; None: the embeddings are not from a file."""
        return None if self.embeddings in (FROM_SOURCE, DRAWN) else self.embeddings

    @property
    def own_vocabulary(self) -> Vocabulary | None:
        """See `Student`."""
        if self.tokenizer != "words":
            return super().own_vocabulary
        return OwnWords(self.minimum_count, self.vocabulary, self.vector_file)

    @property
    def shape(self) -> Self:
        """See `Student`: the least count of a word has no meaning for pieces."""
        unused = {} if self.tokenizer == "words" else {"minimum_count": LEAST_COUNT}
        return super().shape.model_copy(update=unused)
