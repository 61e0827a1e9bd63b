"""The residuals of both equations, and what an equation must be."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from informed_cases import Eikonal, eikonal, vorticity
from optimand.informed import (
    DiffusionSorption1D,
    ExpertGrid,
    LinearTermsPDE,
    NavierStokes2DVorticity,
    NLLSConstraint,
    SpaceTimeGrid,
    local_problems,
    solve_experts,
)

ArgumentError = om.core.errors.ArgumentError


@eqx.filter_jit
def terms_of(pde, basis):
    return pde.terms(basis, pde.grid)


def flow(**options):
    return NavierStokes2DVorticity(8, nt=5, t_end=0.5, reynolds=100.0, **options)


@pytest.mark.parametrize("experts", [(1, 1), (2, 2)])
@pytest.mark.parametrize("solver", ["optimistix", "normal"])
def test_a_solution_in_the_span_of_the_basis_is_found(experts, solver):
    pde = eikonal()
    t, x = np.meshgrid(pde.grid.axis(0), pde.grid.axis(1), indexing="ij")
    basis = jnp.asarray(np.stack([x + t, t * x, np.sin(3 * x), t**2], -1))
    constraint = NLLSConstraint(solver=solver, ridge=0.0, rtol=1e-12, atol=1e-12, max_steps=100)

    @jax.jit
    def solve(basis):
        problems = local_problems(pde, ExpertGrid(experts), basis, jnp.asarray(1.0))
        return solve_experts(problems, constraint, jnp.full(4, 0.8))

    weights, info = solve(basis)
    assert weights.shape == (ExpertGrid(experts).count, 4)
    np.testing.assert_allclose(weights, jnp.eye(4)[:1].repeat(len(weights), 0), atol=1e-8)
    assert float(info.residual.max()) < 1e-8


def test_terms_are_formed_before_the_grid_is_divided():
    """Inside a box they are those of the box alone; at its border they are not, and must not be."""
    pde = DiffusionSorption1D(nx=16, nt=6)
    router = ExpertGrid((1, 2))
    basis = jnp.asarray(np.random.default_rng(0).standard_normal((6, 16, 3)))
    terms = terms_of(pde, basis)
    first_box = DiffusionSorption1D(t=pde.grid.axes[0], x=pde.grid.axes[1][:8])
    alone = terms_of(first_box, basis[:, :8])
    for name in terms:
        divided = router.split(terms[name], 2)[0].reshape(6, 8, 3)
        np.testing.assert_allclose(divided[:, :6], alone[name][:, :6], rtol=1e-9, atol=1e-9)
    divided = router.split(terms["u_xx"], 2)[0].reshape(6, 8, 3)
    assert float(jnp.min(jnp.abs(divided[:, -1] - alone["u_xx"][:, -1]))) > 1e-6


def test_every_problem_of_an_expert_holds_its_part_of_the_terms():
    pde = DiffusionSorption1D(nx=8, nt=4)
    basis = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 2)))
    problems = eqx.filter_jit(local_problems)(
        pde, ExpertGrid((2, 2)), basis, jnp.asarray(0.1), points=5, key=jax.random.key(1)
    )
    terms, coordinates = terms_of(pde, basis), pde.grid.coordinates()
    for k in range(4):
        points = np.asarray(problems.points[k])
        assert len({tuple(point) for point in points}) == 5, "points are drawn without duplicates"
        for number, point in enumerate(points):
            i, j = np.argwhere(np.all(np.isclose(coordinates, point), axis=-1))[0]
            assert (i // 2, j // 4) == divmod(k, 2)
            for term, name in enumerate(problems.names):
                np.testing.assert_array_equal(problems.terms[k, term, number], terms[name][i, j])


def test_the_diffusion_sorption_residual_vanishes_on_a_state_of_rest_and_retards_as_published():
    pde = DiffusionSorption1D(nx=9, nt=5)
    np.testing.assert_allclose(pde.residual(jnp.full((5, 9), 0.3), jnp.asarray(0.3)), 0, atol=1e-15)
    strength = 0.71 / 0.29 * 2880 * 3.5e-4 * 0.874
    np.testing.assert_allclose(pde.retardation(jnp.asarray(0.5)), 1 + strength * (0.5 + 1e-6) ** -0.126, rtol=1e-12)
    slope = jax.vmap(jax.grad(pde.retardation))(jnp.array([-1.0, 0.0, 1e-3, 1.0]))
    assert bool(jnp.all(jnp.isfinite(slope))) and float(slope[0]) == 0
    np.testing.assert_allclose(pde.retardation(jnp.asarray(-0.2)), pde.retardation(jnp.asarray(0.0)))


def test_boundary_rows_start_at_the_first_later_time_and_the_right_end_is_an_outflow():
    pde = DiffusionSorption1D(nx=6, nt=4, diffusion=0.1)
    x = pde.grid.axis(1)
    falling = jnp.asarray(np.exp(-x / 0.1))[None].repeat(4, 0)[..., None]
    matrix, target, weight = pde.rows(falling, jnp.asarray(0.2))
    assert matrix.shape == (6 + 3 + 3, 1)
    np.testing.assert_allclose(weight[:6], 5.0)
    np.testing.assert_allclose(target, [0.2] * 6 + [1.0] * 3 + [0.0] * 3)
    expected = falling[0, -1, 0] + 0.1 * (falling[0, -1, 0] - falling[0, -2, 0]) / 0.2
    np.testing.assert_allclose(matrix[-3:, 0], expected)
    assert set(pde.penalties(falling[..., 0], jnp.asarray(0.2))) == {"initial", "left", "right"}


def test_the_compact_stencil_and_skipped_times_leave_out_rows():
    assert DiffusionSorption1D(nx=8, nt=6).mask().all()
    compact = DiffusionSorption1D(nx=8, nt=6, stencil="compact").mask()
    assert compact.sum() == 5 * 6 and not compact[0].any() and not compact[:, 0].any()
    skipped = DiffusionSorption1D(nx=8, nt=6, skip_initial=2)
    assert skipped.mask().sum() == 4 * 8
    rows = skipped.residual(jnp.asarray(np.random.default_rng(0).uniform(size=(6, 8))), jnp.asarray(0.1))
    assert bool(jnp.all(rows[:2] == 0)) and bool(jnp.any(rows[2:] != 0))


@pytest.mark.parametrize("derivatives", ["spectral", "central"])
def test_taylor_green_vortices_have_the_residual_of_their_time_differences_only(derivatives):
    pde = NavierStokes2DVorticity(32, nt=41, t_end=0.5, reynolds=50.0, derivatives=derivatives)
    x = 2 * np.pi * pde.grid.axis(1)
    rate = 2 * (2 * np.pi) ** 2 / 50
    start = np.sin(x)[:, None] * np.sin(x)[None, :]
    field = jnp.asarray(np.exp(-rate * pde.grid.axis(0))[:, None, None] * start)
    rows = jax.jit(pde.residual)(field, field[0])[..., 0]
    scale = rate if derivatives == "spectral" else 2 * rate
    bound = 0.02 if derivatives == "spectral" else 0.05
    assert float(jnp.max(jnp.abs(rows[1:-1]))) < bound * scale


def test_taylor_green_decay_is_reproduced_when_the_basis_contains_it():
    pde = NavierStokes2DVorticity(8, nt=41, t_end=0.5, reynolds=50.0)
    x = 2 * np.pi * pde.grid.axis(1)
    decay = np.exp(-2 * (2 * np.pi) ** 2 / 50 * pde.grid.axis(0))
    start = np.sin(x)[:, None] * np.sin(x)[None, :]
    other = np.cos(2 * x)[:, None] * np.sin(x)[None, :]
    t = pde.grid.axis(0)
    basis = np.stack([(decay - 1)[:, None, None] * start, t[:, None, None] * other, t[:, None, None] * start], -1)
    problems = local_problems(pde, ExpertGrid((1, 1, 1)), jnp.asarray(basis), jnp.asarray(start))
    weights, _ = jax.jit(lambda s: solve_experts(problems, NLLSConstraint(solver="normal", ridge=0.0), s))(jnp.zeros(3))
    field = pde.assemble(jnp.asarray(basis) @ weights[0], jnp.asarray(start))
    np.testing.assert_allclose(field, decay[:, None, None] * start, atol=1e-3)


def test_the_initial_vorticity_is_exact_the_mean_is_zero_and_the_velocity_free_of_divergence():
    pde = flow()
    initial = vorticity(8)[0]
    basis = pde.prepare(jnp.asarray(np.random.default_rng(0).standard_normal((5, 8, 8, 3))), initial)
    field = pde.assemble(basis @ jnp.array([1.0, -2.0, 30.0]), initial)
    np.testing.assert_array_equal(field[0], initial)
    np.testing.assert_allclose(jnp.mean(field, axis=(1, 2)), 0, atol=1e-12)
    terms = terms_of(pde, field[..., None])
    wave = 2j * np.pi * np.fft.fftfreq(8, 1 / 8)
    wave[4] = 0
    transform = lambda values: np.fft.fft2(np.asarray(values)[..., 0], axes=(1, 2))
    divergence = wave[:, None] * transform(terms["velocity_x"]) + wave[None, :] * transform(terms["velocity_y"])
    assert np.max(np.abs(divergence)) < 1e-10
    smooth = pde.assemble(jnp.zeros((5, 8, 8)), initial)
    terms = terms_of(pde, smooth[..., None])
    curl = wave[:, None] * transform(terms["velocity_y"]) - wave[None, :] * transform(terms["velocity_x"])
    np.testing.assert_allclose(np.fft.ifft2(curl, axes=(1, 2)).real, smooth, atol=1e-10)


def test_squared_rows_have_the_same_zeros_and_another_size():
    initial = vorticity(8)[0]
    names = ("velocity_x", "velocity_y", "w_x", "w_y", "laplacian", "w_t")
    q = dict(zip(names, jnp.array([0.5, 0.1, 2.0, -1.0, 3.0, 0.2]), strict=True))
    plain, squared = (flow(residual_power=power).pointwise(q, jnp.zeros(3), None) for power in (1, 2))
    np.testing.assert_allclose(squared, plain**2)
    field = jnp.broadcast_to(initial, (5, 8, 8))
    losses = [float(flow(residual_power=power).loss(field, initial)) for power in (1, 2)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)


def test_a_term_that_is_not_linear_is_named():
    class Wrong(Eikonal):
        def terms(self, b, grid):
            return {"fine": b, "square": b**2}

    with pytest.raises(ArgumentError, match=r"'square' is not linear"):
        Wrong(eikonal().grid)


def test_an_equation_needs_terms_and_a_pointwise_residual():
    with pytest.raises(TypeError, match="pointwise"):

        class Half(LinearTermsPDE):
            grid: SpaceTimeGrid

            def terms(self, b, grid):
                return {"u": b}

        Half(eikonal().grid)


def test_non_uniform_grids_are_taken_by_finite_differences_and_refused_by_spectral_terms():
    """A parabola in time and space has its derivatives whatever the spacing: the actual one is used."""
    t, x = np.linspace(0, 1, 5) ** 2, np.linspace(0, 1, 8) ** 1.5
    pde, compact = (DiffusionSorption1D(t=t, x=x, stencil=stencil) for stencil in ("paper", "compact"))
    parabola = jnp.asarray(np.add.outer(t**2, x**2))[..., None]
    terms = terms_of(pde, parabola)
    np.testing.assert_allclose(terms["u_t"][1:-1, :, 0], np.broadcast_to(2 * t[1:-1, None], (3, 8)), atol=1e-12)
    np.testing.assert_allclose(terms["u_xx"][:, 2:-2, 0], 2, atol=1e-11)
    np.testing.assert_allclose(terms_of(compact, parabola)["u_xx"][:, 1:-1, 0], 2, atol=1e-11)
    NavierStokes2DVorticity(8, t=np.linspace(0, 1, 5) ** 2)
    with pytest.raises(ArgumentError, match=r"`x` must be the 8 uniform points.*Fourier"):
        NavierStokes2DVorticity(8, nt=5, x=x)


@pytest.mark.parametrize(
    "build, match",
    [
        (lambda: DiffusionSorption1D(nx=8, nt=5, stencil="wide"), "stencil"),
        (lambda: DiffusionSorption1D(nx=8, nt=5, skip_initial=4), "skip_initial"),
        (lambda: DiffusionSorption1D(nx=8, nt=5, diffusion=-1.0), "diffusion"),
        (lambda: DiffusionSorption1D(nx=8, nt=5, porosity=1.0), "porosity"),
        (lambda: DiffusionSorption1D(nx=2, nt=5), "three points"),
        (lambda: DiffusionSorption1D(t=[0.0, 2.0, 1.0], nx=8), "increase"),
        (lambda: flow(derivatives="upwind"), "derivatives"),
        (lambda: flow(residual_power=3), "residual_power"),
        (lambda: NavierStokes2DVorticity(8, nt=5, reynolds=0.0), "reynolds"),
        (lambda: NavierStokes2DVorticity(8, t=[1.0, 2.0, 3.0]), "start at 0"),
        (lambda: DiffusionSorption1D(nx=8, nt=5).check(np.zeros(())), 'ic_scale="absolute"'),
        (lambda: DiffusionSorption1D(nx=8, nt=5).check(np.ones(7)), r"shape \(7,\)"),
        (lambda: flow().check(np.full((8, 8), np.nan)), r"not finite at index \(0, 0\)"),
        (lambda: flow().check(np.ones((8, 8))), "mean vorticity"),
        (lambda: flow().check(np.zeros((8, 4))), "shape"),
    ],
)
def test_bad_equations_and_data_are_refused(build, match, as_a_user):
    with pytest.raises(ArgumentError, match=match):
        build()


def test_zero_initial_concentration_is_taken_with_absolute_rows():
    pde = DiffusionSorption1D(nx=8, nt=5, ic_scale="absolute")
    pde.check(np.zeros(()))
    matrix, _, weight = pde.rows(jnp.ones((5, 8, 2)), jnp.zeros(()))
    assert bool(jnp.all(jnp.isfinite(weight))) and matrix.shape == (16, 2)
