"""Orders in which the parameters of a sequence come after similar ones.

Each function takes parameters, arrays whose leading axis counts them, to a permutation. They run on the host, on concrete numbers: an order is
found once, before a sequence is solved.
"""

from typing import Any

import jax.tree_util as jtu
import numpy as np
import scipy.fft
import scipy.sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg
import scipy.spatial
from jaxtyping import Float, Int, PyTree

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer

__all__ = ["greedy_order", "hilbert_order", "hilbert_positions", "projected_order", "reduced", "spectral_order"]


def greedy_order(parameters: PyTree) -> Int[np.ndarray, " count"]:
    """From the first on, always the nearest that was not visited yet (Wang et al. 2024): q operations for each pair of `count` parameters of q numbers.

    Distances are Euclidean, over all numbers of a parameter. Raises `ArgumentError` for parameters that are traced, of different lengths, or not
    finite.
    """
    points = _points(parameters)
    left = np.arange(1, len(points))
    order = [0]
    while len(left):
        nearest = int(np.argmin(np.sum((points[left] - points[order[-1]]) ** 2, axis=1)))
        order.append(int(left[nearest]))
        left = np.delete(left, nearest)
    return np.array(order)


def projected_order(parameters: PyTree, most: int = 8) -> Int[np.ndarray, " count"]:
    """`greedy_order` of the parameters reduced to at most so many numbers each: for fields, of which greedy would compare every point."""
    return greedy_order(reduced(parameters, most))


def hilbert_order(parameters: PyTree, most: int = 3, bits: int = 10) -> Int[np.ndarray, " count"]:
    """Along Hilbert's curve through the parameters, reduced to 2 or 3 numbers each: for very many of them, since it compares no pairs.

    **Arguments:** `most`: 2 or 3 coordinates; `bits`: each is rounded to 2^bits steps between its ends.
    """
    if most not in (2, 3):
        raise ArgumentError("most", f"must be 2 or 3, not {most!r}.")
    if not isinstance(bits, int) or not 1 <= bits <= 20:
        raise ArgumentError("bits", f"must be a whole number from 1 to 20, not {bits!r}.")
    points = reduced(parameters, most)
    low, high = points.min(axis=0), points.max(axis=0)
    cells = np.floor((points - low) / np.where(high > low, high - low, 1) * (2**bits - 1) + 0.5).astype(np.int64)
    return np.argsort(hilbert_positions(cells, bits), kind="stable")


def spectral_order(parameters: PyTree, neighbours: int = 10) -> Int[np.ndarray, " count"]:
    """By the Fiedler vector of the graph of nearest neighbours: the order that keeps neighbours close all along (Barnard, Pothen and Simon 1995)."""
    points = _points(parameters)
    count = len(points)
    if count < 3:
        return np.arange(count)
    distances, others = map(np.asarray, scipy.spatial.KDTree(points).query(points, k=min(neighbours, count - 1) + 1))
    rows = np.repeat(np.arange(count), len(others[0]))
    scale = np.median(distances[:, -1]) or 1.0
    weights = np.exp(-((distances / scale) ** 2)).ravel() + 1e-6  # no link is lost to rounding
    graph = scipy.sparse.coo_array((weights, (rows, others.ravel())), shape=(count, count)).tocsr()
    graph = graph + graph.T + scipy.sparse.coo_array(_chain(graph, points)).tocsr()
    laplacian: Any = scipy.sparse.csgraph.laplacian(graph)
    if count <= 400:
        vectors = np.linalg.eigh(laplacian.toarray())[1]
    else:
        start = np.random.default_rng(0).normal(size=count)
        shifted = scipy.sparse.csc_array(laplacian + 1e-8 * laplacian.diagonal().max() * scipy.sparse.eye_array(count))
        values, vectors = scipy.sparse.linalg.eigsh(shifted, 2, sigma=0, v0=start)
        vectors = vectors[:, np.argsort(values)]
    return np.argsort(vectors[:, 1], kind="stable")


def _chain(graph: scipy.sparse.csr_array, points: np.ndarray) -> scipy.sparse.csr_array:
    """Weak links between the components of a graph, one after the other, without which it has no Fiedler vector."""
    count, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    first = np.array([np.flatnonzero(label == component)[0] for component in range(count)])
    first = first[greedy_order(points[first])]
    weights = np.full(count - 1, 1e-6)
    one_way = scipy.sparse.coo_array((weights, (first[:-1], first[1:])), shape=graph.shape).tocsr()
    return one_way + one_way.T


def reduced(parameters: PyTree, most: int) -> Float[np.ndarray, "count most"]:
    """At most so many numbers of each parameter: of one field on a grid the lowest frequencies of a cosine transform, else principal components."""
    if not isinstance(most, int) or most < 1:
        raise ArgumentError("most", f"must be a whole number above zero, not {most!r}.")
    leaves = jtu.tree_leaves(parameters)
    points = _points(parameters)
    if len(leaves) == 1 and np.ndim(leaves[0]) > 2:
        field = np.asarray(leaves[0], float)
        axes = tuple(range(1, field.ndim))
        waves: Any = scipy.fft.dctn(field, axes=axes, norm="ortho")
        frequency = np.add.reduce(np.meshgrid(*[np.arange(n) ** 2 for n in field.shape[1:]], indexing="ij"))
        lowest = np.argsort(frequency, axis=None, kind="stable")[:most]
        return waves.reshape(len(field), -1)[:, lowest]
    if points.shape[1] <= most:
        return points
    centred = points - points.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    return (left * values)[:, :most]


def hilbert_positions(cells: Int[np.ndarray, "count dimensions"], bits: int) -> Int[np.ndarray, " count"]:
    """Where cells of a grid of 2^bits in each dimension lie along Hilbert's curve (Skilling 2004)."""
    x = np.array(cells, np.int64).T.copy()
    dimensions = len(x)
    step = 1 << (bits - 1)
    while step > 1:  # undo the rotations and reflections of each level
        for i in range(dimensions):
            bit = (x[i] & step) != 0
            swapped = np.where(bit, 0, (x[0] ^ x[i]) & (step - 1))
            x[0] ^= np.where(bit, step - 1, swapped)
            x[i] ^= swapped
        step >>= 1
    for i in range(1, dimensions):  # Gray code
        x[i] ^= x[i - 1]
    flip = np.zeros_like(x[0])
    step = 1 << (bits - 1)
    while step > 1:
        flip ^= np.where((x[-1] & step) != 0, step - 1, 0)
        step >>= 1
    x ^= flip
    position = np.zeros_like(x[0])
    for bit in range(bits - 1, -1, -1):
        for i in range(dimensions):
            position = (position << 1) | ((x[i] >> bit) & 1)
    return position


def _points(parameters: Any) -> np.ndarray:
    """One row of numbers for each parameter."""
    leaves = jtu.tree_leaves(parameters)
    if any(is_tracer(leaf) for leaf in leaves):
        raise ArgumentError("parameters", "are traced; an order must be found outside of jit.")
    arrays = [np.asarray(leaf) for leaf in leaves]
    if not arrays or any(not array.ndim or len(array) != len(arrays[0]) for array in arrays):
        raise ArgumentError("parameters", f"must have one leading axis, not the shapes {[array.shape for array in arrays]}.")
    arrays = [np.stack([np.real(a), np.imag(a)], -1) if np.iscomplexobj(a) else a for a in arrays]
    points = np.concatenate([array.reshape(len(array), -1).astype(float) for array in arrays], axis=1)
    if not np.all(np.isfinite(points)):
        wrong = int(np.argmax(~np.all(np.isfinite(points), axis=1)))
        raise ArgumentError("parameters", f"are not finite at index {wrong}.")
    return points
