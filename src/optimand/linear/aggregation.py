r"""The levels of smoothed aggregation, set up on the host with SciPy's sparse matrices.

Unknowns belong to points: one each, or several, as the displacements of a node. From a level with matrix A and candidates B, vectors that
the smoother does not
damp, to the next one (Vanek, Mandel and Brezina 1996):

1. Points i and j are strongly coupled where \(|a_{ij}|^2 > \theta^2 |a_{ii} a_{jj}|\), with the Frobenius norms of blocks for numbers. In
   \(A_F\) the other entries off the diagonal are zero; where there is one candidate, the diagonal is such that \(A_F B = A B\).
2. Roots are points no two of which are closer than three couplings, and as many as there is room for; a point next to a root joins it.
   Where several of
   those in between are coupled to each other, the same is done once more among them, and the others join the neighbour that they are
   coupled to most. Roots
   are found in rounds: points whose random number is the largest within two couplings become one (Luby 1986; Bell, Dalton and Olson 2012),
   so that
   a million points take some ten rounds. Points without strong couplings join nothing: the smoother is enough for them.
3. On each aggregate the candidates are made orthonormal, \(B = T B_c\), where those that depend on others are left out. \(B_c\) are the
   candidates of the next level.
4. \(P = (I - \omega D^{-1} A_F) T\) with \(\omega = \tfrac43 / \rho(D^{-1} A_F)\), and the next matrix is \(P^\top A P\).
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float

from .row_groups import Csr

__all__ = ["Candidates", "Level", "Levels", "Recipe", "aggregates_of", "levels_of", "spectral_bound", "tentative_of"]

_CROWD = 3  # couplings among the points that are next to no root, with which one of them is a root itself
_LANCZOS = 12  # steps for the spectral radius
_SPARE = 1.05  # what they may have missed
_DEPENDENT = 1e-10  # squared, of the largest: from which on a candidate depends on others


class Candidates:
    """Vectors on the finest level, in NumPy, equal to others with the same numbers."""

    def __init__(self, vectors: Any):
        self.vectors = np.asarray(vectors, float)
        self._key = (self.vectors.shape, self.vectors.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidates) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the levels are made: theta, unknowns of a point, the unknowns from which on the matrix is inverted, the candidates or None."""

    strength: float
    block: int
    coarsest: int
    candidates: Candidates | None


class Level(NamedTuple):
    """A matrix, the inverse of its diagonal, a bound of the spectrum of their product, and what leads to the next level."""

    matrix: Csr
    inverse: np.ndarray
    largest: float
    prolongation: Csr
    restriction: Csr
    tentative: Csr  # T


class Levels(NamedTuple):
    """All levels but the last one; its matrix, and the pseudo-inverse of that, or the inverse of the diagonal where it is too large; what is wrong."""

    levels: list[Level]
    last: Csr
    inverse: np.ndarray
    flaw: str


_MOST_DENSE = 4000  # unknowns up to which the last matrix is inverted where it could not be made smaller


def levels_of(
    matrix: Csr, recipe: Recipe, tentative: list[Csr] | None = None, *, symbolic: bool = False
) -> Levels:
    """The levels of a matrix; `tentative` prolongations of another matrix with the same places, made with a strength of 0, take the place of new ones.

    With `symbolic` the entries are taken as ones, and nothing cancels: every level has all the places that it may have for other entries.
    """
    size = matrix.shape[0]
    point = np.arange(size) // recipe.block
    candidates = np.ones((size, 1)) if recipe.candidates is None else recipe.candidates.vectors
    levels: list[Level] = []
    flaw = ""
    if symbolic:
        matrix = _ones(matrix)
    while matrix.shape[0] > recipe.coarsest:
        theta = recipe.strength * 0.5 ** len(levels)
        diagonal = matrix.diagonal()
        if not symbolic and not np.all(diagonal > 0):
            flaw = flaw or f"unknown {int(np.argmin(diagonal > 0))} of level {len(levels)} has no positive diagonal"
            diagonal = np.where(diagonal > 0, diagonal, 1)
        filtered = matrix
        if tentative is None:
            strong, filtered = _strong_couplings(matrix, point, theta, candidates)
            label = aggregates_of(strong)
            t, coarse_candidates, coarse_point = tentative_of(label, point, candidates)
        elif len(levels) < len(tentative):
            t, coarse_candidates, coarse_point = tentative[len(levels)], candidates, point
        else:
            break
        if not 0 < t.shape[1] < 0.9 * t.shape[0]:
            break
        if symbolic:
            largest, p = 0.0, _ones(matrix) @ _ones(t)
        else:
            largest = spectral_bound(matrix, diagonal)
            p = _smoothed(filtered, largest if filtered is matrix else spectral_bound(filtered, filtered.diagonal()), t)
        p = p.astype(matrix.dtype).tocsr()
        r = p.T.tocsr()
        levels.append(Level(matrix, 1 / diagonal, largest, p, r, t))
        matrix, candidates, point = r @ (matrix @ p), coarse_candidates, coarse_point
    inverse, wrong = _inverted(matrix, symbolic)
    return Levels(levels, matrix, inverse, flaw or wrong)


def _ones(matrix: Csr) -> Csr:
    return scipy.sparse.csr_array((np.ones(len(matrix.indices), np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)


def _smoothed(filtered: Csr, largest: float, t: Csr) -> Csr:
    """(I - omega D^-1 A_F) T."""
    step = filtered @ t
    scale = 4 / (3 * largest) / filtered.diagonal()
    step.data *= -np.repeat(scale, np.diff(step.indptr))
    return t + step


def _inverted(matrix: Csr, symbolic: bool) -> tuple[np.ndarray, str]:
    """The pseudo-inverse of a small matrix; of a large one the inverse of the diagonal. If symbolic, zeros in its shape."""
    dense = matrix.shape[0] <= _MOST_DENSE
    if symbolic:
        return np.zeros(matrix.shape if dense else matrix.shape[:1], matrix.dtype), ""
    if not dense:
        diagonal = matrix.diagonal()
        return 1 / np.where(diagonal > 0, diagonal, 1), "" if np.all(diagonal > 0) else "the diagonal is not positive"
    whole = matrix.toarray()
    values, vectors = scipy.linalg.eigh((whole + whole.T) / 2)
    largest = np.abs(values).max(initial=0)
    limit = len(values) * np.finfo(values.dtype).eps * largest
    wrong = f"it has the eigenvalue {values[0]:.3g} on the coarsest level" if len(values) and values[0] < -1e3 * limit else ""
    kept = values > limit
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T, wrong


def spectral_bound(matrix: Csr, diagonal: Float[np.ndarray, " n"]) -> float:
    """The largest eigenvalue of D^-1 A: what some steps of Lanczos' method find, a little more, and their residual; at most the largest row sum."""
    lengths = np.diff(matrix.indptr)
    sums = np.add.reduceat(np.abs(matrix.data), matrix.indptr[:-1][lengths > 0]) if matrix.nnz else np.zeros(0)
    rows = float(np.max(sums / diagonal[lengths > 0], initial=0))
    root = 1 / np.sqrt(diagonal)
    v = np.random.default_rng(0).standard_normal(matrix.shape[0]).astype(matrix.dtype)
    v /= np.linalg.norm(v)
    before, beta, alphas, betas = np.zeros_like(v), 0.0, [], []
    for _ in range(min(_LANCZOS, matrix.shape[0])):
        w = root * (matrix @ (root * v)) - beta * before
        alphas.append(float(v @ w))
        w -= alphas[-1] * v
        beta = float(np.linalg.norm(w))
        betas.append(beta)
        if not beta > 1e-10 * abs(alphas[0]):
            break
        before, v = v, w / beta
    if not np.all(np.isfinite(alphas)) or not np.isfinite(betas[-1]):
        return rows
    values, vectors = scipy.linalg.eigh_tridiagonal(alphas, betas[:-1])
    return min(_SPARE * float(values[-1]) + betas[-1] * abs(float(vectors[-1, -1])), rows)


# Strength, aggregates, and the tentative prolongation.


def _strong_couplings(
    matrix: Csr, point: np.ndarray, theta: float, candidates: np.ndarray
) -> tuple[Csr, Csr]:
    """The couplings of points that are strong, with how strong they are, and the matrix without the others."""
    size = matrix.shape[0]
    single = np.array_equal(point, np.arange(size))
    norms: Csr
    if single:
        norms = scipy.sparse.csr_array((np.abs(matrix.data), matrix.indices, matrix.indptr), shape=matrix.shape)
    else:
        belongs = scipy.sparse.csr_array((np.ones(size, matrix.dtype), point, np.arange(size + 1)), shape=(size, int(point.max()) + 1))
        squares = scipy.sparse.csr_array((np.abs(matrix.data) ** 2, matrix.indices, matrix.indptr), shape=matrix.shape)
        norms = (belongs.T @ squares @ belongs).tocsr()
        norms.data = np.sqrt(norms.data)
    if theta == 0:
        return norms, matrix
    row = np.repeat(np.arange(norms.shape[0]), np.diff(norms.indptr))
    own = norms.diagonal()
    keep = (norms.data**2 > theta**2 * own[row] * own[norms.indices]) | (row == norms.indices)
    strong = scipy.sparse.coo_array((norms.data[keep], (row[keep], norms.indices[keep])), shape=norms.shape).tocsr()
    if single:
        data, places = np.where(keep, matrix.data, 0), row
        if candidates.shape[1] == 1:  # A_F makes of the candidate what A does
            diagonal, vector = matrix.diagonal(), candidates[:, 0]
            left = np.bincount(row, (matrix.data - data) * vector[matrix.indices], minlength=size)
            moved = diagonal + np.divide(left, vector, out=np.zeros_like(left), where=vector != 0)
            on = row == matrix.indices
            data[on] = np.where(moved > 0.1 * diagonal, moved, diagonal)[row[on]]
        filtered = scipy.sparse.coo_array((data[keep], (places[keep], matrix.indices[keep])), shape=matrix.shape).tocsr()
    else:
        filtered = matrix.multiply(belongs @ _ones(strong).astype(matrix.dtype) @ belongs.T).tocsr()
    return strong, filtered


def aggregates_of(strong: Csr) -> np.ndarray:
    """The number of the aggregate of each point, -1 for those without couplings."""
    size = strong.shape[0]
    strong = strong.maximum(strong.T.tocsr())  # rounding may have left a coupling in one direction only
    row = np.repeat(np.arange(size, dtype=np.int32), np.diff(strong.indptr))
    off = row != strong.indices
    alone = np.bincount(row[off], minlength=size) == 0
    starts = np.append(0, np.cumsum(np.bincount(row[off], minlength=size)))
    weight = scipy.sparse.csr_array((strong.data[off], strong.indices[off], starts), shape=strong.shape)
    roots = _distant(weight, ~alone)
    label = np.full(size, -1, np.int64)
    label[roots] = np.arange(len(roots))
    taken = np.flatnonzero(~alone & (label < 0))
    label[taken] = _most(weight, label, taken)  # a point has one root next to it at most
    free = ~alone & (label < 0)
    inner, crowd = _within(weight, free)
    more = _distant(inner, free & (crowd >= _CROWD))
    label[more] = len(roots) + np.arange(len(more))
    beside = np.flatnonzero(free & (label < 0) & (crowd > 0))
    label[beside] = _most(inner, np.where(free, label, -1), beside)
    rest = np.flatnonzero(~alone & (label < 0))
    label[rest] = _strongest(weight, label, rest)
    return label


def _within(weight: Csr, free: np.ndarray) -> tuple[Csr, np.ndarray]:
    """The couplings among some points, and how many each of these has."""
    rows = np.flatnonzero(free)
    entries, starts = _entries(weight, rows)
    row = np.repeat(rows, np.diff(np.append(starts, len(entries))))
    keep = free[weight.indices[entries]]
    crowd = np.bincount(row[keep], minlength=len(free))
    kept = entries[keep]
    return scipy.sparse.csr_array((weight.data[kept], weight.indices[kept], np.append(0, np.cumsum(crowd))), shape=weight.shape), crowd


def _distant(weight: Csr, wanted: np.ndarray) -> np.ndarray:
    """A largest set of wanted points, no two of which are within two couplings."""
    size = weight.shape[0]
    number = np.random.default_rng(0).permutation(size).astype(np.int32) + 1
    chosen = np.int32(size + 1)
    key = np.where(wanted, number, 0)
    open_ = np.flatnonzero(wanted)
    while open_.size:
        near = _neighbours(weight, open_)
        once = np.zeros(size, np.int32)
        once[near] = np.maximum(_most(weight, key, near), key[near])
        twice = np.maximum(_most(weight, once, open_), once[open_])
        key[open_[twice == chosen]] = 0
        key[open_[(twice == key[open_]) & (key[open_] > 0)]] = chosen
        open_ = open_[(key[open_] > 0) & (key[open_] < chosen)]
    return np.flatnonzero(key == chosen)


def _entries(weight: Csr, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the entries of some rows, none of which is empty, and where each row begins among them."""
    lengths = weight.indptr[rows + 1] - weight.indptr[rows]
    starts = np.cumsum(lengths) - lengths
    if len(rows) == weight.shape[0]:
        return np.arange(weight.nnz), starts
    return np.repeat(weight.indptr[rows] - starts, lengths) + np.arange(int(lengths.sum())), starts


def _neighbours(weight: Csr, rows: np.ndarray) -> np.ndarray:
    """These points and all that they are coupled to."""
    inside = np.zeros(weight.shape[0], bool)
    inside[rows] = True
    inside[weight.indices[_entries(weight, rows)[0]]] = True
    return np.flatnonzero(inside)


def _most(weight: Csr, key: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The largest key next to each of these points."""
    if not rows.size:
        return np.zeros(0, key.dtype)
    entries, starts = _entries(weight, rows)
    return np.maximum.reduceat(key[weight.indices[entries]], starts)


def _strongest(weight: Csr, label: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The aggregate that each of these points is coupled to most, over the root of its size, so that none grows out of measure."""
    if not rows.size:
        return np.zeros(0, label.dtype)
    entries, starts = _entries(weight, rows)
    joined = label[weight.indices[entries]]
    sizes = np.bincount(label[label >= 0])
    pull = np.where(joined >= 0, weight.data[entries] / np.sqrt(sizes[joined]), -1)
    line = np.repeat(np.arange(len(rows)), np.diff(np.append(starts, len(entries))))
    best = np.flatnonzero(pull == np.maximum.reduceat(pull, starts)[line])
    first = best[np.unique(line[best], return_index=True)[1]]
    return joined[first]


def tentative_of(
    label: np.ndarray, point: np.ndarray, candidates: Float[np.ndarray, "n m"]
) -> tuple[Csr, np.ndarray, np.ndarray]:
    """T, whose columns are orthonormal; the candidates of the next level, and the point of each of its unknowns."""
    size, m = candidates.shape
    aggregate = label[point]
    inside = np.flatnonzero(aggregate >= 0)
    inside = inside[np.argsort(aggregate[inside], kind="stable")]
    own, b = aggregate[inside], candidates[inside]
    count = int(own.max(initial=-1)) + 1
    gram = np.zeros((count, m, m))
    for i in range(m):
        for j in range(i + 1):
            gram[:, i, j] = gram[:, j, i] = np.bincount(own, b[:, i] * b[:, j], minlength=count)
    values, vectors = (gram[:, 0], np.ones((count, 1, 1))) if m == 1 else np.linalg.eigh(gram)
    kept = values > _DEPENDENT * np.maximum(values[:, -1:], np.finfo(float).tiny)
    root = np.sqrt(np.where(kept, values, 1))
    coarse = (root[:, :, None] * np.swapaxes(vectors, 1, 2))[kept]
    numbers = (np.cumsum(kept) - 1).reshape(count, m)
    entries = np.einsum("ni,nij->nj", b, (vectors / root[:, None, :])[own])
    there = kept[own]
    rows = np.broadcast_to(inside[:, None], there.shape)[there]
    t = scipy.sparse.coo_array((entries[there], (rows, numbers[own][there])), shape=(size, int(kept.sum()))).tocsr()
    return t, coarse, np.repeat(np.arange(count), kept.sum(axis=1))
