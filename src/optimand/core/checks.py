"""The conformance suite: what every method, ours or yours, has to get right. `check_method(method)` runs all of it.

Each check is a function of a `Case` that returns nothing, or raises `ConformanceError` naming the property that fails.
In a test-suite, parametrise over `CHECKS` to see each by name:

```text
@pytest.mark.parametrize("check", om.core.checks.CHECKS, ids=lambda check: check.__name__)
def test_my_method_conforms(check):
    check(om.core.checks.standard_case(MyMethod()))
```

The standard cases are small strongly convex problems with one solution each, one for every problem type of the core. A
method for another type brings its own `Case`.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, PyTree

from .adjoint import Implicit, Unrolled
from .budget import Budget
from .checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from .constrained import Constrained, PrimalDual
from .errors import ArgumentError, OptimandError, PairingError
from .fit import Fit
from .method import Method
from .problem import Composite, FixedPoint, LeastSquares, Linear, Minimize, Objective, Problem, Root
from .solution import Result
from .solve import solve

__all__ = ["CHECKS", "Case", "ConformanceError", "check_method", "standard_case"]


class ConformanceError(OptimandError, AssertionError):
    """A method breaks a property that every method must have."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A method and a family of problems it is tried on.

    - `problem`: makes the problem for a parameter array `theta`; `poisoned` makes it NaN away from the guess.
    - `steps`: enough to converge. `converges` is false for a method that only promises to come near.
    - `tolerance`: how near the optimality condition comes to zero, and gradients to their finite differences.
    """

    method: Method
    problem: Callable[[Array], Problem]
    theta: Array
    guess: PyTree
    poisoned: Callable[[Array], Problem] | None = None
    key: Array | None = None
    steps: int = 2000
    tolerance: float = 1e-3
    converges: bool = True

    def run(self, theta=None, *, steps: int | None = None, problem=None, **options: Any):
        """Solve at `theta`."""
        build = self.problem if problem is None else problem
        return solve(
            build(self.theta if theta is None else theta),
            self.method,
            self.guess,
            key=self.key,
            budget=Budget(steps=self.steps if steps is None else steps),
            **options,
        )


def standard_case(method: Method, *, kind: type[Problem] | None = None, **changes: Any) -> Case:
    """The standard problem of the type that `method` solves (its first type, or `kind`)."""
    declared = method.problem if isinstance(method.problem, tuple) else (method.problem,)
    kind = declared[0] if kind is None else kind
    kind = Minimize if kind is Objective else kind
    if kind not in _STANDARD:
        known = ", ".join(cls.__name__ for cls in _STANDARD)
        raise ArgumentError("kind", f"has no standard case: {kind.__name__}.", f"Make a Case, or use one of {known}.")
    build, poisoned, guess = _STANDARD[kind]
    stochastic = method.stochastic or kind is Fit
    case = Case(method, build, _THETA, guess, poisoned, jax.random.key(7) if stochastic else None)
    return dataclasses.replace(case, **changes)


def check_method(method: Method | Case, **changes: Any) -> None:
    """Put a method through every check, on the standard case of its problem type or on the `Case` given."""
    case = method if isinstance(method, Case) else standard_case(method, **changes)
    for check in CHECKS:
        check(case)


# The standard problems. theta moves the solution; the matrix is fixed, symmetric, with eigenvalues between 1 and 3.

_THETA = jnp.array([0.5, -0.25, 1.0])
_MATRIX = np.array([[2.0, 0.5, 0.0], [0.5, 2.0, 0.5], [0.0, 0.5, 2.0]])
_GUESS = jnp.array([0.3, 0.2, 0.1])


def _matrix(like):
    return jnp.asarray(_MATRIX, like.dtype)


def _energy(x, theta):
    return 0.5 * x @ (_matrix(x) @ x) - theta @ x + 0.05 * jnp.sum(x**4)


def _shrink(x, step_size):
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.1 * step_size, 0)


def _residuals(x, theta):
    return jnp.concatenate([_matrix(x) @ x - theta, 0.3 * jnp.sin(x)])


def _root(x, theta):
    return _matrix(x) @ x - theta + 0.2 * x**3


def _contraction(x, theta):
    return x - 0.3 * _root(x, theta)


def _absolute(x):
    return 0.1 * jnp.sum(jnp.abs(x))


def _sum_is(x, theta):
    return jnp.sum(x, keepdims=True) - 0.2


def _first_is_small(x, theta):
    return x[:1] - 0.1


def _poison(fn):
    def poisoned(x, theta):
        out = fn(x, theta)
        far = jnp.sum((x - _GUESS.astype(x.dtype)) ** 2) > 1e-6
        return jtu.tree_map(lambda leaf: jnp.where(far, jnp.nan, leaf), out)

    return poisoned


def _loss(x, example):
    row, target = example
    return 0.5 * (row @ x - target) ** 2 + 0.5 * x @ x


def _examples(theta):
    rows = jnp.asarray(np.vstack([_MATRIX, np.eye(3)]), theta.dtype)
    return rows, jnp.concatenate([theta, theta])


_POISONED = {fn: _poison(fn) for fn in (_energy, _residuals, _root, _contraction)}

# Every function in them is one object, so that solves of a standard problem share what was compiled.
_STANDARD: dict[type[Problem], tuple[Callable, Callable | None, PyTree]] = {
    Minimize: (lambda t: Minimize(_energy, t), lambda t: Minimize(_POISONED[_energy], t), _GUESS),
    LeastSquares: (lambda t: LeastSquares(_residuals, t), lambda t: LeastSquares(_POISONED[_residuals], t), _GUESS),
    Fit: (lambda t: Fit(_loss, _GUESS, _examples(t)), None, _GUESS),
    Composite: (
        lambda t: Composite(_energy, _shrink, t, penalty=_absolute),
        lambda t: Composite(_POISONED[_energy], _shrink, t),
        _GUESS,
    ),
    Constrained: (
        lambda t: Constrained(_energy, t, equalities=_sum_is, inequalities=_first_is_small, bounds=(-1.0, 1.0)),
        lambda t: Constrained(_POISONED[_energy], t, bounds=(-1.0, 1.0)),
        _GUESS,
    ),
    Root: (lambda t: Root(_root, t), lambda t: Root(_POISONED[_root], t), _GUESS),
    FixedPoint: (lambda t: FixedPoint(_contraction, t), lambda t: FixedPoint(_POISONED[_contraction], t), _GUESS),
    Linear: (
        lambda t: Linear(lx.MatrixLinearOperator(_matrix(t), lx.positive_semidefinite_tag), t),
        None,
        jnp.zeros(3),
    ),
}


# The checks.


def _same_bits(a: PyTree, b: PyTree) -> bool:
    leaves_a, leaves_b = (jtu.tree_leaves(eqx.filter(tree, eqx.is_array_like)) for tree in (a, b))
    return len(leaves_a) == len(leaves_b) and all(
        np.array_equal(_plain(x), _plain(y), equal_nan=np.issubdtype(_plain(x).dtype, np.inexact))
        for x, y in zip(leaves_a, leaves_b, strict=True)
    )


def _plain(leaf) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _point(value: PyTree) -> PyTree:
    return value.primal if isinstance(value, PrimalDual) else value


def _difference(a: PyTree, b: PyTree) -> float:
    """The largest difference, relative to the largest entry (and 1)."""
    pairs = zip(jtu.tree_leaves(a), jtu.tree_leaves(b), strict=True)
    gaps = [float(np.max(np.abs(_plain(x) - _plain(y)), initial=0)) for x, y in pairs]
    scale = max([1.0, *(float(np.max(np.abs(_plain(x)), initial=0)) for x in jtu.tree_leaves(b))])
    return max(gaps, default=0.0) / scale


def _require(holds: Any, case: Case, message: str) -> None:
    if not holds:
        raise ConformanceError(f"{type(case.method).__name__}: {message}")


def _first_state(case: Case):
    problem = case.problem(case.theta)
    guess = problem.start(case.guess)
    problem = problem.traced(guess)
    guess = eqx.filter(guess, eqx.is_inexact_array)
    key = None if case.key is None else jax.random.fold_in(case.key, 0)
    return problem, case.method.init(problem, guess, key=key), key


def check_state_is_arrays(case: Case) -> None:
    """The state holds arrays only, and a step changes neither structure nor shapes nor dtypes."""
    problem, state, key = _first_state(case)
    alien = [leaf for leaf in jtu.tree_leaves(state) if not eqx.is_array(leaf)]
    _require(not alien, case, f"the state holds leaves that are not arrays: {alien[:3]}")
    after = case.method.step(problem, state, key=key)
    describe = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jtu.tree_leaves(tree)]
    same = jtu.tree_structure(state) == jtu.tree_structure(after) and describe(state) == describe(after)
    _require(same, case, "step changes the structure, a shape or a dtype of the state")


def check_is_pure(case: Case) -> None:
    """init, step, done and answer depend on their arguments alone, and leave them as they were."""
    problem, state, key = _first_state(case)
    before = jtu.tree_map(lambda leaf: _plain(leaf).copy() if eqx.is_array(leaf) else leaf, (problem, state))
    first, second = (case.method.step(problem, state, key=key) for _ in range(2))
    _require(_same_bits(first, second), case, "two equal steps give different states")
    answers = [case.method.answer(problem, first) for _ in range(2)]
    _require(_same_bits(*answers), case, "two equal calls of answer differ")
    _require(_same_bits(before, (problem, state)), case, "step changes its arguments in place")


def check_solves(case: Case) -> None:
    """The optimality condition holds at the answer."""
    if not case.converges:
        return
    solution = case.run()
    residual = case.problem(case.theta).optimality(solution.value)
    worst = max(float(np.max(np.abs(leaf), initial=0)) for leaf in jtu.tree_leaves(residual))
    _require(worst <= case.tolerance, case, f"optimality is {worst:.3g} at the answer ({solution.result})")


def check_transformations_agree(case: Case) -> None:
    """Eager and jitted solves give the same bits; under vmap each item is what it is alone, to rounding."""
    steps = min(case.steps, 25)
    eager = case.run(steps=steps, throw=False)
    jitted = eqx.filter_jit(lambda theta: case.run(theta, steps=steps, throw=False))(case.theta)
    gap = _difference(eager.value, jitted.value)
    _require(gap <= 1e-6, case, f"eager and jitted answers differ by {gap:.3g}")
    _require(int(eager.steps) == int(jitted.steps), case, "eager and jitted solves take different numbers of steps")
    thetas = jnp.stack([case.theta, 1.5 * case.theta])
    together = eqx.filter_vmap(lambda theta: case.run(theta, steps=steps, throw=False).value)
    batch = eqx.filter_jit(together)(thetas)  # compiled whole: operation by operation takes far longer
    for i, theta in enumerate(thetas):
        alone = case.run(theta, steps=steps, throw=False).value
        gap = _difference(jtu.tree_map(lambda leaf, i=i: leaf[i], batch), alone)
        _require(gap <= 1e-3, case, f"item {i} under vmap differs from the same solve alone by {gap:.3g}")


def check_function_is_traced_once(case: Case) -> None:
    """A solve calls the user's Python once, in each driver."""
    calls = []
    problem = case.problem(case.theta)
    fields = [name for name in ("fn", "loss") if hasattr(problem, name)]
    target = problem.smooth if isinstance(problem, Composite) else problem
    if not fields and target is problem:
        return
    name = fields[0] if fields else "fn"
    original = getattr(target, name)

    def counted(*args):
        calls.append(1)
        return original(*args)

    where = (lambda p: p.smooth.fn) if isinstance(problem, Composite) else (lambda p: getattr(p, name))
    counting = eqx.tree_at(where, problem, counted)
    few = Budget(steps=3)
    solve(counting, case.method, case.guess, key=case.key, budget=few, throw=False)
    _require(len(calls) == 1, case, f"an eager solve traced the function {len(calls)} times")
    calls.clear()
    jitted = jax.jit(lambda x: solve(counting, case.method, x, key=case.key, budget=few, throw=False).value)
    if case.method.host:
        jitted(case.guess)  # its loop runs when it is called, behind a callback
    else:
        jitted.trace(case.guess)  # to compile it would call no Python
    _require(len(calls) == 1, case, f"a jitted solve traced the function {len(calls)} times")


def check_checkpoint_round_trip(case: Case) -> None:
    """What is written to a checkpoint comes back bit by bit."""
    seen = []
    case.run(steps=2, throw=False, callbacks=[seen.append])
    event = seen[-1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.ckpt"
        write_checkpoint(path, event.carry, event.history, event.fingerprint)
        carry, history = read_checkpoint(path, event.carry, event.fingerprint)
    _require(_same_bits(carry.state, event.carry.state), case, "the state changes on its way through a checkpoint")
    _require(_same_bits(history, event.history), case, "the history changes on its way through a checkpoint")


class _Killed(BaseException):
    """Stands for the end of the process."""


def check_resume_is_bit_equal(case: Case) -> None:
    """A solve that dies at a random step and is resumed ends with the bits of one that did not."""
    steps = min(case.steps, 12)
    whole = case.run(steps=steps, throw=False)
    last = max(1, int(whole.steps) - 1)
    dies_at = int(np.random.default_rng(len(type(case.method).__name__)).integers(1, last + 1))

    def die(event):
        if event.step >= dies_at:
            raise _Killed

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.ckpt"
        with contextlib.suppress(_Killed):
            case.run(steps=steps, throw=False, callbacks=[Checkpoint(path, every=1), die])
        resumed = case.run(steps=steps, throw=False, resume=path)
    _require(_same_bits(resumed.value, whole.value), case, f"resumed after step {dies_at}, the answer differs")
    _require(_same_bits(resumed.state, whole.state), case, f"resumed after step {dies_at}, the state differs")
    _require(int(resumed.steps) == int(whole.steps), case, "resumed, the number of steps differs")
    _require(_same_bits(resumed.history, whole.history), case, "resumed, the history differs")


def check_budget_is_kept(case: Case) -> None:
    """No more steps than allowed; a limit on evaluations is overshot by one step at the most."""
    for steps in (0, 1, 3):
        solution = case.run(steps=steps, throw=False)
        _require(int(solution.steps) <= steps, case, f"took {solution.steps} steps of {steps}")
    one = case.run(steps=1, throw=False).counters.evaluations
    solution = solve(
        case.problem(case.theta), case.method, case.guess, key=case.key,
        budget=Budget(steps=case.steps, evaluations=1), throw=False,
    )  # fmt: skip
    spent = solution.counters.evaluations
    _require(spent <= max(one, 1), case, f"spent {spent} evaluations of 1, and one step costs {one}")


def check_nonfinite_is_survived(case: Case) -> None:
    """A function that turns NaN away from the guess ends the solve with a finite answer, never with "converged" to NaN."""
    if case.poisoned is None:
        return
    solution = case.run(problem=case.poisoned, steps=min(case.steps, 50), throw=False)
    finite = all(bool(np.all(np.isfinite(leaf))) for leaf in jtu.tree_leaves(solution.value))
    _require(finite, case, "the answer is not finite after the objective turned NaN")
    if solution.result == Result.converged:
        residual = case.poisoned(case.theta).optimality(solution.value)
        sound = all(bool(np.all(np.isfinite(leaf))) for leaf in jtu.tree_leaves(residual))
        _require(sound, case, "says converged where the optimality condition is NaN")


def check_wrong_problem_is_refused(case: Case) -> None:
    """A problem of a type that the method does not solve is refused by name."""
    for kind, (build, _, guess) in _STANDARD.items():
        problem = build(_THETA)
        if not isinstance(problem, case.method.problem):
            try:
                solve(problem, case.method, guess, key=jax.random.key(0), budget=Budget(steps=0))
            except PairingError:
                return
            raise ConformanceError(f"{type(case.method).__name__}: took a {kind.__name__} problem")


def _outer(case: Case, theta: Array, adjoint: Any, **options: Any) -> Any:
    """A function of the solution that weighs its entries differently."""
    leaves = jtu.tree_leaves(_point(case.run(theta, adjoint=adjoint, **options).value))
    return sum(jnp.sum(jnp.sin(leaf) * (1 + jnp.arange(leaf.size).reshape(leaf.shape))) for leaf in leaves)


def _by_differences(case: Case) -> tuple[np.ndarray, float]:
    """The gradient of `_outer` by central differences, and how near to it that is expected to be."""
    h = 1e-5 if case.theta.dtype == jnp.float64 else 2e-2
    numeric = np.zeros(case.theta.shape)
    for i in np.ndindex(numeric.shape):
        up, down = (_outer(case, case.theta.at[i].add(sign * h), Implicit()) for sign in (1, -1))
        numeric[i] = (up - down) / (2 * h)
    return numeric, max(case.tolerance, 1e-2 if case.theta.dtype != jnp.float64 else 1e-5)


def check_implicit_gradient(case: Case) -> None:
    """The gradient of a function of the solution agrees with finite differences, in both modes."""
    if not case.converges:
        return
    outer = lambda theta: _outer(case, theta, Implicit(tolerance=None))
    if case.method.host:
        gradient = jax.grad(outer)(case.theta)
    else:

        @jax.jit  # whole, and one solve for both modes
        def both(theta):
            _, push = jax.linearize(outer, theta)
            (gradient,) = jax.linear_transpose(push, theta)(jnp.ones((), theta.dtype))
            return gradient, push(jnp.ones_like(theta))

        gradient, tangent = both(case.theta)
    gradient = np.asarray(gradient)
    numeric, bound = _by_differences(case)
    gap = _difference(gradient, numeric)
    _require(gap <= bound, case, f"the implicit gradient differs from finite differences by {gap:.3g}")
    if not case.method.host:
        gap = abs(float(tangent) - gradient.sum()) / max(1, abs(gradient.sum()))
        _require(gap <= bound, case, f"forward and reverse mode differ by {gap:.3g}")


def check_unrolled_gradient(case: Case) -> None:
    """Differentiating the iterations gives nearly the gradient of the solution, for methods that can be traced."""
    if case.method.host or not case.converges:
        return
    unrolled = jax.jit(jax.grad(lambda theta: _outer(case, theta, Unrolled(), throw=False)))(case.theta)
    numeric, _ = _by_differences(case)
    finite = bool(jnp.all(jnp.isfinite(unrolled)))
    gap = _difference(unrolled, numeric)
    _require(finite and gap <= 5e-2, case, f"the unrolled gradient differs from finite differences by {gap:.3g}")


CHECKS = (
    check_state_is_arrays,
    check_is_pure,
    check_solves,
    check_transformations_agree,
    check_function_is_traced_once,
    check_checkpoint_round_trip,
    check_resume_is_bit_equal,
    check_budget_is_kept,
    check_nonfinite_is_survived,
    check_wrong_problem_is_refused,
    check_implicit_gradient,
    check_unrolled_gradient,
)
