r"""Fitting a model whose loss is dear and whose parameters are cheap: the loss is asked at the model's outputs.

$$\min_\theta\; \mathbb{E}_t\, \frac{1}{B} \sum_{i=1}^{B} \ell\big(z_i, y_i\big), \qquad z = f_t(\theta),$$

where the outputs z, one for each of the B examples of batch t, are called *targets*. An *oracle* gives the gradients
\(g_i = \partial \ell / \partial z_i\) for a batch of targets: an expert's label, a simulator, a measurement. What it says at one
point of the target space can be used for many steps in parameters (Vaswani et al. 2021; Lavington et al. 2023): with step
size \(\eta\)

$$S(\theta) = \frac{1}{B} \sum_i \Big[ \ell(z_i, y_i) + \langle g_i, f_i(\theta) - z_i \rangle
  + \frac{1}{2 \eta} \lVert f_i(\theta) - z_i \rVert^2 \Big],$$

whose gradient at \(\theta\) with \(f(\theta) = z\) is that of the loss, and which bounds the loss from above if the loss of one example is
L-smooth in its target and \(\eta \le 1/L\). Gradients are those of single examples and the mean stands outside, so that
\(\eta\) does not depend on the size of the batch: L is 1/4 for the logistic loss, 2 for \((z - y)^2\), 1 for the cross entropy
of a softmax.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..core.budget import COUNTER_NAMES
from ..core.errors import ArgumentError, GuessError, ObjectiveError
from ..core.problem import Objective
from ..core.tracing import need_callable, need_scalar, show, trace_function
from .arguments import need_count
from .line_search import constant

__all__ = ["Query", "Surrogate", "TargetProblem"]


class Query(eqx.Module):
    """What the oracle was asked, and what it said: all that an outer step needs.

    - `batch`: the examples. `key`: that of a model which draws random numbers (dropout), or None.
    - `targets`: the outputs z of the model. `gradients`: of the loss of each example, of the same shape.
    - `value`: the mean loss at the targets.

    A farm of simulators may fill a queue with these; `SSO.absorb` takes steps from one, whenever it was asked.
    """

    batch: PyTree
    key: Any
    targets: Float[Array, "batch ..."]
    gradients: Float[Array, "batch ..."]
    value: Float[Array, ""]


class TargetProblem(Objective):
    """Minimise the mean of `loss(model(parameters, example), example)`, asking an oracle for gradients in the targets.

    An `Objective` as well: first-order methods that know nothing of targets solve it, and ask the oracle once for each
    gradient.

    **Arguments:**

    - `model`: `model(parameters, example)`, or `model(parameters, example, key)` if it draws random numbers (dropout): the
      target of *one* example, an array of any shape. It is vectorised here, so nothing in it can depend on the rest of
      the batch (normalise by running statistics). Its key is that of the outer step: all inner steps see the same draw.
    - `loss`: `loss(target, example)`, the loss of one example, a scalar; L-smooth in the target.
    - `data`: a pytree whose arrays share a leading axis of examples.
    - `batch_size`: examples a step, drawn without replacement as a function of the step's key. `None` is all of them.
    - `stream`: instead of data, a function `stream(parameters, key)` that makes the batch of a step, and may use the current
      model to do so: states that the policy visits, and what an expert would have done there. No derivative passes through.
    - `oracle`: `oracle(targets, batch)`, the gradients of all examples, of the shape of the targets; or a pair (losses,
      gradients). By default the derivative of `loss`. It may leave JAX through `jax.pure_callback` (in double precision if that is
      switched on for the whole process: callbacks run in threads that know of no `jax.enable_x64`).
    - `reduction`: "none" if the oracle returns the gradient of each example's loss, "mean" if that of the mean over the
      batch, which is smaller by the size of the batch. `check_oracle` finds out.
    - `cost`: what one call of the oracle costs beside the call, for the counters: `{"environment_steps": 100}`.

    **Raises:** `ArgumentError` for data without a common leading axis, a batch size out of range, or neither or both of `data` and
    `stream`; when it is solved `ObjectiveError` if a function returns something else than it should, the shapes of targets
    and of the oracle's gradients among it.

    ```python
    inputs = jax.random.normal(jax.random.key(0), (200, 3))
    labels = jnp.sign(inputs @ jnp.array([1.0, -2.0, 0.5]))
    model = lambda weights, example: example[0] @ weights
    loss = lambda target, example: jax.nn.softplus(-example[1] * target)
    problem = om.smooth.TargetProblem(model, loss, (inputs, labels), batch_size=50)
    method = om.smooth.SSO(om.smooth.ConstantTargetStep(4.0), inner_steps=10)
    solution = om.solve(problem, method, jnp.zeros(3), key=jax.random.key(1), budget=om.Budget(steps=20))
    solution.counters.calls  # of the oracle: 20
    ```

    Source: Lavington et al. 2023, section 2.
    """

    model: Callable
    loss: Callable
    stream: Callable
    oracle: Callable | None
    reduction: str = eqx.field(static=True)
    cost: tuple[tuple[str, int], ...] = eqx.field(static=True)
    random_model: bool = eqx.field(static=True)

    def __init__(
        self,
        model: Callable,
        loss: Callable,
        data: PyTree = None,
        *,
        batch_size: int | None = None,
        stream: Callable | None = None,
        oracle: Callable | None = None,
        reduction: str = "none",
        cost: Mapping[str, int] | None = None,
    ):
        self.model = need_callable(model, "model")
        self.loss = need_callable(loss, "loss")
        self.oracle = None if oracle is None else need_callable(oracle, "oracle")
        self.random_model = _takes_key(model)
        if (data is None) == (stream is None):
            raise ArgumentError("data", "or `stream` must be given, and not both.", "A stream makes its own batches.")
        if stream is not None and batch_size is not None:
            raise ArgumentError("batch_size", "is for `data`: a stream decides itself how many examples it makes.")
        self.stream = Minibatches(data, batch_size) if stream is None else Stream(need_callable(stream, "stream"))
        if reduction not in ("none", "mean"):
            raise ArgumentError("reduction", f"must be 'none' or 'mean', not {reduction!r}.")
        self.reduction = reduction
        for name, amount in (cost or {}).items():
            if name not in COUNTER_NAMES:
                raise ArgumentError("cost", f"names {name!r}, which is not counted.", f"Counters: {', '.join(COUNTER_NAMES)}.")
            need_count(f"cost[{name!r}]", amount, least=0)
        self.cost = tuple(sorted((cost or {}).items()))

    @property
    def stochastic(self) -> bool:
        return self.stream.stochastic or self.random_model

    @property
    def fraction(self) -> float:
        """The share of all examples that a batch holds; 1 for a stream."""
        return self.stream.fraction

    def batch(self, x: PyTree, key: Array | None = None) -> PyTree:
        """The examples of the step with this key: all of them without a key. A stream has the key 0 then."""
        return self.stream(constant(x), key)

    def targets(self, x: PyTree, batch: PyTree, key: Array | None = None) -> Float[Array, "batch ..."]:
        """The outputs of the model for a batch."""
        if not self.random_model:
            return jax.vmap(lambda example: self.model(x, example))(batch)
        keys = jax.random.split(jax.random.key(0) if key is None else key, _length(batch))
        return jax.vmap(lambda example, key: self.model(x, example, key))(batch, keys)

    def mean_loss(self, targets: Float[Array, "batch ..."], batch: PyTree) -> Float[Array, ""]:
        """The mean loss of a batch at these targets."""
        return jnp.mean(jax.vmap(self.loss)(targets, batch))

    def ask(self, targets: Float[Array, "batch ..."], batch: PyTree) -> tuple[Array, Array]:
        """One call of the oracle: the mean loss, and the gradient of each example's loss in its target."""
        if self.oracle is None:
            losses, gradients = jax.vmap(jax.value_and_grad(self.loss))(targets, batch)
            return jnp.mean(losses), gradients
        answer = self.oracle(targets, batch)
        value, gradients = answer if isinstance(answer, tuple) else (self.mean_loss(targets, batch), answer)
        return jnp.mean(value), gradients * (len(targets) if self.reduction == "mean" else 1)

    def query(self, x: PyTree, *, key: Array | None = None) -> Query:
        """Ask the oracle at the outputs of the model with parameters `x`: the one place where an outer step does."""
        batch = self.batch(x, key)
        targets = self.targets(x, batch, key)
        value, gradients = self.ask(targets, batch)
        return Query(batch, key if self.random_model else None, targets, gradients, value)

    def surrogate(self, query: Query, step_size: Any, *, divergence: str = "euclidean") -> "Surrogate":
        """S with this step size in target space, as a problem of its own that never asks the oracle."""
        metric = 1 / jnp.asarray(step_size, query.targets.dtype)
        return Surrogate(self, query, metric, query.value, divergence, "scalar", self.fraction)

    def at(self, x: PyTree, key: Array | None) -> "TargetProblem":
        """The problem with the batch of this key, made by the model `x`, held fixed: what a line search compares on."""
        return eqx.tree_at(lambda problem: problem.stream, self, Minibatches(self.batch(x, key), None))

    def value(self, x: PyTree, *, key: Array | None = None) -> Array:
        batch = self.batch(x, key)
        return self.mean_loss(self.targets(x, batch, key), batch)

    def value_and_gradient(self, x: PyTree, *, key: Array | None = None) -> tuple[Array, PyTree]:
        batch = self.batch(x, key)
        targets, pullback = jax.vjp(lambda x: self.targets(x, batch, key), x)
        value, gradients = self.ask(targets, batch)
        return value, pullback(gradients / len(targets))[0]

    def gradient(self, x: PyTree, *, key: Array | None = None) -> PyTree:
        return self.value_and_gradient(x, key=key)[1]

    def check_oracle(self, x: PyTree, *, key: Array | None = None, tolerance: float = 1e-3) -> None:
        """Compare the oracle with the derivative of `loss`, by one call of it at the outputs of the model `x`.

        **Raises:** `ArgumentError` if they differ by more than `tolerance` of the largest entry; it says if the factor is
        the size of the batch, the mark of an oracle that averages where `reduction` says it does not, or the reverse.
        """
        batch = self.batch(x, key)
        targets = self.targets(x, batch, key)
        _, found = self.ask(targets, batch)
        expected = jax.vmap(jax.grad(self.loss))(targets, batch)
        if found.shape != expected.shape:
            raise ArgumentError("oracle", f"returns gradients of shape {found.shape} for targets of shape {targets.shape}.")
        scale = float(jnp.max(jnp.abs(expected)))
        agrees = lambda factor: float(jnp.max(jnp.abs(factor * found - expected))) <= tolerance * max(scale, 1e-30)
        count = len(targets)
        for factor, other in ((count, "mean"), (1 / count, "none")):
            if count > 1 and agrees(factor) and not agrees(1):
                text = f"is off by the size of the batch, {count}, from the derivative of `loss`."
                raise ArgumentError("oracle", text, f"Declare reduction={other!r}.")
        if not agrees(1):
            gap = float(jnp.max(jnp.abs(found - expected))) / max(scale, 1e-30)
            raise ArgumentError("oracle", f"differs from the derivative of `loss` by {gap:.3g} of its largest entry.")

    def check(self, guess: PyTree) -> None:  # a model may well hold integers and flags, which stay as they are
        if not jtu.tree_leaves(eqx.filter(guess, eqx.is_inexact_array)):
            raise GuessError("guess", "holds no floating-point array: there is nothing to fit.")
        for path, leaf in jtu.tree_leaves_with_path(guess):
            if eqx.is_array(leaf) and jnp.iscomplexobj(leaf):
                raise GuessError(f"guess{jtu.keystr(path)}", "is complex.", "Fit its real and imaginary parts.")

    def traced(self, guess: PyTree) -> "TargetProblem":
        key = jax.eval_shape(lambda: jax.random.key(0))
        stream = self.stream.traced(guess, key)
        batches = stream.structures()
        example = jtu.tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches[0])
        model = trace_function("model", self.model, guess, example, *([key] if self.random_model else []))
        target = model.output
        if not (isinstance(target, jax.ShapeDtypeStruct) and jnp.issubdtype(target.dtype, jnp.floating)):
            raise ObjectiveError("model", f"must return one real floating-point array, the target; it returns {show(target)}.")
        loss = trace_function("loss", self.loss, target, example)
        need_scalar("loss", loss.output)
        oracle = self.oracle
        if oracle is not None:
            recorded = tuple(_trace_oracle(oracle, target, batch) for batch in batches)
            oracle = _ByLength(tuple(map(_length, batches)), recorded)
        return eqx.tree_at(
            lambda p: (p.model, p.loss, p.stream, p.oracle), self, (model, loss, stream, oracle),
            is_leaf=lambda leaf: leaf is None,
        )  # fmt: skip


class Surrogate(Objective):
    """The surrogate of a loss around the targets of one query, as a deterministic problem in the parameters.

    It holds targets and gradients as data: nothing in it can ask the oracle.

    - `metric`: 1/eta, the weight of the proximity term: a number, an array like the targets ("diagonal"), or a matrix over the
      outputs of one example ("matrix"); `kind` says which.
    - `divergence`: "euclidean", or "kl": the Kullback-Leibler divergence of the softmax distributions of targets (logits).
    - `offset`: the loss at the targets. `fraction`: the share of all examples in the batch.
    """

    problem: TargetProblem
    query: Query
    metric: Array
    offset: Array
    divergence: str = eqx.field(static=True, default="euclidean")
    kind: str = eqx.field(static=True, default="scalar")
    fraction: float = eqx.field(static=True, default=1.0)

    def value(self, x: PyTree, *, key: Array | None = None) -> Array:
        z = self.query.targets
        change = self.problem.targets(x, self.query.batch, self.query.key) - z
        linear = jnp.sum(self.query.gradients * change)
        if self.divergence == "kl":  # the Bregman divergence of log-sum-exp
            logits = jax.nn.logsumexp(z + change, axis=-1) - jax.nn.logsumexp(z, axis=-1)
            distance = self.metric * jnp.sum(logits - jnp.sum(jax.nn.softmax(z, axis=-1) * change, axis=-1))
        elif self.kind == "matrix":
            flat = change.reshape(len(z), -1)
            distance = 0.5 * jnp.sum((flat @ self.metric) * flat)
        else:
            distance = 0.5 * jnp.sum(self.metric * change**2)
        return (linear + distance) / len(z) + self.offset

    def traced(self, guess: PyTree) -> "Surrogate":
        """Itself: its functions are those of the problem, traced there."""
        return self


class Minibatches(eqx.Module):
    """Batches of a data set, as a stream that does not look at the model."""

    data: PyTree
    batch_size: int | None = eqx.field(static=True)

    def __init__(self, data: PyTree, batch_size: int | None):
        try:
            self.data = jtu.tree_map(jnp.asarray, data)
        except TypeError as error:
            raise ArgumentError("data", f"must hold numeric arrays: {error}") from None
        count = _common_length("data", self.data)
        if batch_size is not None:
            need_count("batch_size", batch_size)
            if batch_size > count:
                raise ArgumentError("batch_size", f"must lie between 1 and the {count} examples, not {batch_size}.")
        self.batch_size = None if batch_size == count else batch_size

    @property
    def stochastic(self) -> bool:
        return self.batch_size is not None

    @property
    def fraction(self) -> float:
        return 1.0 if self.batch_size is None else self.batch_size / _length(self.data)

    def __call__(self, x: PyTree, key: Array | None) -> PyTree:
        del x
        if key is None or self.batch_size is None:
            return self.data
        chosen = jax.random.choice(key, _length(self.data), (self.batch_size,), replace=False)
        return jtu.tree_map(lambda leaf: leaf[chosen], self.data)

    def structures(self) -> list[PyTree]:
        """The structures of the batches there are: that of a step, and all data."""
        sizes = [_length(self.data)] if self.batch_size is None else [self.batch_size, _length(self.data)]
        shaped = lambda leaf, size: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)
        return [jtu.tree_map(lambda leaf, size=size: shaped(leaf, size), self.data) for size in sizes]

    def traced(self, guess: PyTree, key: Any) -> "Minibatches":
        """Itself: there is no function of the user's in it."""
        return self


class Stream(eqx.Module):
    """A user's function of the model and a key that makes batches."""

    fn: Callable

    stochastic = True
    fraction = 1.0

    def __call__(self, x: PyTree, key: Array | None) -> PyTree:
        return self.fn(x, jax.random.key(0) if key is None else key)

    def structures(self) -> list[PyTree]:
        return [self.fn.output]  # pyright: ignore[reportFunctionMemberAccess]

    def traced(self, guess: PyTree, key: Any) -> "Stream":
        fn = trace_function("stream", self.fn, guess, key)
        _common_length("stream", fn.output)
        return Stream(fn)


class _ByLength(eqx.Module):
    """One oracle, recorded for batches of several sizes."""

    lengths: tuple[int, ...] = eqx.field(static=True)
    recorded: tuple

    def __call__(self, targets: Array, batch: PyTree) -> Any:
        if len(targets) not in self.lengths:
            known = " or ".join(map(str, self.lengths))
            raise ArgumentError("oracle", f"was recorded for {known} examples, and is asked for {len(targets)}.")
        return self.recorded[self.lengths.index(len(targets))](targets, batch)


def _trace_oracle(oracle: Callable, target: Any, batch: PyTree) -> Any:
    """The oracle for a batch of this structure, held to the shape of the targets."""
    targets = jax.ShapeDtypeStruct((_length(batch), *target.shape), target.dtype)
    traced = trace_function("oracle", oracle, targets, batch)
    pair = isinstance(traced.output, tuple)
    if pair and len(traced.output) != 2:
        raise ObjectiveError("oracle", f"must return gradients, or (losses, gradients); it returns {show(traced.output)}.")
    gradients = traced.output[1] if pair else traced.output
    if not isinstance(gradients, jax.ShapeDtypeStruct) or gradients.shape != targets.shape:
        shape = gradients.shape if isinstance(gradients, jax.ShapeDtypeStruct) else show(gradients)
        raise ObjectiveError(
            "oracle", f"returns gradients of shape {shape} for targets of shape {targets.shape}.",
            "One gradient for each target is needed, that of its example's loss.",
        )  # fmt: skip
    return traced


def _length(batch: PyTree) -> int:
    return jtu.tree_leaves(batch)[0].shape[0]


def _common_length(name: str, tree: PyTree) -> int:
    leaves = jtu.tree_leaves(tree)
    arrays = all(isinstance(leaf, jax.ShapeDtypeStruct | jax.Array | np.ndarray) for leaf in leaves)
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves} if arrays else {None}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        found = ", ".join(str(leaf.shape) for leaf in leaves) if arrays else show(tree)
        raise ArgumentError(name, f"needs one leading axis of examples, the same in every array; shapes: {found}.")
    return sizes.pop()  # pyright: ignore[reportReturnType]


def _takes_key(model: Callable) -> bool:
    try:
        inspect.signature(model).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return False
    return True
