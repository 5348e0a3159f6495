"""What people see: progress on the screen while a sweep runs, and the report when it has ended.

In reading order:

- `screen`      live progress on a terminal, plain lines elsewhere
- `figures`     Figures: everything that a report shows
- `table`       the table of trials on a terminal
- `confirmed`   the table of the confirmed students
- `controls`    the table of the controls
- `front`       the picture of the Pareto front
- `plots`       the interactive pictures of the page
- `page`        report.html, from page.html.j2
- `files`       writes the report's folder: report.html, report.md, results.csv, front.png
"""
