"""Where rows come from, and how they reach a model: files and hub, checked cells, splits, token ids, batches.

In reading order:

- `sources`        reads raw tables from a file, a folder, the Hugging Face hub or a generator
- `cells`          checks each cell of the text and label columns
- `splits`         Data: the settings; the train, validation and test rows, cut from train if a split is missing
- `generated`      GeneratedReviews: labelled sentences that a seeded generator writes
- `tokens`         tokenises all splits once and caches the token ids as Arrow files
- `rows`           one split of the token ids, memory-mapped; padded batches
- `batches`        the order in which rows are put into batches
- `transfer_set`   reads the teacher's stored logits (`teacher.transfer` writes them)
"""
