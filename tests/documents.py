"""The project's documents as the tests read them: sections, tables and code blocks."""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "greeterd"


@dataclass(frozen=True)
class Document:
    """One document."""

    path: Path

    @property
    def text(self) -> str:
        """The document, whole."""
        return self.path.read_text()

    def section(self, title: str) -> str:
        """Return the text below a heading, up to the next of the same depth or a higher one."""
        heading = re.search(rf"^(#+) {re.escape(title)}\n", self.text, re.MULTILINE)
        assert heading, f"{self.path}: no section {title}"
        rest = self.text[heading.end() :]
        end = re.search(rf"^#{{1,{len(heading[1])}}} ", without_code(rest), re.MULTILINE)
        return rest[: end.start()] if end else rest

    def table(self, title: str, head: str = "") -> list[list[str]]:
        """Return the cells of a section's first table whose head begins so, without its head."""
        tables = re.findall(r"(?:^\|.*\n)+", self.section(title), re.MULTILINE)
        found = next(one for one in tables if one.startswith(f"| {head}"))
        lines = found.splitlines()[2:]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    def column(self, title: str, index: int = 0, head: str = "") -> list[str]:
        """Return one column of a section's table, without the marks of code."""
        return [row[index].replace("`", "") for row in self.table(title, head)]

    def block(self, title: str, language: str, start: str = "") -> str:
        """Return the code block of a section that begins with a text."""
        blocks = re.findall(rf"```{language}\n(.*?)```", self.section(title), re.DOTALL)
        (found,) = (one for one in blocks if one.startswith(start))
        return str(found)

    def statements(self, title: str) -> list[str]:
        """Return what stands in bold at the beginning of a section's points, as marks name it."""
        bold = re.findall(r"^- \*\*(.*?)\*\*", self.section(title), re.MULTILINE | re.DOTALL)
        plain = [" ".join(one.replace("`", "").split()).rstrip(".:,") for one in bold]
        return [one if one[1].isupper() else one[0].lower() + one[1:] for one in plain]

    def anchors(self) -> set[str]:
        """Return the anchors of the headings, as GitHub makes them."""
        headings = re.findall(r"^#+ (.*)$", without_code(self.text), re.MULTILINE)
        return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


def without_code(text: str) -> str:
    """Return a text of the same length in which the code blocks are empty."""
    code = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    return code.sub(lambda found: " " * len(found[0]), text)


README = Document(ROOT / "README.md")
CONF = Document(ROOT / "conf" / "README.md")
SYSTEMD = Document(ROOT / "systemd" / "README.md")
DESIGN = Document(PACKAGE / "README.md")
CLI = Document(PACKAGE / "cli" / "README.md")
BENCH = Document(PACKAGE / "bench" / "README.md")
TESTS = Document(ROOT / "tests" / "README.md")
ALL = (README, CONF, SYSTEMD, DESIGN, CLI, BENCH, TESTS)


@cache
def sources() -> dict[Path, ast.Module]:
    """Return the package's modules."""
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
