"""A tokenizer of whole words, made of the texts: the words that are frequent enough, and special tokens.

Its JSON has all rules, so that the library `tokenizers` reads it without kdray.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from kdray.data.rows import TRAIN
from kdray.data.tokens import TextBlocks
from kdray.data.words import PATTERN
from kdray.errors import SpecError

NEGATION = r"(?i:n['\u2019]t)(?!\p{L})"
WORD = rf"\p{{L}}+?(?={NEGATION})|{NEGATION}|{PATTERN}"
"""The regular expression of a word: as `kdray.data.words` has it, with don't as do and n't, as in the Penn Treebank.

Corpora that are divided into words, such as SST-2, and files of word vectors, such as GloVe's, have n't."""
UNLIMITED = 2**31 - 1


def texts_to_count(text: TextBlocks) -> Iterator[str]:
    """The texts to train on, labelled or not, without changed copies; sentences of words as one text each."""
    for block in islice(text.blocks(TRAIN), 2):
        for name in ("text", "pair"):
            for cell in block.get(name, ()):
                yield cell if isinstance(cell, str) else " ".join(cell)


def word_tokenizer(
    texts: Iterable[str], special: Sequence[str], unknown: str, lowercase: bool, minimum_count: int, limit: int | None
) -> Tokenizer:
    """A tokenizer of the words that these texts have at least `minimum_count` times; all others are `unknown`.

    The ids are those of the special tokens, in their order, then those of the words, the most frequent one first. A
    `limit` is the number of ids. Raises SpecError if there are fewer words than the limit, or none at all.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    trainer = trainers.WordLevelTrainer(
        vocab_size=limit or UNLIMITED,
        min_frequency=minimum_count,
        special_tokens=list(special),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    size = tokenizer.get_vocab_size()
    if limit is not None and (size < limit or limit <= len(special)):
        raise SpecError(
            f"student.vocabulary: got {limit:,}, but the texts to train on have {size - len(special):,} words that "
            f"occur at least {minimum_count} times (student.minimum_count), and there are {len(special)} special "
            f"tokens. Allowed are {len(special) + 1:,} to {size:,}, or None for all."
        )
    if size <= len(special):
        raise SpecError(
            f"student.minimum_count: got {minimum_count}, but no word of the texts to train on occurs so often. Give a "
            "smaller number."
        )
    return tokenizer


def words_of(rules: Mapping[str, Any], special: Sequence[str]) -> list[str]:
    """The words of such a tokenizer, in the order of their ids; `rules` is the content of its tokenizer.json."""
    vocab: dict[str, int] = rules["model"]["vocab"]
    return [word for word in sorted(vocab, key=vocab.__getitem__) if word not in special]
