"""Where rows come from: data files, the Hugging Face hub and generators, read into raw tables.

In reading order:

- `memory`      Budget: how much memory the rows of all files may need
- `arrow_types` which types an Arrow table from outside may have, and how large it is when decoded
- `tables`      Table: raw columns, what every reader returns; the one way from an Arrow table to it
- `encodings`   decodes other encodings than UTF-8, and guesses them for messages
- `data_files`  data files by their names; the bytes of a file, unpacked and counted
- `plain_text`  reads plain text, of which a line, a paragraph or a document is a row
- `reading`     Reading: the settings that say how files are written
- `delimited`   reads csv, tsv and txt
- `json_files`  reads JSON and JSON lines
- `columnar`    reads Parquet, Arrow and Feather
- `conll`       reads CoNLL files, with a word and its tag in each line
- `folders`     finds the files of each split
- `generated/`  rows that seeded generators write: reviews, mentions, moods, pairs, articles (a folder with a list)
- `opening`     opens a file, a folder, the Hugging Face hub or a generator, and reads its splits
"""
