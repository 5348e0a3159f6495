"""Which rows can be generated without a download: one generator for each task, each with a seed.

In reading order:

- `drawing`     GeneratedRows: the settings that all generators share; distinct rows of a split; votes
- `reviews`     GeneratedReviews: reviews with one label, for text classification
- `mentions`    GeneratedMentions: sentences with names of four types, for token classification
- `moods`       GeneratedMoods: notes with any number of moods, for several labels a text
- `pairs`       GeneratedPairs: two sentences and how similar they are, for regression
- `articles`    GeneratedArticles: short articles, for language models
- `generators`  all generators: the one list of them, and how settings choose one by its `kind`

A generator combines several effects, so that the number of layers of a small Transformer matters. Training rows with
labels have the answers of one simulated annotator, who is sometimes wrong; the other splits have the true ones. A
teacher that has seen many such answers learns the true ones, and its soft targets tell a student how clear each is.
"""
