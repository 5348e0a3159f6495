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
- `conll`          reads CoNLL files, with a word and its tag in each line
- `folders`        finds the files of each split
- `sources`        opens a file, a folder, the Hugging Face hub or a generator, and reads its splits
- `gold`           the right answers of rows: one label, several labels, or a number
- `task_data`      TaskData: what the data need to know of a task
- `cells`          checks each cell of the text and label columns
- `distinct_cells` reads each different cell of a column once
- `number_cells`   checks a column of numbers
- `indicator_cells` checks columns of 0 and 1, one for each label
- `separated_cells` checks a text column with several labels in a cell
- `list_cells`     checks each cell of a column of lists: words, tags, labels
- `label_lists`    checks a column with a list of labels in each cell
- `words`          splits a text into words; spans of characters as tags of these words
- `tagged_texts`   checks rows of tagged words, and texts with spans
- `cuts`           cuts a missing split from train, and draws fewer rows, by label
- `findings`       says what is odd about the rows, without a change of them
- `splits`         Data: the settings; the train, validation and test rows, cut from train if a split is missing
- `generated/`     rows that seeded generators write: reviews, mentions, moods, pairs (a folder with a list of its own)
- `tokens`         tokenises all splits once and caches the token ids as Arrow files
- `truncation`     says how many texts are cut at the maximum length
- `rows`           one split of the token ids, memory-mapped; padded batches
- `batches`        the order in which rows are put into batches
- `transfer_set`   reads the teacher's stored logits (`teacher.transfer` writes them)
"""
