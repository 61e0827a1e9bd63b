"""`solve`: the one way in, with two drivers over one loop.

The loop is `advance`: take steps while the method runs, the budget lasts and the step number is below `until`. Inside a
transformation (`jit`, `vmap`, `grad`, ...) it runs once, to the end. Called eagerly it runs, compiled, in chunks of
about a tenth of a second, and the callbacks see what happens between them: progress, history, checkpoints, the clock and
Ctrl-C. The body is the same, so the iterates are.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .adjoint import Adjoint, Implicit, differentiable, is_symmetric
from .budget import Budget, Counters
from .eager import EagerDriver
from .errors import ArgumentError, Interrupted, PairingError, SolveError
from .host import call_on_host
from .loop import Run, advance, begin, finish_code, read_metrics, step_key
from .method import Method
from .problem import Problem
from .solution import Result, Solution
from .tiles import in_tiles
from .tracing import inside_transformation, is_tracer

__all__ = ["solve"]


def solve(
    problem: Problem,
    method: Method,
    guess: PyTree = None,
    *,
    key: Array | None = None,
    budget: Budget | None = None,
    adjoint: Adjoint | None = None,
    callbacks: Iterable[Callable] = (),
    resume: Any = None,
    record: int = 128,
    throw: bool | None = None,
) -> Solution:
    """Find a value that satisfies the optimality conditions of `problem`, by `method`.

    **Arguments:**

    - `problem`, `method`: what and how.
    - `guess`: where to start; its floating-point arrays are the unknowns, its other leaves stay as they are. Some
      problems can make one up (`Fit` starts from its model, `Linear` from zero).
    - `key`: a `jax.random.key`, for what is random. The step with number `n` gets `fold_in(key, n)`.
    - `budget`: the most to spend; 1000 steps by default.
    - `adjoint`: how the solution is differentiated; by the implicit function theorem by default.
    - `callbacks`: called between chunks of an eager solve with an `Event`; one that returns True ends the solve as
      `Result.stopped`. See `Progress`, `History`, `Checkpoint`.
    - `resume`: the path of a checkpoint written by `Checkpoint`, to go on from. The bits are those of a run that was
      never interrupted.
    - `record`: how many of the last steps are kept in the history of a solve inside a transformation.
    - `throw`: raise `SolveError`, with the best finite value so far, if the solve ends without an answer. By default a
      solve raises unless `jit` or `vmap` hide how it ended; then its `result` says, and its derivatives are NaN. Ctrl-C
      always raises, as `Interrupted`, so that what called `solve` ends too.

    **Returns:** a `Solution`. Running out of budget is not an error: look at `solution.result`.

    **Raises:** `GuessError`, `ObjectiveError`, `PairingError`, `ArgumentError`, `CheckpointError` before anything is
    compiled; `SolveError` and `Interrupted` after.

    ```python
    problem = om.Minimize(lambda x, target: jnp.sum((x - target) ** 2), jnp.arange(3.0))
    om.solve(problem, om.smooth.LBFGS(), jnp.zeros(3)).value
    ```
    """
    budget = Budget() if budget is None else budget
    adjoint = Implicit() if adjoint is None else adjoint
    callbacks = tuple(callbacks)
    _check_arguments(problem, method, key, budget, adjoint, callbacks, record)
    guess = problem.start(guess)
    problem.check(guess)
    method.check(problem, guess)
    unknown, rest = eqx.partition(guess, eqx.is_inexact_array)
    problem = problem.traced(guess)
    unknown = jtu.tree_map(jnp.asarray, unknown)
    if inside_transformation(problem, unknown, method, key):
        if callbacks or resume is not None or budget.seconds is not None:
            name = "callbacks" if callbacks else "resume" if resume is not None else "seconds"
            raise ArgumentError(name, "needs an eager solve: inside jit, vmap or grad there is no clock and no file.")
        solution = _solve_traced(problem, method, unknown, key, budget, adjoint, record)
        if throw:
            solution = eqx.error_if(solution, ~solution.result.usable, "the solve ended without an answer")
    else:
        solution = EagerDriver(problem, method, unknown, key, budget, callbacks, rest).run(resume)
    solution = eqx.tree_at(lambda s: s.value, solution, eqx.combine(solution.value, rest), is_leaf=lambda x: x is None)
    if is_tracer(solution.result.code):
        return solution
    if bool(np.any(solution.result == Result.interrupted)):
        raise Interrupted(_describe_failure(solution, method), solution)
    if throw is False or bool(np.all(solution.result.usable)):
        return solution
    raise SolveError(_describe_failure(solution, method), solution)


def _check_arguments(problem, method, key, budget, adjoint, callbacks, record) -> None:
    if not isinstance(problem, Problem):
        raise ArgumentError(
            "problem", f"must be an optimand Problem, not {type(problem).__name__}.", "Try Minimize(fn)."
        )
    if not isinstance(method, Method):
        hint = "Wrap it: smooth.Optax, smooth.Optimistix and smooth.Scipy take foreign solvers."
        raise ArgumentError("method", f"must be an optimand Method, not {type(method).__name__}.", hint)
    if not isinstance(problem, method.problem):
        raise PairingError("method", _mispaired(problem, method))
    if not isinstance(budget, Budget):
        raise ArgumentError("budget", f"must be a Budget, not {type(budget).__name__}.", "Budget(steps=1000)")
    if not isinstance(adjoint, Adjoint):
        raise ArgumentError(
            "adjoint", f"must be an Adjoint, not {type(adjoint).__name__}.", "Implicit(), Unrolled(), ..."
        )
    if isinstance(record, bool) or not isinstance(record, int) or record < 0:
        raise ArgumentError("record", f"must be a whole number of steps, not {record!r}.")
    for callback in callbacks:
        if not callable(callback):
            raise ArgumentError("callbacks", f"holds {callback!r}, which cannot be called.")
    if key is None and (method.stochastic or getattr(problem, "stochastic", False)):
        who = type(method if method.stochastic else problem).__name__
        raise ArgumentError("key", f"is needed: {who} draws random numbers.", "Pass key=jax.random.key(0).")
    if key is not None:
        is_key = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if not is_key or key.shape != ():
            raise ArgumentError("key", f"must be one new-style key, not {key!r}.", "jax.random.key(0) makes one.")
    if method.requires_x64 and jnp.zeros(()).dtype != jnp.float64:
        hint = "Run it inside `with jax.enable_x64(True):`, or set JAX_ENABLE_X64=1."
        raise ArgumentError(
            "method", f"{type(method).__name__} needs double precision, which JAX has switched off.", hint
        )


def _mispaired(problem, method) -> str:
    def subclasses(cls):
        for sub in cls.__subclasses__():
            yield sub
            yield from subclasses(sub)

    fitting = sorted({cls.__name__ for cls in subclasses(Method) if isinstance(problem, cls.problem)})
    wanted = method.problem if isinstance(method.problem, tuple) else (method.problem,)
    message = (
        f"{type(method).__name__} solves {' or '.join(cls.__name__ for cls in wanted)} problems, "
        f"not {type(problem).__name__}."
    )
    return message + (f" These do: {', '.join(fitting)}." if fitting else "")


def _describe_failure(solution: Solution, method: Method) -> str:
    name, steps = type(method).__name__, int(np.max(solution.steps))
    where = solution.stats.get("nonfinite", "")
    text = {
        "nonfinite": f"{name}: {where or 'a value'} was not finite",
        "infeasible": f"{name}: no feasible point was found",
        "diverged": f"{name}: the iterates diverged",
        "interrupted": f"{name}: interrupted",
    }.get(str(solution.result), f"{name}: {solution.result}")
    return f"{text} after {steps} steps; the best finite value so far is in `error.solution.value`."


# Inside a transformation.


def _solve_traced(problem, method, guess, key, budget, adjoint, record) -> Solution:
    match adjoint.kind():
        case "implicit":
            find = eqx.Partial(_find_on_host if method.host else _find_in_tiles, method, guess, key, budget, record)
            own = adjoint.condition is None
            condition = _condition if own else _Condition(adjoint.condition)
            symmetric = problem.symmetric if own else is_symmetric(adjoint.condition)
            value, rest = differentiable(find, condition, problem, adjoint, symmetric)
        case "unrolled":
            if method.host:
                raise ArgumentError(
                    "adjoint", f"Unrolled cannot see inside {type(method).__name__}.", "Use Implicit()."
                )
            kind = "lax" if adjoint.forward else "checkpointed"
            loop = functools.partial(eqxi.while_loop, kind=kind, max_steps=max(1, budget.steps))
            if not adjoint.forward:
                loop = functools.partial(loop, checkpoints=adjoint.checkpoints)
            value, rest = _find(method, guess, key, budget, record, problem, while_loop=loop)
        case _:
            constant = jtu.tree_map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, problem)
            find = _find_on_host if method.host else _find  # not in tiles, which a tangent of the guess cannot cross
            value, rest = jax.lax.stop_gradient(find(method, guess, key, budget, record, constant))
            if adjoint.kind() == "one step":
                last = method.step(problem, rest["state"], key=step_key(key, rest["steps"]))
                value = method.answer(problem, last)
    names = rest["names"].value if rest["names"] is not None else ()
    history = {name: rest["history"][:, i] for i, name in enumerate(names)}
    return Solution(
        value=value,
        result=Result(rest["code"]),
        steps=rest["steps"],
        counters=rest["counters"],
        history={"step": rest["rows"], **history},
        aux=problem.aux(value),
        state=rest["state"],
        stats={},
    )


def _condition(value, problem):
    return problem.optimality(value)


class _Condition(eqx.Module):
    fn: Callable

    def __call__(self, value, problem):
        return self.fn(value, problem)


def _find(method, guess, key, budget, record, problem, while_loop=None):
    run = Run(problem, method, key, budget)
    carry, _ = begin(run, guess, record)
    carry = advance(run, carry, jnp.int32(budget.steps), while_loop)
    order = jnp.argsort(carry.rows)  # rows of the ring by step; those never reached (step -1) come first
    code = finish_code(carry)
    rest = {
        "failed": ~Result(code).usable,
        "code": code,
        "steps": carry.step,
        "counters": method.counters(carry.state),
        "history": carry.history[order],
        "rows": carry.rows[order],
        "state": carry.state,
        "names": eqxi.Static(tuple(read_metrics(run, carry.state))),
    }
    return method.answer(problem, carry.state), rest


def _find_in_tiles(method, guess, key, budget, record, problem):
    return in_tiles(_find, method, guess, key, budget, record, problem)


def _find_on_host(method, guess, key, budget, record, problem):
    """The loop in Python, behind a callback: for methods whose steps cannot be traced."""
    arrays, static = eqx.partition((method, guess, key, problem), eqx.is_array)
    leaves, treedef = jtu.tree_flatten(arrays)
    generators = [jax.random.key_impl(leaf) if _is_key(leaf) else None for leaf in leaves]  # keys cross as their data
    arrays = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]
    counters = jtu.tree_map(lambda _: jax.ShapeDtypeStruct((), np.int32), Counters.zero())
    shapes = (
        jax.eval_shape(lambda: guess),
        {"failed": jax.ShapeDtypeStruct((), bool), "code": jax.ShapeDtypeStruct((), np.int32),
         "steps": jax.ShapeDtypeStruct((), np.int32), "counters": counters},
    )  # fmt: skip

    config: Any = jax.config
    x64 = bool(config.jax_enable_x64)

    def run(arrays):
        with jax.enable_x64(x64):
            leaves = [
                jnp.asarray(leaf) if generator is None else jax.random.wrap_key_data(jnp.asarray(leaf), impl=generator)
                for leaf, generator in zip(arrays, generators, strict=True)
            ]
            method, guess, key, problem = eqx.combine(jtu.tree_unflatten(treedef, leaves), static)
            solution = EagerDriver(problem, method, guess, key, budget).run(need_sound_guess=False)
        if solution.result == Result.interrupted:  # must not pass for a failed solve, whose gradient is NaN
            raise KeyboardInterrupt
        rest = {"failed": ~np.asarray(solution.result.usable), "code": solution.result.code,
                "steps": solution.steps, "counters": solution.counters}  # fmt: skip
        return solution.value, rest

    value, rest = call_on_host(run, shapes, arrays)
    empty = {"history": jnp.zeros((0, 0)), "rows": jnp.zeros((0,), jnp.int32), "state": None, "names": None}
    return value, {**rest, **empty}


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
