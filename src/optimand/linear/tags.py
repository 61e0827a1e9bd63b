"""What lineax asks of an operator, answered by its tags."""

from collections.abc import Callable
from typing import Any

import lineax as lx

__all__ = ["SYMMETRIC", "answer_by_tags"]

SYMMETRIC = frozenset([lx.symmetric_tag, lx.positive_semidefinite_tag, lx.negative_semidefinite_tag])

_ANSWERS = (
    (lx.is_symmetric, SYMMETRIC | {lx.diagonal_tag}),
    (lx.is_diagonal, {lx.diagonal_tag}),
    (lx.is_tridiagonal, {lx.tridiagonal_tag, lx.diagonal_tag}),
    (lx.has_unit_diagonal, {lx.unit_diagonal_tag}),
    (lx.is_lower_triangular, {lx.lower_triangular_tag, lx.diagonal_tag}),
    (lx.is_upper_triangular, {lx.upper_triangular_tag, lx.diagonal_tag}),
    (lx.is_positive_semidefinite, {lx.positive_semidefinite_tag}),
    (lx.is_negative_semidefinite, {lx.negative_semidefinite_tag}),
)


def answer_by_tags(kind: type[lx.AbstractLinearOperator], tags: Callable[[Any], frozenset[object]]) -> None:
    """Let lineax's questions about operators of this type be answered by their `tags`."""
    for question, wanted in _ANSWERS:
        question.register(kind)(lambda operator, wanted=frozenset(wanted): bool(tags(operator) & wanted))
