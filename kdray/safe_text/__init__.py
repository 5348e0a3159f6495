"""What may stand where text leaves kdray: secrets are masked, and characters that a target would obey are escaped.

Names, labels, texts, paths and errors come from files that strangers write. Escape them where they are written, not
where they are read: the same label goes to a terminal, a Markdown table, a web page and a spreadsheet.

In reading order:

- `secrets`      finds passwords and tokens in addresses, commands and messages, and masks them
- `escaping`     text for a terminal, Markdown, HTML and YAML
- `spreadsheet`  csv files without formulas
- `log_lines`    the format of log files
"""
