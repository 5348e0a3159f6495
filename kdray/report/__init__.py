"""What came out, for a person: the table, report.md, results.csv, the front as a picture, and a page for a browser.

- `figures`    what is shown; it is told all that, and works out nothing
- `table`      on a terminal
- `confirmed`  the table of what was trained again
- `files`      report.md and results.csv
- `front`      the picture of the front
- `plots`      the pictures of the page
- `page`       the page: page.html.j2, filled in
"""

from pathlib import Path

from kdray.paths import new_folder
from kdray.report.figures import Figures
from kdray.report.files import markdown, results_csv
from kdray.report.front import front_picture
from kdray.report.page import page
from kdray.report.table import table

__all__ = ["Figures", "markdown", "page", "results_csv", "table", "write_report"]


def write_report(figures: Figures, folder: Path) -> None:
    """Write report.html, report.md, results.csv and front.png; the folder is replaced as a whole."""
    with new_folder(folder) as place:
        (place / "results.csv").write_text(results_csv(figures), encoding="utf-8")
        (place / "report.md").write_text(markdown(figures), encoding="utf-8")
        front_picture(figures).savefig(place / "front.png", dpi=150)
        (place / "report.html").write_text(page(figures), encoding="utf-8")
