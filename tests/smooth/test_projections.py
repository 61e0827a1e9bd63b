"""Projections are nearest points, and have the derivatives of nearest points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.smooth import projections

Y = np.array([0.9, -0.7, 0.35, 1.6, -0.2, 0.05])
NORMAL = np.array([1.0, -0.5, 0.3, 0.8, -1.2, 0.4])
ROWS = np.array([NORMAL, np.arange(6.0) / 5])
FACES = np.array([np.eye(6)[0], -np.eye(6)[1], np.ones(6), np.cos(np.arange(6.0)), np.eye(6)[3]])
UPPER = np.array([0.5, 0.4, 0.3, 0.9, 0.7, 0.2])


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


# name: (projection(y, parameter), parameter, whether a point is in the set)
SETS = {
    "non_negative": (lambda y, p: projections.non_negative(y), 0.0, lambda x, p: np.all(x >= 0)),
    "box": (lambda y, p: projections.box(y, -0.3, p), UPPER, lambda x, p: np.all((x >= -0.3) & (x <= p))),
    "simplex": (projections.simplex, 1.3, lambda x, p: np.all(x >= 0) and np.isclose(x.sum(), p)),
    "l1_ball": (projections.l1_ball, 1.3, lambda x, p: np.abs(x).sum() <= p + 1e-12),
    "l2_ball": (projections.l2_ball, 1.3, lambda x, p: np.linalg.norm(x) <= p + 1e-12),
    "linf_ball": (projections.linf_ball, 0.6, lambda x, p: np.abs(x).max() <= p + 1e-12),
    "hyperplane": (lambda y, p: projections.hyperplane(y, NORMAL, p), 0.4, lambda x, p: np.isclose(NORMAL @ x, p)),
    "half_space": (lambda y, p: projections.half_space(y, NORMAL, p), 0.4, lambda x, p: NORMAL @ x <= p + 1e-12),
    "affine_set": (
        lambda y, p: projections.affine_set(y, jnp.asarray(ROWS), p),
        np.array([0.4, 0.1]),
        lambda x, p: np.allclose(ROWS @ x, p),
    ),
    "box_section": (
        lambda y, p: projections.box_section(y, -0.3, UPPER, p, 0.4),
        NORMAL,
        lambda x, p: np.all((x >= -0.3 - 1e-12) & (x <= UPPER + 1e-12)) and np.isclose(p @ x, 0.4),
    ),
    "polyhedron": (
        lambda y, p: projections.polyhedron(y, jnp.asarray(ROWS[:1]), jnp.asarray([0.3]), jnp.asarray(FACES), p),
        np.array([0.5, 0.2, 1.0, 0.9, 3.0]),
        lambda x, p: np.allclose(ROWS[:1] @ x, 0.3) and np.all(FACES @ x <= p + 1e-12),
    ),
    "euclidean_transport_polytope": (
        lambda y, p: projections.euclidean_transport_polytope(
            jnp.outer(y[:3], y[3:]) if y.ndim == 1 else y, p, jnp.asarray([0.3, 0.1, 0.6])
        ),
        np.array([0.2, 0.5, 0.3]),
        lambda x, p: np.all(x >= 0) and np.allclose(x.sum(1), p) and np.allclose(x.sum(0), [0.3, 0.1, 0.6]),
    ),
    "second_order_cone": (
        lambda y, p: projections.second_order_cone(y),
        0.0,
        lambda x, p: np.linalg.norm(x[1:]) <= x[0] + 1e-12,
    ),
    "birkhoff": (
        lambda y, p: projections.birkhoff(jnp.outer(y[:3], y[3:]) if y.ndim == 1 else y),
        0.0,
        lambda x, p: np.all(x >= 0) and np.allclose(x.sum(0), 1) and np.allclose(x.sum(1), 1),
    ),
}


MATRICES = ("birkhoff", "euclidean_transport_polytope")

# These are not convex. name: (projection(y, parameter), parameter, points of the set, whether a point is in the set)
SURFACES = {
    "l1_sphere": (projections.l1_sphere, 1.3, lambda x, p: np.isclose(np.abs(x).sum(), p)),
    "l2_sphere": (projections.l2_sphere, 1.3, lambda x, p: np.isclose(np.linalg.norm(x), p)),
    "sparse_simplex": (
        lambda y, p: projections.sparse_simplex(y, 2, p),
        1.3,
        lambda x, p: np.all(x >= 0) and np.isclose(x.sum(), p) and np.sum(x > 0) <= 2,
    ),
}


@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize("scale", [0.2, 1.0], ids=["from inside", "from outside"])
def test_a_projection_on_a_set_that_is_not_convex_is_a_nearest_point(name, scale):
    """No projection of a thousand other points is nearer."""
    project, parameter, member = SURFACES[name]
    project = jax.jit(jax.vmap(project, in_axes=(0, None)))
    others = np.random.default_rng(0).normal(size=(1000, 6))
    others[0] = scale * Y
    found = np.asarray(project(jnp.asarray(others), parameter))
    assert all(member(x, parameter) for x in found)
    distances = np.linalg.norm(found - scale * Y, axis=1)
    assert np.all(distances[0] <= distances + 1e-9)


def test_the_centre_of_a_sphere_has_a_nearest_point_and_finite_derivatives():
    for project in (projections.l1_sphere, projections.l2_sphere):
        gradient = jax.grad(lambda y, project=project: jnp.sum(jnp.sin(project(y))))(jnp.zeros(4))
        assert np.all(np.isfinite(gradient)) and np.all(np.isfinite(project(jnp.zeros(4))))


@pytest.mark.parametrize("name", SETS)
def test_a_projection_is_the_nearest_point(name):
    """<y - p, z - p> <= 0 for every z of the set; z are projections of other points."""
    project, parameter, member = SETS[name]
    project = jax.jit(project)
    y = np.outer(Y[:3], Y[3:]) if name in MATRICES else Y
    nearest = np.asarray(project(jnp.asarray(y), parameter))
    assert member(nearest, parameter)
    rng = np.random.default_rng(0)
    for scale in (0.1, 1.0, 1.0, 3.0):
        other = np.asarray(project(jnp.asarray(scale * rng.normal(size=y.shape)), parameter))
        assert np.sum((y - nearest) * (other - nearest)) <= 1e-8
    np.testing.assert_allclose(project(jnp.asarray(nearest), parameter), nearest, atol=1e-9)


@pytest.mark.parametrize("name", [*SETS, *SURFACES])
def test_derivatives_in_the_point_and_in_the_set(name):
    project, parameter, _ = (SETS | SURFACES)[name]
    parameter, y = jnp.asarray(parameter, float), jnp.asarray(Y)
    direction = jnp.cos(jnp.arange(y.size)), jnp.sin(1.0 + jnp.arange(parameter.size)).reshape(parameter.shape)
    if name == "euclidean_transport_polytope":  # the marginals must keep their sum
        direction = direction[0], direction[1] - jnp.mean(direction[1])
    flat = lambda y, parameter: jnp.ravel(project(y, parameter))

    @jax.jit
    def derivatives(y, parameter):
        h = 1e-6
        shifted = lambda s: flat(y + s * direction[0], parameter + s * direction[1])
        numeric = (shifted(h) - shifted(-h)) / (2 * h)
        out, forward = jax.jvp(flat, (y, parameter), direction)
        cotangent = jnp.cos(2.0 + jnp.arange(out.size))
        pulled = jax.vjp(flat, y, parameter)[1](cotangent)
        gap = forward @ cotangent - sum(jnp.vdot(a, b) for a, b in zip(pulled, direction, strict=True))
        return numeric, forward, gap

    numeric, forward, gap = derivatives(y, parameter)
    np.testing.assert_allclose(forward, numeric, atol=1e-7)
    assert abs(gap) <= 1e-10


def test_the_jacobian_of_the_simplex_projection_is_that_of_its_support():
    """diag(s) - s s' / |s|_1 (Martins and Astudillo 2016)."""
    y = jnp.asarray(Y)
    support = np.asarray(projections.simplex(y) > 0, float)
    expected = np.diag(support) - np.outer(support, support) / support.sum()
    np.testing.assert_allclose(jax.jacobian(projections.simplex)(y), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "y", "parameter"),
    [
        ("non_negative", np.zeros(6), 0.0),
        ("box", np.concatenate([UPPER[:3], -0.3 * np.ones(3)]), UPPER),
        ("simplex", np.zeros(6), 1.0),
        ("simplex", np.eye(6)[0], 1.0),
        ("l1_ball", np.zeros(6), 1.0),
        ("l1_ball", np.eye(6)[0], 1.0),
        ("l2_ball", np.zeros(6), 1.0),
        ("l2_ball", np.eye(6)[0], 1.0),
        ("linf_ball", np.ones(6), 1.0),
        ("half_space", np.zeros(6), 0.0),
        ("second_order_cone", np.zeros(6), 0.0),
        ("second_order_cone", np.eye(6)[0], 0.0),
        ("second_order_cone", -np.eye(6)[0], 0.0),
        ("birkhoff", np.zeros(6), 0.0),
        ("polyhedron", np.zeros(6), np.zeros(5) + 0.3),
        ("euclidean_transport_polytope", np.zeros(6), np.array([0.5, 0.0, 0.5])),
    ],
)
def test_derivatives_are_finite_at_kinks(name, y, parameter):
    project, _, _ = SETS[name]
    gradient = jax.jit(jax.grad(lambda y, p: jnp.sum(jnp.sin(project(y, p))), argnums=(0, 1)))
    for leaf in gradient(jnp.asarray(y), jnp.asarray(parameter, float)):
        assert np.all(np.isfinite(leaf))


def test_trees_are_projected_as_a_whole():
    x = {"a": jnp.asarray(Y[:2]), "b": jnp.asarray(Y[2:])}
    for project in (projections.simplex, projections.l1_ball, projections.l2_ball):
        out = project(x, 1.2)
        np.testing.assert_allclose(np.concatenate([out["a"], out["b"]]), project(jnp.asarray(Y), 1.2), atol=1e-12)


def test_a_box_takes_numbers_and_trees():
    x = {"a": jnp.array([-1.0, 2.0]), "b": jnp.array(0.5)}
    np.testing.assert_array_equal(projections.box(x, 0.0, 1.0)["a"], [0.0, 1.0])
    np.testing.assert_array_equal(projections.box(x, {"a": -2.0, "b": 0.6}, 1.0)["b"], 0.6)


def test_the_cone_has_batches_and_splits_a_point_in_two():
    """Moreau: y = proj_K y - proj_K(-y) for a self-dual cone, and the two parts are orthogonal."""
    y = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)))
    inside, outside = projections.second_order_cone(y), projections.second_order_cone(-y)
    np.testing.assert_allclose(inside - outside, y, atol=1e-12)
    np.testing.assert_allclose(jnp.sum(inside * outside, axis=-1), 0, atol=1e-12)


def test_birkhoff_of_a_permutation_is_itself_and_stays_differentiable():
    """A vertex: its support falls apart into n pieces."""
    permutation = jnp.eye(4)[jnp.array([2, 0, 3, 1])]
    value, tangent = jax.jit(lambda d: jax.jvp(projections.birkhoff, (5 * permutation,), (d,)))(jnp.ones((4, 4)))
    np.testing.assert_allclose(value, permutation, atol=1e-10)
    np.testing.assert_allclose(tangent, 0, atol=1e-8)


MARGINALS = np.array([0.2, 0.5, 0.3]), np.array([0.1, 0.25, 0.25, 0.4])
SCORES = np.sin(np.arange(12.0)).reshape(3, 4)


def test_an_entropic_plan_has_its_marginals_and_the_form_of_one():
    """P = diag(u) exp(S / eps) diag(v), which makes it the solution."""
    a, b = map(jnp.asarray, MARGINALS)
    plan = jax.jit(lambda s: projections.transport_polytope(s, a, b, regularization=0.2))(jnp.asarray(SCORES))
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-9)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-9)
    ratio = np.log(plan) - SCORES / 0.2
    np.testing.assert_allclose(ratio - ratio[:1] - ratio[:, :1] + ratio[0, 0], 0, atol=1e-9)


def test_derivatives_of_an_entropic_plan_in_scores_marginals_and_regularization():
    def plan(scores, a, b, eps):
        return projections.transport_polytope(scores, a, b, regularization=eps, tolerance=1e-14)

    args = (jnp.asarray(SCORES), *map(jnp.asarray, MARGINALS), jnp.asarray(0.3))
    direction = (jnp.cos(args[0]), jnp.array([0.1, -0.3, 0.2]), jnp.array([0.2, -0.1, -0.2, 0.1]), jnp.asarray(0.5))

    @jax.jit
    def both(*args):
        moved = lambda h: plan(*(arg + h * d for arg, d in zip(args, direction, strict=True)))
        return (moved(1e-6) - moved(-1e-6)) / 2e-6, jax.jvp(plan, args, direction)[1]

    numeric, exact = both(*args)
    np.testing.assert_allclose(exact, numeric, atol=1e-8)


def test_an_empty_row_of_a_plan_is_empty_and_harmless():
    a = jnp.array([0.0, 0.6, 0.4])
    loss = lambda s: jnp.sum(jnp.sin(projections.transport_plan(s, a, regularization=0.5)))
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(SCORES))
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    np.testing.assert_allclose(gradient[0], 0, atol=1e-12)


def test_sections_that_do_not_exist_are_refused_or_not_a_number():
    with pytest.raises(ArgumentError, match="not attained"):
        projections.box_section(jnp.zeros(3), 0.0, 1.0, 1.0, 4.0)
    assert np.all(np.isnan(jax.jit(lambda y: projections.box_section(y, 0.0, 1.0, 1.0, 4.0))(jnp.zeros(3))))


def test_polyhedra_without_points_or_with_rows_of_another_length_are_refused(as_a_user):
    none = jnp.zeros((0, 2)), jnp.zeros(0)
    faces = jnp.asarray([[1.0, 0.0], [-1.0, 0.0]])
    with pytest.raises(ArgumentError, match="no point"):
        projections.polyhedron(jnp.zeros(2), *none, faces, jnp.asarray([-1.0, -1.0]))
    empty = jax.jit(lambda y: projections.polyhedron(y, *none, faces, jnp.asarray([-1.0, -1.0])))
    assert np.all(np.isnan(empty(jnp.zeros(2))))
    with pytest.raises(ArgumentError, match=r"`g`.*shape"):
        projections.polyhedron(jnp.zeros(2), *none, faces, jnp.zeros(3))


def test_polyhedra_with_repeated_and_without_any_constraints():
    """A square, a line given twice, and the whole space."""
    none = jnp.zeros((0, 2)), jnp.zeros(0)
    y = jnp.asarray([2.0, 0.3])
    project = jax.jit(projections.polyhedron)
    square = jnp.concatenate([jnp.eye(2), -jnp.eye(2), jnp.eye(2)]), jnp.ones(6)
    np.testing.assert_allclose(project(y, *none, *square), [1.0, 0.3], atol=1e-10)
    line = jnp.ones((2, 2)), jnp.ones(2)
    expected = projections.affine_set(y, *(part[:1] for part in line))
    np.testing.assert_allclose(project(y, *line, *none), expected, atol=1e-9)
    np.testing.assert_allclose(project(y, *line, *square), [1.0, 0.0], atol=1e-9)
    np.testing.assert_array_equal(project(y, *none, *none), y)


def test_a_section_of_an_unbounded_box_is_a_simplex():
    section = jax.jit(lambda y: projections.box_section(y, 0.0, jnp.inf, 1.0, 1.0))(jnp.asarray(Y))
    np.testing.assert_allclose(section, projections.simplex(jnp.asarray(Y)), atol=1e-12)


def test_marginals_that_disagree_and_matrices_that_are_not_square_are_refused(as_a_user):
    with pytest.raises(ArgumentError, match=r"`b`.*agree"):
        projections.transport_plan(jnp.asarray(SCORES), MARGINALS[0], 2 * MARGINALS[1])
    with pytest.raises(ArgumentError, match=r"`a`.*negative"):
        projections.transport_plan(jnp.asarray(SCORES), -MARGINALS[0], -MARGINALS[1])
    with pytest.raises(ArgumentError, match=r"`a` has shape"):
        projections.euclidean_transport_polytope(jnp.asarray(SCORES), MARGINALS[1], MARGINALS[1])
    with pytest.raises(ArgumentError, match=r"`nonzeros`"):
        projections.sparse_simplex(jnp.zeros(3), 0)
    with pytest.raises(ArgumentError, match="square"):
        projections.birkhoff(jnp.asarray(SCORES))


@pytest.mark.parametrize("name", [name for name in SETS if name not in ("affine_set", "hyperplane", "half_space")])
def test_single_precision_stays_single(name):
    project, parameter, _ = SETS[name]
    out = jax.jit(project)(jnp.asarray(Y, jnp.float32), jnp.asarray(parameter, jnp.float32))
    assert out.dtype == jnp.float32 and np.all(np.isfinite(out))
    np.testing.assert_allclose(out, jax.jit(project)(jnp.asarray(Y), jnp.asarray(parameter, float)), atol=1e-5)
