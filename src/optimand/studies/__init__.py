"""Studies: one module for each published system, which reproduces its headline claim beside its baselines.

`base` says what a study is made of, `registry` finds studies without importing them, `settings` reads `--set key=value`,
"""

from .base import Claim, Findings, Run, Table
from .registry import Card, cards, find, load
from .runner import run_study

__all__ = ["Card", "Claim", "Findings", "Run", "Table", "cards", "find", "load", "run_study"]
