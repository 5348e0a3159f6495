"""Where rows come from, and how they reach a model: files and hub, checked cells, splits, token ids, batches.

In reading order:

- `memory`         Budget: how much memory the rows of all files may need
- `arrow_types`    which types an Arrow table from outside may have, and how large it is when decoded
- `tables`         Table: raw columns, what every reader returns; the one way from an Arrow table to it
- `encodings`      decodes other encodings than UTF-8, and guesses them for messages
- `reading`        Reading: the settings that say how files are written
- `data_files`     data files by their names; the bytes of a file, unpacked and counted
- `delimited`      reads csv, tsv and txt
- `json_files`     reads JSON and JSON lines
- `columnar`       reads Parquet, Arrow and Feather
- `folders`        finds the files of each split
- `sources`        opens a file, a folder, the Hugging Face hub or a generator, and reads its splits
- `cells`          checks each cell of the text and label columns
- `cuts`           cuts a missing split from train, and draws fewer rows, by label
- `findings`       says what is odd about the rows, without a change of them
- `splits`         Data: the settings; the train, validation and test rows, cut from train if a split is missing
- `generated`      GeneratedReviews: labelled sentences that a seeded generator writes
- `tokens`         tokenises all splits once and caches the token ids as Arrow files
- `truncation`     says how many texts are cut at the maximum length
- `rows`           one split of the token ids, memory-mapped; padded batches
- `batches`        the order in which rows are put into batches
- `transfer_set`   reads the teacher's stored logits (`teacher.transfer` writes them)
"""
