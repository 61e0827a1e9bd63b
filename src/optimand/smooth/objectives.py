r"""Objectives of linear models: means of a loss of x_i'w over the rows of a matrix.

$$f(w) = \frac{1}{n} \sum_i \ell(x_i^\top w, y_i) + \tfrac{\lambda}{2} \lVert w \rVert^2$$

| loss | function |
|---|---|
| half the squared error | `least_squares`, `ridge_regression` |
| logistic, labels 0 and 1 | `binary_logistic_regression` |
| logistic, labels 0, ..., k - 1 | `multiclass_logistic_regression`, `ridge_multiclass_logistic_regression` |
| hinge, k classes (its dual) | `multiclass_svm_dual` |

Losses alone are `optax.losses`. For least squares with few unknowns the problem `om.LeastSquares` says more to a method.

```python
data = jnp.eye(3), jnp.array([1.0, 2.0, 3.0])
om.solve(om.Minimize(om.smooth.objectives.ridge_regression, 0.1, data), om.smooth.LBFGS(), jnp.zeros(3)).value
```
"""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Num

__all__ = [
    "binary_logistic_regression",
    "least_squares",
    "multiclass_logistic_regression",
    "multiclass_svm_dual",
    "ridge_multiclass_logistic_regression",
    "ridge_regression",
]

Weights = Float[Array, "features classes"] | tuple[Float[Array, "features classes"], Float[Array, " classes"]]


def least_squares(
    w: Float[Array, "features *targets"], data: tuple[Float[Array, "rows features"], Float[Array, "rows *targets"]]
) -> Float[Array, ""]:
    """Half the mean of squares of X w - y, where `data` is (X, y)."""
    x, y = data
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def ridge_regression(
    w: Float[Array, "features *targets"],
    weight: Any,
    data: tuple[Float[Array, "rows features"], Float[Array, "rows *targets"]],
) -> Float[Array, ""]:
    """`least_squares` plus weight/2 times the sum of squares of w."""
    return least_squares(w, data) + 0.5 * weight * jnp.sum(w**2)


def binary_logistic_regression(
    w: Float[Array, " features"], data: tuple[Float[Array, "rows features"], Num[Array, " rows"]]
) -> Float[Array, ""]:
    """The mean logistic loss of X w, where `data` is (X, y) and y are zeros and ones."""
    x, y = data
    return jnp.mean(optax.losses.sigmoid_binary_cross_entropy(x @ w, y.astype(w.dtype)))


def multiclass_logistic_regression(
    w: Weights, data: tuple[Float[Array, "rows features"], Int[Array, " rows"]]
) -> Float[Array, ""]:
    """The mean cross entropy of the softmax of X W, or of X W + b if the unknown is the pair (W, b)."""
    x, y = data
    scores = x @ w[0] + w[1] if isinstance(w, tuple | list) else x @ w
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(scores, y))


def ridge_multiclass_logistic_regression(
    w: Weights, weight: Any, data: tuple[Float[Array, "rows features"], Int[Array, " rows"]]
) -> Float[Array, ""]:
    """`multiclass_logistic_regression` plus weight/2 times the sum of squares of W; an intercept is not penalised."""
    matrix = w[0] if isinstance(w, tuple | list) else w
    return multiclass_logistic_regression(w, data) + 0.5 * weight * jnp.sum(matrix**2)


def multiclass_svm_dual(
    beta: Float[Array, "rows classes"],
    weight: Any,
    data: tuple[Float[Array, "rows features"], Float[Array, "rows classes"]],
) -> Float[Array, ""]:
    """The dual of a linear multiclass support vector machine, to be minimised with each row of beta on the simplex.

    `data` is (X, Y) with one-hot rows in Y; the primal weights are X'(Y - beta) / weight. The objective is
    |X'(Y - beta)|^2 / (2 weight) - <beta, 1 - Y> (Blondel et al. 2022, section 4.1).
    """
    x, y = data
    primal = x.T @ (y - beta)
    return 0.5 / weight * jnp.sum(primal**2) + jnp.vdot(beta, y - 1)
