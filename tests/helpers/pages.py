"""The Markdown pages of the documentation, as their tests read them: blocks of code, links and anchors.

`python tests/helpers/pages.py` lists the links that lead out, which no test follows, with the pages that have them.
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
# In the source ahead of a block: why it is not run, or that it is what the block before it prints.
NOT_RUN = re.compile(r"<!-- not run: (\S.*\S) -->")
PRINTED = "<!-- printed -->"
RUN = ("python", "bash")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Args:
        language: what stands behind the fence.
        code: its text.
        line: of the fence in the page, from 1.
        remark: the comment ahead of it, if any.
    """

    language: str
    code: str
    line: int
    remark: str

    @property
    def reason(self) -> str | None:
        """Why it is not run, if it is not."""
        found = NOT_RUN.fullmatch(self.remark)
        return found and found[1]

    @property
    def printed(self) -> bool:
        """Whether it shows what the block before it prints."""
        return self.remark == PRINTED


def tokens(page: Path) -> list[Token]:
    """The page as CommonMark with tables."""
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page in their order."""
    found, remark = [], ""
    for token in tokens(page):
        if token.type == "fence":
            assert token.map is not None
            found.append(Block(token.info.strip(), token.content, token.map[0] + 1, remark))
        remark = token.content.strip() if token.type == "html_block" else ""
    return found


def links(page: Path) -> list[str]:
    """Where the links and images of a page lead."""
    inline = (child for token in tokens(page) for child in token.children or ())
    found = (child.attrs.get("href") or child.attrs.get("src") for child in inline)
    return [str(target) for target in found if target]


def anchors(page: Path) -> set[str]:
    """The names of a page's headings in links, as GitHub makes them."""
    parsed = tokens(page)
    headings = [after.content for token, after in pairwise(parsed) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The `unlora` commands of a page's bash blocks and of the code in its text, each with the flags that it uses."""
    inline = (child for token in tokens(page) for child in token.children or ())
    snippets = [block.code for block in blocks(page) if block.language == "bash"]
    snippets += [child.content for child in inline if child.type == "code_inline"]
    for snippet in snippets:
        joined = snippet.replace("\\\n", " ")
        for command, rest in re.findall(r"(?:^|\s)unlora +([a-z][\w-]*)([^;|&\n]*)", joined, re.MULTILINE):
            yield command, re.findall(r"(?:^|\s)--([A-Za-z][\w-]*)", rest)


def main() -> None:
    """Lists the links that lead out."""
    outward: dict[str, list[str]] = defaultdict(list)
    for page in PAGES:
        for target in links(page):
            if "://" in target:
                outward[target].append(str(page.relative_to(ROOT)))
    for target in sorted(outward):
        print(f"{target}  {', '.join(sorted(set(outward[target])))}")


if __name__ == "__main__":
    main()
