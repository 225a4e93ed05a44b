"""Every block of Python in the README and in docs/ is a program that runs.

A block that is not meant to run has `<!-- not run: why -->` in the line before it, which no reader sees. Its test is
skipped, and says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest
from outputs import output_of

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (.+) -->$")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    not_run: str | None
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> Iterator[Block]:
    lines = iter(enumerate(text.splitlines(), 1))
    previous = ""
    for number, line in lines:
        if line == "```python":
            marked = NOT_RUN.match(previous)
            code = [f"{line}\n" for _, line in takewhile(lambda numbered: numbered[1] != "```", lines)]
            yield Block(page, number, marked[1] if marked else None, "".join(code))
        previous = line


BLOCKS = [block for page in PAGES for block in blocks_of(page.name, page.read_text())]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_runs(block: Block, tmp_path: Path) -> None:
    if block.not_run is not None:
        pytest.skip(block.not_run)
    _, stderr = output_of(block.code, tmp_path)
    assert stderr == ""


def test_there_are_blocks() -> None:
    assert {block.page for block in BLOCKS} >= {"README.md", "migration.md", "tasks.md", "actors.md", "failures.md"}


def test_what_is_a_block() -> None:
    text = """\
```python
1 / 0

2
```
<!-- not run: it has no end -->
```python
3
```
```sh
exit
```
"""
    assert list(blocks_of("page", text)) == [
        Block("page", 1, None, "1 / 0\n\n2\n"),
        Block("page", 7, "it has no end", "3\n"),
    ]


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        output_of("1 / 0\n", tmp_path)
