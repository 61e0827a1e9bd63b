"""The migration page maps every public name of jaxopt, to names that exist."""

import importlib
import re
from pathlib import Path

import pytest

import optimand as om

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text()
ROW = re.compile(r"^\| `([\w.]+)` \| (.*?) \| .*\|$", re.MULTILINE)
TABLE = dict(ROW.findall(PAGE.partition("### Every public name of jaxopt")[2].partition("Arguments of `run`")[0]))

# What jaxopt 0.8.5, its last release, exports, module by module.
JAXOPT = {
    "": "AndersonAcceleration AndersonWrapper ArmijoSGD BFGS BacktrackingLineSearch Bisection BlockCoordinateDescent BoxCDQP BoxOSQP "
    "Broyden CvxpyQP EqualityConstrainedQP FixedPointIteration GaussNewton GradientDescent HagerZhangLineSearch IterativeRefinement "
    "LBFGS LBFGSB LevenbergMarquardt MirrorDescent NonlinearCG OSQP OptStep OptaxSolver PolyakSGD ProjectedGradient ProximalGradient "
    "ScipyBoundedLeastSquares ScipyBoundedMinimize ScipyLeastSquares ScipyMinimize ScipyRootFinding ZoomLineSearch",
    "base": "AutoOrBoolean IterativeSolver KKTSolution LinearOperator OptStep StochasticSolver",
    "cond": "cond",
    "implicit_diff": "custom_fixed_point custom_root root_jvp root_vjp",
    "isotonic": "isotonic_l2_pav",
    "linear_solve": "solve_bicgstab solve_cg solve_cholesky solve_gmres solve_inv solve_iterative_refinement solve_lu solve_normal_cg "
    "solve_qr",
    "loop": "while_loop",
    "loss": "binary_hinge_loss binary_logistic_loss binary_perceptron_loss binary_sparsemax_loss huber_loss make_fenchel_young_loss "
    "multiclass_hinge_loss multiclass_logistic_loss multiclass_perceptron_loss multiclass_sparsemax_loss sparse_plus sparse_sigmoid",
    "objective": "CompositeLinearFunction binary_logreg l2_multiclass_logreg l2_multiclass_logreg_with_intercept least_squares "
    "multiclass_linear_svm_dual multiclass_logreg multiclass_logreg_with_intercept ridge_regression",
    "perturbations": "Gumbel Normal make_perturbed_argmax make_perturbed_fun make_perturbed_max",
    "projection": "kl_projection_birkhoff kl_projection_transport projection_affine_set projection_birkhoff projection_box "
    "projection_box_section projection_halfspace projection_hypercube projection_hyperplane projection_l1_ball projection_l1_sphere "
    "projection_l2_ball projection_l2_sphere projection_linf_ball projection_non_negative projection_polyhedron projection_simplex "
    "projection_sparse_simplex projection_transport",
    "prox": "make_prox_from_projection prox_elastic_net prox_group_lasso prox_lasso prox_non_negative_lasso prox_non_negative_ridge "
    "prox_none prox_ridge",
    "tree_util": "broadcast_pytrees tree_add tree_add_scalar_mul tree_conj tree_div tree_dot tree_imag tree_inf_norm tree_l2_norm "
    "tree_map tree_mul tree_negative tree_ones_like tree_real tree_reduce tree_scalar_mul tree_sub tree_sum tree_vdot tree_vdot_real "
    "tree_where tree_zeros_like",
}
NAMES = [f"{module}.{name}".lstrip(".") for module, names in JAXOPT.items() for name in names.split()]


def test_every_public_name_of_jaxopt_is_in_the_table_and_no_other():
    assert sorted(TABLE) == sorted(NAMES)


def test_the_list_is_that_of_the_installed_jaxopt():
    jaxopt = pytest.importorskip("jaxopt", reason="jaxopt, a peer, is not installed: pip install 'optimand[peers]'")
    folder = Path(jaxopt.__file__).parent
    found = []
    for path in sorted(folder.glob("*.py")):
        module = "" if path.stem == "__init__" else f"{path.stem}."
        for name in re.findall(r"^\s*from jaxopt\._src\S* import (.*)$", path.read_text(), re.MULTILINE):
            found += [module + part.strip() for part in name.split(",")]
    assert sorted({name for name in found if not name.startswith("version")}) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_maps_to_one_that_exists_or_says_why_not(name):
    answer = TABLE[name]
    if answer.startswith("not here"):
        assert "because" in answer
        return
    target = re.match(r"(?:a )?`([\w.]+)", answer)
    assert target, f"{answer!r} names nothing"
    assert _exists(target[1]), f"{target[1]} does not exist"
    if "; face" in answer:
        face = om.compat.jaxopt.implicit_diff if name.startswith("implicit_diff.") else om.compat.jaxopt
        assert hasattr(face, name.rpartition(".")[2])


def _exists(dotted: str) -> bool:
    """A name of om.smooth, of om, or of another package."""
    first, *rest = dotted.split(".")
    if first in ("equinox", "jax", "lineax", "optax", "optimistix"):
        return _walk(importlib.import_module(first), rest)
    if first == "om":
        return _walk(om, rest)
    if hasattr(om.smooth, first):
        return _walk(om.smooth, dotted.split("."))
    return hasattr(om, first)


def _walk(found, parts) -> bool:
    for part in parts:
        if not hasattr(found, part) and hasattr(found, "__path__"):
            importlib.import_module(f"{found.__name__}.{part}")
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True
