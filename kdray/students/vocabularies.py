"""Vocabulary: which pieces a student reads, if they are not those of the model that it is built from.

A student with a vocabulary of its own is built from a *derived source*: a folder with another embedding table and
another tokenizer, made of the teacher or the checkpoint. It has token ids of its own, and is used like any source. Each
kind of vocabulary is one file with a subclass of `Vocabulary` and one of `VocabularyPlan`.
"""

from abc import ABC, abstractmethod

from kdray.data.tokens import TextBlocks, TokenSet
from kdray.models.pretrained import Pretrained
from kdray.storage.paths import StoragePaths


class VocabularyPlan(ABC):
    """The pieces of a vocabulary, chosen for one source and one set of texts."""

    @property
    def files(self) -> dict[str, str]:
        """The files that settings name and the vocabulary was made with: setting and name -> a fingerprint."""
        return {}

    @abstractmethod
    def derive(self, source: Pretrained, paths: StoragePaths) -> Pretrained:
        """The source with these pieces, in the storage's cache.

        The source is the one that the plan was made for, or has the same tokenizer: the teacher after its fine-tuning.
        Raises TeacherError for a model whose vocabulary cannot be changed.
        """

    @abstractmethod
    def describe(self, before: TokenSet, after: TokenSet) -> str:
        """A sentence for people: what the vocabulary has, and what changes for the texts to train on.

        `before` are the texts in the ids of the source's tokenizer, `after` in those of the derived source.
        """


class Vocabulary(ABC):
    """Settings of a student that decide its vocabulary; equal ones share a derived source, so they can be compared.

    As text it is the settings, for messages.
    """

    @abstractmethod
    def plan(self, source: Pretrained, tokens: TokenSet, text: TextBlocks) -> VocabularyPlan:
        """Choose the pieces for this source and these texts, which `tokens` has in the ids of the source's tokenizer.

        Raises SpecError for settings that do not fit, TeacherError for a tokenizer that cannot be changed.
        """
