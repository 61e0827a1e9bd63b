"""Every Python block in a docstring runs as it stands, after the imports that a reader takes for granted."""

import ast
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import optimand as om

PACKAGE = Path(om.__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples():
    """Each block with the name of what it documents; found in the source, so that private names are not missed."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(module):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
                for number, block in enumerate(BLOCK.findall(text)):
                    where = [*path.relative_to(PACKAGE).with_suffix("").parts, *([node.name] if hasattr(node, "name") else [])]
                    solves = path.parent.name == "smooth" and "solve(" in block  # compiles a method of its own
                    marks = [pytest.mark.thorough] if solves else []
                    yield pytest.param(block, marks=marks, id=".".join(where) + ("" if number == 0 else f"-{number}"))


EXAMPLES = list(examples())


def test_there_are_examples():
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize("block", EXAMPLES)
def test_the_example_runs(block):
    exec(compile(block, "<docstring>", "exec"), {"om": om, "jax": jax, "jnp": jnp, "optax": optax})
