"""Where rows come from, and how they reach a model: files and hub, checked cells, splits, token ids, batches.

In reading order:

- `sources`        raw tables from a file, a folder, the Hugging Face hub or a generator
- `cells`          checks a column cell by cell: texts and labels
- `splits`         Data; train, validation and test rows, cut where one is missing
- `generated`      GeneratedReviews: labelled sentences that are written on the spot
- `tokens`         token ids of all splits, written once as Arrow files
- `rows`           one split of the token ids, memory-mapped; padded batches
- `batches`        the order in which rows are put into batches
- `transfer_set`   reads the teacher's recorded logits (`teacher.transfer` writes them)
"""
