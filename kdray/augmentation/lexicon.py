"""What ways need of the teacher: its tokenizer and its embeddings, loaded when a way first asks for them.

Letters: V tokens of the vocabulary, H numbers of an embedding.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kdray.augmentation.vocabulary import WholeWords, whole_words
from kdray.models.pretrained import Pretrained


@dataclass(frozen=True)
class Lexicon:
    """The words of a model: how its tokenizer writes them, and where they lie in its table of embeddings."""

    model: Pretrained

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        return self.model.tokenizer()

    @cached_property
    def embeddings(self) -> np.ndarray:
        """The embedding of each token, before positions are added to it (V x H, float32)."""
        # A copy of the table alone, so that the other weights of the model do not stay in memory.
        return np.array(self.model.model().get_input_embeddings().weight.detach().numpy(), np.float32)

    @cached_property
    def words(self) -> WholeWords:
        """The words that are a single token with an embedding."""
        return whole_words(self.tokenizer, len(self.embeddings))
