"""Files, functions and names keep the shape that docs/design.md promises."""

import ast
from pathlib import Path

import pytest

import xwin

ROOT = Path(xwin.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
DRAWERS = {"utils", "util", "common", "core", "helpers", "helper", "misc", "manager", "handler", "trainer", "tools"}
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def depth(node: ast.AST) -> int:
    """Deepest nesting of blocks below a node; `elif` is no deeper than its `if`; functions inside are measured on their own."""
    deepest = 0
    for name, field in ast.iter_fields(node):
        for child in field if isinstance(field, list) else [field]:
            if not isinstance(child, ast.AST) or isinstance(child, FUNCTIONS):
                continue
            chained = isinstance(node, ast.If) and name == "orelse" and isinstance(child, ast.If) and len(node.orelse) == 1
            deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not chained))
    return deepest


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_fits_the_shape(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    assert path.stem not in DRAWERS
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, FUNCTIONS):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 60, f"{node.name} is longer than 60 lines"
            assert depth(node) <= 4, f"{node.name} nests deeper than 4"


def test_depth_counts_blocks_and_not_elif() -> None:
    chain = ast.parse("def f():\n if a:\n  pass\n elif b:\n  pass\n elif c:\n  for x in y:\n   pass")
    assert depth(chain.body[0]) == 2
