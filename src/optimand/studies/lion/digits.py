"""B. A network on digits: Lion, AdamW, momentum descent and projected momentum descent."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax

from optimand import Fit
from optimand.core.errors import MissingExtra
from optimand.report import figures
from optimand.smooth import Adam, L1Kernel, LionK, Optax, kkt_score
from optimand.studies.base import Findings, Run, Table

from . import Settings
from .quadratic import Falling


def images(settings: Settings, key):
    """Training, validation and test set, three to one to one."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("data", "scikit-learn") from None
    pixels, labels = load_digits(return_X_y=True)
    order = np.asarray(jax.random.permutation(key, len(labels)))[: settings.examples]
    pixels, labels = jnp.asarray(pixels[order] / 16), jnp.asarray(labels[order], jnp.int32)
    first, second = 3 * len(order) // 5, 4 * len(order) // 5
    return [(pixels[part], labels[part]) for part in (slice(first), slice(first, second), slice(second, None))]


def network(settings: Settings, key) -> dict[str, Any]:
    """He's initial weights: a normal distribution of variance 2 / inputs, part of which lies outside a tight box."""
    first, second = jax.random.split(key)
    hidden = settings.hidden
    return {
        "hidden": {"weight": jax.random.normal(first, (64, hidden)) * jnp.sqrt(2 / 64), "bias": jnp.zeros(hidden)},
        "output": {"weight": jax.random.normal(second, (hidden, 10)) * jnp.sqrt(2 / hidden), "bias": jnp.zeros(10)},
    }


def logits(model, pixels):
    hidden = jax.nn.relu(pixels @ model["hidden"]["weight"] + model["hidden"]["bias"])
    return hidden @ model["output"]["weight"] + model["output"]["bias"]


def loss(model, example):
    pixels, label = example
    return optax.softmax_cross_entropy_with_integer_labels(logits(model, pixels), label)


def accuracy(model, data):
    pixels, labels = data
    return 100 * jnp.mean(jnp.argmax(logits(model, pixels), axis=1) == labels)


def onto_box(half) -> optax.GradientTransformation:
    """Ends a chain: the parameters after the update are projected on |w| <= half."""
    project = lambda update, w: jnp.clip(w + update, -half, half) - w
    return optax.stateless(lambda updates, params: jtu.tree_map(project, updates, params))


def methods(settings: Settings, steps: int):
    """name -> (a method for a learning rate and a lambda, the learning rates, the lambdas)."""

    schedule = lambda rate: Falling(rate, 1.0, steps, settings.schedule)

    def lion(rate, decay):
        return LionK(
            L1Kernel(), schedule(rate), decay, settings.b1, settings.b2, settings.decay, None, monitor=False
        )

    descent = lambda rate: optax.sgd(schedule(rate), momentum=0.9)
    return {
        "Lion": (lion, settings.lion_rates, settings.decays),
        "AdamW": (lambda rate, decay: Adam(schedule(rate), weight_decay=decay), settings.adamw_rates, settings.decays),
        "SGD": (lambda rate, decay: Optax(tx=descent(rate)), settings.sgd_rates, (None,)),
        "projected SGD": (
            lambda rate, decay: Optax(tx=optax.chain(descent(rate), onto_box(1 / decay))), settings.sgd_rates, settings.decays,
        ),
    }  # fmt: skip


def trained(method, settings: Settings, model, sets, steps: int, decay, key):
    """After every pass: accuracies, the share of the weights outside the box, and the score on all training data."""
    problem = Fit(loss, model, sets[0], batch_size=min(settings.batch, len(sets[0][1])))
    bound = jnp.inf if decay is None else 1 / decay

    def look(w):
        flat = jnp.concatenate([leaf.ravel() for leaf in jtu.tree_leaves(w)])
        score = jnp.nan if decay is None else kkt_score(L1Kernel(), problem.gradient(w), w, decay)
        return {
            "validation": accuracy(w, sets[1]),
            "validation loss": jnp.mean(jax.vmap(loss, (None, 0))(w, sets[1])),
            "test": accuracy(w, sets[2]),
            "outside": jnp.mean(jnp.abs(flat) > bound * (1 + 1e-6)),
            "largest": jnp.max(jnp.abs(flat)),
            "score": jnp.asarray(score),
        }

    def step(state, number):
        return method.step(problem, state, key=jax.random.fold_in(key, number)), None

    def epoch(state, numbers):
        state, _ = jax.lax.scan(step, state, numbers)
        return state, look(method.answer(problem, state))

    first = method.init(problem, model, key=jax.random.fold_in(key, steps))
    _, seen = jax.lax.scan(epoch, first, jnp.arange(steps).reshape(settings.epochs, -1))
    start = look(model)
    return jtu.tree_map(lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b]), start, seen)


def run(settings: Settings, key, out: Run) -> Findings:
    data_key, model_key, batch_key = jax.random.split(key, 3)
    sets, model = images(settings, data_key), network(settings, model_key)
    count = sum(leaf.size for leaf in jtu.tree_leaves(model))
    an_epoch = max(1, len(sets[0][1]) // settings.batch)
    steps = settings.epochs * an_epoch
    metrics, rows, outside, scores = {}, [], {}, {}
    for name, (make, rates, decays) in methods(settings, steps).items():
        grid = [(rate, decay) for decay in decays for rate in rates]
        free = decays == (None,)
        each = jnp.array([rate for rate, _ in grid]), None if free else jnp.array([decay for _, decay in grid])

        def one(rate, decay, model, sets, make=make):
            return trained(make(rate, decay), settings, model, sets, steps, decay, batch_key)

        seen = jax.jit(jax.vmap(one, (0, None if free else 0, None, None)))(*each, model, sets)
        seen = {column: np.asarray(values) for column, values in seen.items()}
        quality = lambda number, seen=seen: (seen["validation"][number, -1], -seen["validation loss"][number, -1])
        best = {}  # lambda -> the run that the validation set chooses
        for number, (_, decay) in enumerate(grid):
            if decay not in best or quality(number) > quality(best[decay]):
                best[decay] = number
        for decay, number in best.items():
            rows.append(
                [name, decay, grid[number][0], seen["validation"][number, -1], seen["test"][number, -1],
                 100 * (1 - seen["outside"][number, -1]), seen["largest"][number, -1], seen["score"][number, -1]]
            )  # fmt: skip
            label = name if decay is None else f"{name}, lambda = {decay:g}"
            outside[label], scores[label] = seen["outside"][number], seen["score"][number]
        chosen = max(best.values(), key=quality)
        metrics[f"{name}: accuracy"] = seen["test"][chosen, -1]
        if name == "Lion":
            # Phase 1 is over where the weights begin inside, or the distance has shrunk to less than the tolerance
            rates_sum = float(np.sum(np.asarray(Falling(1.0, 1.0, steps, settings.schedule)(np.arange(steps)))))
            travelled = np.array([rate * decay * rates_sum for rate, decay in grid])
            excess = np.array([decay * seen["largest"][number, 0] - 1 for number, (_, decay) in enumerate(grid)])
            over = excess * np.exp(-travelled) <= 1e-6
            metrics["Lion: least share inside"] = np.min(1 - seen["outside"][over, -1]) if over.any() else np.nan
            metrics["Lion: runs whose phase 1 is over"] = np.sum(over)
            metrics["Lion: of these, begun outside"] = np.sum(over & (excess > 0))
        if name == "AdamW":
            tightest = best[max(settings.decays)]
            metrics["AdamW: outside, tightest"] = round(seen["outside"][tightest, -1] * count)
            metrics["AdamW: outside, most of the grid"] = round(seen["outside"][:, -1].max() * count)
        out.progress(f"B: {name}: test accuracy {metrics[f'{name}: accuracy']:.1f} %")
    table = Table(
        "B. Digits: every method with its best learning rate, for every lambda",
        ["method", "lambda", "rate", "validation %", "test %", "% with |w| <= 1/lambda (1 + 1e-6)", "largest |w|", "score"],
        rows,
        f"A network 64-{settings.hidden}-10, {steps} steps of {settings.batch} images; the rate is chosen on the validation set. "
        "The score is that of the box, infinite outside it.",
    )  # fmt: skip
    epochs = np.arange(settings.epochs + 1)
    tight = f"lambda = {max(settings.decays):g}"
    drawn = {
        "B. Weights outside the box": figures.curves(
            {name: curve for name, curve in outside.items() if name.endswith(tight)},
            x=epochs, xlabel="pass", ylabel="share with |w| > 1 / lambda", title=tight, log="",
        ),
        "B. KKT score": figures.curves(
            {name: np.where(np.isfinite(curve), curve, np.nan) for name, curve in scores.items()
             if name.startswith("Lion") and np.any(np.isfinite(curve[1:]))},
            x=epochs, xlabel="pass", ylabel="score on the training set", title="Lion inside its box",
        ),
    }  # fmt: skip
    return Findings(metrics, [table], drawn)
