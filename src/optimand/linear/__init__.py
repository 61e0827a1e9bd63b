"""Linear systems: sparse operators for every lineax solver, and solvers for single systems and for sequences of them."""

from .sparse import SparseOperator, SparsePattern

__all__ = ["SparseOperator", "SparsePattern"]
