"""Linear systems: sparse operators for every lineax solver, and solvers for single systems and for sequences of them."""

from .sparse import SparseOperator, SparsePattern
from .sparse_lu import SparseLU

__all__ = ["SparseLU", "SparseOperator", "SparsePattern"]
