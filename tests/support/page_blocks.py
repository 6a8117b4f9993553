"""The code blocks of the README and of the site's pages, and the commands that stand in their text."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from sybil import Document
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCES = RawFencedCodeBlockLexer(re.compile(r'(?P<language>\w*)(?: title="(?P<title>[^"]+)")?[ ]*$\n', re.MULTILINE))
COMMANDS = ("policy-split", "make", "accelerate", "python", "pip", "bash")
INLINE = re.compile(rf"(?<!`)`((?:{'|'.join(COMMANDS)}) [^`]+)`(?!`)")


class Block(NamedTuple):
    language: str
    title: str | None  # the file that it is shown as
    source: str
    line: int  # of the page, where its source begins

    def run(self, page: Path, names: dict) -> None:
        """As Python, with the line numbers of the page."""
        exec(compile("\n" * (self.line - 1) + self.source, page, "exec"), names)


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for region in FENCES(Document(text, str(page))):
        line = text.count("\n", 0, region.start) + 2
        found.append(Block(region.lexemes["language"], region.lexemes["title"], str(region.lexemes["source"]), line))
    return found


def block_commands(page: Path) -> list[list[str]]:
    """The commands of its console blocks, one a line, as words."""
    return [command for block in blocks(page) if block.language == "console" for command in words(block.source)]


def words(source: str) -> list[list[str]]:
    lines = (shlex.split(line, comments=True) for line in source.replace("\\\n", " ").splitlines())
    return [line for line in lines if line]


def inline_commands(page: Path) -> list[list[str]]:
    """The commands that its text names in backticks."""
    found = [shlex.split(" ".join(text.split())) for text in INLINE.findall(page.read_text())]
    return [[word for word in command if word != "..."] for command in found]  # ...: what the reader has
