"""The loop that both drivers of `solve` run: `advance`, over a `Carry`."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .budget import Budget
from .errors import ArgumentError
from .solution import Result, status_code

__all__: list[str] = []


class Carry(eqx.Module):
    """Everything the next step needs, and everything a checkpoint holds. `history` is a ring of rows, one a step."""

    state: PyTree
    step: Any
    code: Any
    bad_leaf: Any
    history: Any
    rows: Any


class Run(NamedTuple):
    """What stays the same during a solve."""

    problem: Any
    method: Any
    key: Any
    budget: Budget


def read_metrics(run: Run, state) -> dict[str, Any]:
    metrics = run.method.metrics(run.problem, state)
    return {name: metrics[name] for name in sorted(metrics)}


_FEW = 1000  # numbers that are looked at after every step


def _status(run: Run, state, careful: Any = True):
    """The code of a state's status, and the number of the first leaf that is not finite (-1: none).

    Of leaves with more than a few numbers only if `careful`, and else by what they do to the value.
    """
    answer = run.method.answer(run.problem, state)
    watched = jtu.tree_leaves(eqx.filter(answer, eqx.is_inexact_array))
    value = read_metrics(run, state).get("value")
    watched += [] if value is None else [jnp.isnan(value)]

    def is_finite(leaf):
        if leaf.dtype == bool:
            return ~leaf
        if careful is True or leaf.size <= _FEW:
            return all_finite(leaf)
        return jax.lax.cond(careful, all_finite, lambda _: jnp.array(True), leaf)

    finite = [is_finite(leaf) for leaf in watched]
    code = status_code(run.method.done(run.problem, state))
    if not finite:
        return code, jnp.int32(-1)
    ok = functools.reduce(jnp.logical_and, finite)
    bad = jnp.where(ok, -1, jnp.argmin(jnp.stack(finite))).astype(jnp.int32)
    return jnp.where(ok, code, Result.nonfinite.code).astype(jnp.int32), bad


def all_finite(leaf):
    """Whether all entries are: a finite inner product with a vector of tiny numbers, which is one call and cannot overflow."""
    if leaf.dtype not in (jnp.float32, jnp.float64) or leaf.size > 1e6:
        return jnp.all(jnp.isfinite(leaf))
    tiny = jnp.full(leaf.shape, jnp.finfo(leaf.dtype).tiny * 4)
    return jnp.isfinite(jnp.vdot(leaf, tiny, precision=jax.lax.Precision.HIGHEST))


def begin(run: Run, guess: PyTree, record: int):
    """The carry before the first step, and whether the problem is finite at the guess."""
    state = run.method.init(run.problem, guess, key=step_key(run.key, -1))
    code, bad_leaf = _status(run, state)
    at_guess = [jnp.all(jnp.isfinite(leaf)) for leaf in jtu.tree_leaves(run.problem.at_guess(guess))]
    sound = functools.reduce(jnp.logical_and, at_guess, jnp.array(True))
    code = jnp.where(sound, code, Result.nonfinite.code).astype(jnp.int32)
    names = read_metrics(run, state)
    dtype = jnp.result_type(jnp.float32, *(jnp.asarray(m).dtype for m in names.values()))
    history = jnp.full((record, len(names)), jnp.nan, dtype)
    rows = jnp.full((record,), -1, jnp.int32)
    return Carry(state, jnp.int32(0), code, bad_leaf, history, rows), sound


def step_key(key, step):
    return None if key is None else jax.random.fold_in(key, jnp.int32(step) + 1)


def advance(run: Run, carry: Carry, until, while_loop=None) -> Carry:
    """Take steps up to number `until`, or until there is a reason to end.

    A step that is not finite leaves the state before it. To choose between the two after every step would copy the whole
    state every time, and to look at every number would cost a cheap step a fifth of its time; so the loop runs on, and a
    solve that fails is done again: with a look at every number, and then up to the step before the one that failed.
    `while_loop` replaces that of JAX, in a solve that is to be differentiated: there every step looks and chooses.
    """
    arrays, static = eqx.partition(carry, eqx.is_array)

    def going(until, arrays):
        carry = eqx.combine(arrays, static)
        spent = run.budget.spent(run.method.counters(carry.state))
        return (carry.code == Result.running.code) & (carry.step < until) & jnp.logical_not(spent)

    def body(arrays, choose, careful):
        return eqx.filter(take_step(run, eqx.combine(arrays, static), choose, careful), eqx.is_array)

    if while_loop is not None:
        loop = while_loop(functools.partial(going, until), functools.partial(body, choose=True, careful=True), arrays)
        return eqx.combine(loop, static)

    answer = eqx.filter(run.method.answer(run.problem, carry.state), eqx.is_inexact_array)
    hasty = any(leaf.size > _FEW for leaf in jtu.tree_leaves(answer))
    last = 2 if hasty else 1  # number of the attempt that only goes up to the step before

    def attempt(carry):
        number, until, code, bad_leaf, _ = carry
        careful = number > 0 if hasty else True
        step = functools.partial(body, choose=False, careful=careful)
        end = jax.lax.while_loop(functools.partial(going, until), step, arrays)
        found = end.code
        if hasty:  # what nobody looked at on the way
            all_code, _ = _status(run, eqx.combine(end, static).state)
            found = jnp.where(all_code == Result.nonfinite.code, all_code, found)
        code, bad_leaf = (jnp.where(number < last, new, old) for new, old in ((found, code), (end.bad_leaf, bad_leaf)))
        return number + 1, jnp.where(number == last - 1, end.step, until), code, bad_leaf, end

    unfinished = lambda carry: (carry[0] == 0) | ((carry[0] <= last) & (carry[2] == Result.nonfinite.code))
    begin = (jnp.int32(0), jnp.asarray(until, jnp.int32), arrays.code, arrays.bad_leaf, arrays)
    _, _, code, bad_leaf, end = jax.lax.while_loop(unfinished, attempt, begin)
    end = eqx.tree_at(lambda carry: (carry.code, carry.bad_leaf), end, (code, bad_leaf))
    return eqx.combine(end, static)


def take_step(run: Run, carry: Carry, choose: bool = True, careful: Any = True) -> Carry:
    """One step. If it is not finite its number and, with `choose`, its state are those before."""
    new = run.method.step(run.problem, carry.state, key=step_key(run.key, carry.step))
    _same_state(run.method, carry.state, new)
    code, bad_leaf = _status(run, new, careful)
    failed = code == Result.nonfinite.code
    state = new
    if choose:
        keep = lambda new, old: jnp.where(failed, old, new) if eqx.is_array(new) else new
        state = jtu.tree_map(keep, new, carry.state)
    step = jnp.where(failed, carry.step, carry.step + 1).astype(jnp.int32)
    history, rows = carry.history, carry.rows
    metrics = read_metrics(run, state)
    if len(rows) and metrics:
        slot = jnp.where(failed, carry.step - 1, carry.step) % len(rows)
        row = jnp.stack([jnp.asarray(m, history.dtype) for m in metrics.values()])
        history = jax.lax.dynamic_update_index_in_dim(history, row, slot, 0)
        rows = jax.lax.dynamic_update_index_in_dim(rows, step, slot, 0)
    return Carry(state, step, code, bad_leaf, history, rows)


def _same_state(method, before, after) -> None:
    """A state that changes its structure, shapes or dtypes cannot be looped over: say so, and which leaf."""
    name = f"{type(method).__name__}.step"
    before, static_before = eqx.partition(before, eqx.is_array)
    after, static_after = eqx.partition(after, eqx.is_array)
    if jtu.tree_structure(before) != jtu.tree_structure(after):
        raise ArgumentError("method", f"{name} returns a state of another structure than it was given.")
    for (path, old), new in zip(jtu.tree_leaves_with_path(before), jtu.tree_leaves(after), strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ArgumentError(
                "method", f"{name} changes state{jtu.keystr(path)} from {jax.typeof(old)} to {jax.typeof(new)}."
            )
    if not eqx.tree_equal(static_before, static_after):
        raise ArgumentError("method", f"{name} changes a leaf of its state that is not an array.")


def finish_code(carry: Carry):
    return jnp.where(carry.code == Result.running.code, Result.budget_spent.code, carry.code).astype(jnp.int32)
