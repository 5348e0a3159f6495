"""More text for students to learn from: changed copies of the texts, which the teacher answers as it answers the texts.

A copy has no gold: a changed text may mean something else, so only the teacher says what is right for it.

- `settings`      Augmentation: how many copies, and by which ways
- `ways`          the one list of ways
- `way`           Way: what a way is; how the places of changes are drawn
- `texts`         a text as words, and a text of changed words
- `mask`          words are replaced by the mask token
- `ngrams`        a few words in a row are all that is left
- `neighbours`    words are replaced by near words of the teacher's embedding table
- `masked_lm`     words are replaced by what a masked language model expects in their places
- `order`         neighbouring words are exchanged
- `delete`        words are deleted
- `vocabulary`    the words of a vocabulary that are a single token
- `nearest`       the nearest rows of a table of embeddings by cosine, the same ones on every machine
- `lexicon`       what ways need of the teacher: its tokenizer and its embeddings
- `masked_model`  a masked language model: found, checked, copied into the cache, loaded
- `copying`       CopyInputs and Copier: the copies of a column of texts, in chunks
"""
