"""Every Python block in the README and the guide runs as it stands, one page after the other."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

CASES = [pytest.param(page, id=page.stem) for page in PAGES if BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", CASES)
def test_the_code_of_a_page_runs(page):
    names = {}
    if page.name == "README.md":  # its data is left to the reader
        rows = jax.random.normal(jax.random.key(0), (30, 4))
        names = {"A": rows[:20], "b": rows[:20].sum(1), "A_test": rows[20:], "b_test": rows[20:].sum(1)}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), names)
