"""Which words and pieces of words a model reads: the most used ones of a tokenizer, or the words of the texts.

In reading order:

- `counting`        how often the texts of a sweep use each piece, and what changes for them without some pieces
- `piece_kinds`     the kinds of fast tokenizers: which pieces must stay, and what a piece is made of
- `cutting`         the most used pieces, and the tokenizer that has no others
- `words`           a tokenizer of whole words, made of the texts
- `vectors`         word vectors in files of GloVe's format, or in NumPy arrays
"""
