"""What users see: the progress on the screen while a sweep runs, and the report at its end.

In reading order:

- `screen`      the live display on a terminal, plain lines elsewhere
- `figures`     Figures: all values that a report shows
- `families`    which family of students is where on the front
- `teachers`    the teacher's figures, several teachers, and the sweeps that made them
- `table`       the table of trials on a terminal
- `confirmed`   the table of the confirmed students
- `labels`      the table of the labels
- `controls`    the table of the controls
- `terms`       the table of the terms of the loss
- `front`       the plot of the Pareto front as a picture
- `plots`       the interactive plots of the page
- `page`        report.html, from page.html.j2
- `files`       writes the report's folder: report.html, report.md, results.csv, front.png
"""
