"""How rows reach a model: checked cells and gold, splits, token ids, padded batches, the teacher's logits.

In reading order:

- `gold`            the right answers of rows: one label, several labels, a number, or the text itself
- `task_data`       TaskData: what the data need to know of a task
- `cells`           checks each cell of the text and label columns
- `distinct_cells`  reads each different cell of a column once
- `number_cells`    checks a column of numbers
- `indicator_cells` checks columns of 0 and 1, one for each label
- `separated_cells` checks a text column with several labels in a cell
- `list_cells`      checks each cell of a column of lists: words, tags, labels
- `label_lists`     checks a column with a list of labels in each cell
- `words`           splits a text into words; spans of characters as tags of these words
- `tagged_texts`    checks rows of tagged words, and texts with spans
- `cuts`            cuts a missing split from train, and draws fewer rows, by label
- `findings`        says what is odd about the rows, without a change of them
- `repeats`         says which texts repeat other texts, exactly or nearly
- `unlabelled`      texts without labels: reads them, and leaves out those that are measured
- `splits`          Data: the settings; the train, validation and test rows, cut from train if a split is missing
- `copies`          the rows of a sweep with changed copies of their texts
- `column_files`    writes an Arrow file with one record batch piece by piece
- `tokens`          tokenises all splits once and caches the token ids as Arrow files
- `truncation`      says how many texts are cut at the maximum length
- `masking`         Masking: which tokens of a text a masked language model has to guess
- `rows`            one split of the token ids, memory-mapped; padded batches
- `masked_rows`     rows that are masked when they are read, in each pass through them anew
- `batches`         the order in which rows are put into batches
- `transfer_set`    reads the teacher's stored logits (`teacher.transfer` writes them)
- `state_store`     reads the teacher's stored hidden states (`teacher.state_files` writes them)
"""
