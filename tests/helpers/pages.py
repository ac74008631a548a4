"""Parse the Markdown pages of the documentation for their tests: code blocks, links and anchors.

`python tests/helpers/pages.py` lists the external links, which no test follows, with the pages that contain them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_generated" not in path.parts)]
# Comments before a block: the reason why it is not run, or that it is the output of the previous block.
NOT_RUN = re.compile(r"<!-- not run: (\S.*\S) -->")
PRINTED = "<!-- printed -->"
RUN = ("python", "bash")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Args:
        language: the info string of the fence.
        code: text of the block.
        line: line number of the fence, from 1.
        remark: the comment before the block, or an empty string.
    """

    language: str
    code: str
    line: int
    remark: str

    @property
    def reason(self) -> str | None:
        """The reason why the block is not run, or None."""
        found = NOT_RUN.fullmatch(self.remark)
        return found and found[1]

    @property
    def printed(self) -> bool:
        """Whether the block shows the output of the previous one."""
        return self.remark == PRINTED


def tokens(page: Path) -> list[Token]:
    """Parse a page as CommonMark with tables."""
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    found, remark = [], ""
    for token in tokens(page):
        if token.type == "fence":
            assert token.map is not None
            found.append(Block(token.info.strip(), token.content, token.map[0] + 1, remark))
        remark = token.content.strip() if token.type == "html_block" else ""
    return found


def links(page: Path) -> list[str]:
    """Return the targets of the links and images of a page."""
    inline = (child for token in tokens(page) for child in token.children or ())
    found = (child.attrs.get("href") or child.attrs.get("src") for child in inline)
    return [str(target) for target in found if target]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub generates them."""
    parsed = tokens(page)
    headings = [after.content for token, after in pairwise(parsed) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the `unlora` commands in the bash blocks and inline code of a page, each with its flags."""
    inline = (child for token in tokens(page) for child in token.children or ())
    snippets = [block.code for block in blocks(page) if block.language == "bash"]
    snippets += [child.content for child in inline if child.type == "code_inline"]
    for snippet in snippets:
        joined = snippet.replace("\\\n", " ")
        for command, rest in re.findall(r"(?:^|\s)unlora +([a-z][\w-]*)([^;|&\n]*)", joined, re.MULTILINE):
            yield command, re.findall(r"(?:^|\s)--([A-Za-z][\w-]*)", rest)


def main() -> None:
    """Print the external links."""
    external: dict[str, list[str]] = defaultdict(list)
    for page in PAGES:
        for target in links(page):
            if "://" in target:
                external[target].append(str(page.relative_to(ROOT)))
    for target in sorted(external):
        print(f"{target}  {', '.join(sorted(set(external[target])))}")


if __name__ == "__main__":
    main()
