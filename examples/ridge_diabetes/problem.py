"""Tune the regularisation of a regression by its hypergradient, against grid search.

Ten measurements of 442 diabetes patients predict the progression of the disease one year on (scikit-learn's `diabetes`;
Efron et al., 2004). Ridge regression with a penalty \\(e^{\\lambda_j}\\) on each weight,

    w(λ) = argmin_w  ½ |X w - y|² / n + ½ Σ_j exp(λ_j) w_j² ,

is fitted to four fifths of the training data, and judged on the last fifth: five folds, and λ minimises their mean loss.
That loss is a function of a *solution*, so its gradient goes through `solve` by the implicit function theorem: one
gradient costs five small linear solves, however many penalties there are. A grid can search one common penalty; ten are
out of its reach (25 points a side would be 25^10 fits). The report shows both losses, and the error on patients that neither
has seen: ten penalties fit the folds better, and need not predict better.

    optimand solve examples/ridge_diabetes/problem.py --out runs/ridge
    optimand solve examples/ridge_diabetes/problem.py --set PENALTIES=one

Put your own data in `load`: an array of features and one of targets.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes

import optimand as om
from optimand.report import figures
from optimand.studies import Claim, Findings, Table

jax.config.update("jax_enable_x64", True)  # a program may choose its precision; the library never does

PENALTIES: Literal["each", "one"] = "each"  # a penalty for each weight, or one for all
FOLDS = 5
GRID = 25  # points of the grid search over one common penalty
LOWEST = -10.0  # of log penalty
HIGHEST = 4.0
STEPS = 60
SPLIT_SEED = 0  # of the shuffle before the data are split


def load():
    """Features `[patient, 10]` and targets `[patient]`, shuffled."""
    features, targets = load_diabetes(return_X_y=True)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(targets))
    return features[order], targets[order]


def standardised(features, targets, training):
    """Zero mean and unit variance on the training part."""
    features = (features - features[:training].mean(axis=0)) / features[:training].std(axis=0)
    targets = (targets - targets[:training].mean()) / targets[:training].std()
    return jnp.asarray(features), jnp.asarray(targets)


_all_features, _all_targets = load()
training = int(0.8 * len(_all_targets)) // FOLDS * FOLDS
X, y = standardised(_all_features, _all_targets, training)
folds = jnp.arange(training).reshape(FOLDS, -1)


def ridge(weights, log_penalty, X, y, used):
    """The objective of one fit, on the rows where `used` is 1."""
    residual = used * (X @ weights - y)
    return 0.5 * jnp.sum(residual**2) / jnp.sum(used) + 0.5 * jnp.sum(jnp.exp(log_penalty) * weights**2)


def fit(log_penalty, used):
    """w(λ): a solution, and so a differentiable function of λ."""
    inner = om.Minimize(ridge, log_penalty, X[:training], y[:training], used)
    return om.solve(inner, om.smooth.LBFGS(tolerance=1e-10), jnp.zeros(X.shape[1])).value


def validation_loss(log_penalty):
    """Mean squared error on the fold left out, averaged over the folds."""

    def of_fold(fold):
        used = jnp.ones(training).at[fold].set(0.0)
        weights = fit(log_penalty, used)
        return jnp.mean((X[fold] @ weights - y[fold]) ** 2)

    return jnp.mean(jax.vmap(of_fold)(folds))


def bounded(z):
    """Log penalties between the ends of the grid, from unknowns that are free."""
    return LOWEST + (HIGHEST - LOWEST) * jax.nn.sigmoid(z)


problem = om.Minimize(lambda z: validation_loss(bounded(z)))
method = om.smooth.LBFGS(tolerance=1e-6)
guess = jnp.zeros(X.shape[1] if PENALTIES == "each" else 1)
budget = om.Budget(steps=STEPS)


def report(solution):
    """Beside a grid search over one common penalty: validation loss, and error on patients that neither has seen."""
    grid = jnp.linspace(LOWEST, HIGHEST, GRID)
    on_grid = jax.jit(jax.vmap(lambda penalty: validation_loss(penalty[None])))(grid)
    best = jnp.argmin(on_grid)

    @jax.jit
    def test_error(log_penalty):
        weights = fit(log_penalty, jnp.ones(training))
        return jnp.mean((X[training:] @ weights - y[training:]) ** 2), weights

    ours, weights = test_error(bounded(solution.value))
    theirs, _ = test_error(grid[best][None])
    loss = float(solution.history["value"][-1])
    tuned = bounded(solution.value)
    names = load_diabetes().feature_names
    penalties = jnp.broadcast_to(jnp.exp(tuned), weights.shape)
    evaluations = int(solution.counters.gradients)
    return Findings(
        {
            "validation_implicit": loss,
            "validation_grid": float(on_grid[best]),
            "test_implicit": float(ours),
            "test_grid": float(theirs),
            "hypergradients": evaluations,
        },
        tables=[
            Table(
                "Mean squared error, in units of the variance of the target",
                ("", "penalties", "fits of 5 folds", "validation", "patients not seen"),
                [
                    ("grid search", 1, GRID, float(on_grid[best]), float(theirs)),
                    ("implicit hypergradient", tuned.size, evaluations, loss, float(ours)),
                ],
                note="Each fit of the hypergradient also costs a backward solve.",
            ),
            Table(
                "Weights",
                ("feature", "penalty", "weight"),
                [(name, float(p), float(w)) for name, p, w in zip(names, penalties, weights, strict=True)],
            ),
        ],
        figures={
            "Validation loss of one common penalty, and what tuned penalties reach": figures.curves(
                {
                    "one common penalty": (np.exp(grid), on_grid),
                    f"{tuned.size} by hypergradient": (np.exp(grid[jnp.array([0, -1])]), np.full(2, loss)),
                },
                xlabel="penalty",
                ylabel="validation loss",
                log="x",
            )
        },
    )


def claims(metrics):
    """What a better optimiser has to show: it is not worse than the grid that it replaces."""
    ratio = metrics["validation_implicit"] / metrics["validation_grid"]
    return [Claim.at_most("validation loss: implicit / best of the grid", ratio, 1.0)]
