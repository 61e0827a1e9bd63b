"""C. Distillation of the digits: ten images from which a classifier learns, by either gradient.

Both routes are tuned on grids of their own, and each may start the inner problem where the outer step before left it. All
are judged alike: the classifier is trained on the images to a gradient of 1e-9, and its loss on all digits counts.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optimand import Adjoint, Budget, Implicit, Minimize, Unrolled, solve
from optimand.core.method import Method
from optimand.report import style
from optimand.smooth import LBFGS, GradientDescent
from optimand.studies.base import Findings, Run, Table

from . import Settings
from .measuring import last_of, sklearn, timed

MOST_STEPS = 1000  # of an inner solve that runs to its tolerance

NOTE = """\
Each route was run with each choice of its own grid, from zero and from where the outer step before left the inner problem; of those
whose loss is at most 1% above that of the implicit route at its tightest tolerances, the fastest counts. The unrolled iterations are
a scan that stores what it needs. The last rows are the paper's own comparison, where one solver runs to one tolerance and is
differentiated either way: unrolled with checkpoints, or as a scan of as many iterations as that takes. These are few, {enough} of
gradient descent with a line search, because ten images of 64 pixels make an easy problem; so unrolling is cheap here. No route can
be quicker than the loss on all digits and its gradient, which take {floor:.2f} ms. The outer learning rate is {rate:g} for all: the
largest of those tried on one seed (1, 0.5, 0.25, 0.1, 0.05, 0.02) at which the outer loss falls steadily."""


class Route(NamedTuple):
    """One way to the gradient of the outer loss. Without an adjoint: a scan of so many steps, stored whole."""

    method: Method
    adjoint: Adjoint | None
    steps: int = MOST_STEPS
    warm: bool = False


class Distilled(NamedTuple):
    """What a route came to: images, outer losses on the way, seconds; and loss and accuracy as judged."""

    images: Any
    losses: Any
    seconds: float
    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Digits:
    """The bilevel problem."""

    images: Any
    labels: Any
    regularisation: float
    rate: float
    steps: int

    def inner(self, weights, prototypes):
        fit = cross_entropy(weights, prototypes, jnp.eye(10))
        return fit + 0.5 * self.regularisation * jnp.sum(weights**2)

    def trained(self, prototypes, guess, route: Route):
        problem = Minimize(self.inner, prototypes)
        if route.adjoint is None:
            return last_of(route.method, problem, guess, route.steps)
        budget = Budget(steps=route.steps)
        return solve(problem, route.method, guess, budget=budget, adjoint=route.adjoint, record=0, throw=False).value

    def outer(self, prototypes, guess, route: Route):
        weights = self.trained(prototypes, guess, route)
        return cross_entropy(weights, self.images, self.labels), weights

    def learn(self, start, route: Route):
        """Images and losses of the outer steps: by hand, since the guess of the inner problem is carried along."""
        rule = optax.sgd(self.rate, momentum=0.9)
        gradient_of = jax.value_and_grad(lambda images, guess: self.outer(images, guess, route), has_aux=True)

        def step(carry, _):
            prototypes, momentum, guess = carry
            (loss, weights), gradient = gradient_of(prototypes, guess)
            change, momentum = rule.update(gradient, momentum)
            return (optax.apply_updates(prototypes, change), momentum, weights if route.warm else guess), loss

        guess = jnp.zeros((start.shape[1], 10))
        (prototypes, _, _), losses = jax.lax.scan(step, (start, rule.init(start), guess), length=self.steps)
        return prototypes, losses

    def iterations(self, prototypes, method: Method):
        """How many a method needs for the inner problem, from zero."""
        guess = jnp.zeros((prototypes.shape[1], 10))
        return solve(Minimize(self.inner, prototypes), method, guess, budget=Budget(steps=MOST_STEPS), throw=False).steps

    def judge(self, prototypes):
        """Loss and share of right answers of the classifier that these images really teach."""
        weights = self.trained(prototypes, jnp.zeros((prototypes.shape[1], 10)), Route(LBFGS(tolerance=1e-9), Implicit()))
        right = jnp.argmax(self.images @ weights, axis=1) == jnp.argmax(self.labels, axis=1)
        return cross_entropy(weights, self.images, self.labels), jnp.mean(right)


def cross_entropy(weights, images, onehot):
    return -jnp.mean(jnp.sum(onehot * jax.nn.log_softmax(images @ weights), axis=1))


def run(settings: Settings, key, out: Run) -> Findings:
    data = sklearn("datasets").load_digits()
    digits = Digits(
        jnp.asarray(data.data / 16.0), jax.nn.one_hot(data.target, 10, dtype=float),
        settings.distil_theta, settings.distil_rate, settings.distil_steps,
    )  # fmt: skip
    start = 0.1 * jax.random.normal(key, (10, data.data.shape[1]))
    judge = jax.jit(digits.judge)
    rows = []

    def distil(route: Route, *names):
        (images, losses), seconds, _ = timed(lambda start: digits.learn(start, route), start, repeats=3)
        found = Distilled(images, np.asarray(losses), seconds, *map(float, judge(images)))
        rows.append([*names, "where it was" if route.warm else "zero", 1e3 * seconds / len(losses), found.loss])
        out.progress(f"C: {', '.join(names)}{', warm' if route.warm else ''}: {seconds:.2f} s, loss {found.loss:.4f}")
        return found

    pairs = [tuple(map(float, pair.split("/"))) for pair in settings.distil_implicit.split(",")]
    numbers = [int(number) for number in settings.distil_unrolled.split(",")]
    starts = (False, True) if settings.distil_warm else (False,)
    implicit: dict[bool, list[Distilled]] = {warm: [] for warm in starts}
    unrolled: dict[bool, list[Distilled]] = {warm: [] for warm in starts}
    for warm in starts:
        for inner, linear in pairs:
            route = Route(LBFGS(tolerance=inner), Implicit(rtol=linear), warm=warm)
            implicit[warm].append(distil(route, "implicit, L-BFGS", f"to {inner:g}, CG to {linear:g}"))
        for steps in numbers:
            route = Route(GradientDescent(tolerance=0.0), None, steps, warm)
            unrolled[warm].append(distil(route, "unrolled, gradient descent", f"{steps} iterations"))
    reference = implicit[False][0].loss  # at the tightest tolerances
    best, rival = (fastest([one for of in found.values() for one in of], reference) for found in (implicit, unrolled))

    method = GradientDescent(tolerance=settings.distil_tolerance)
    until = f"to {settings.distil_tolerance:g}"
    same = distil(Route(method, Implicit(rtol=settings.rtol)), "implicit, gradient descent", until)
    checkpointed = distil(Route(method, Unrolled()), "unrolled, gradient descent", f"{until}, checkpoints")
    iterations = jax.jit(lambda images: digits.iterations(images, method))
    enough = max(int(iterations(images)) for images in (start, checkpointed.images))
    stored = distil(Route(method, None, enough), "unrolled, gradient descent", f"{until}: {enough} iterations")
    solving = min(checkpointed, stored, key=lambda form: form.seconds)

    loss_on_all = lambda weights: cross_entropy(weights, digits.images, digits.labels)
    floor = timed(jax.value_and_grad(loss_on_all), jnp.zeros((start.shape[1], 10)), repeats=20)[1]
    metrics = {
        "loss, implicit": best.loss,
        "loss, unrolled": rival.loss,
        "unrolled / implicit loss": rival.loss / best.loss,
        "unrolled / implicit time": rival.seconds / best.seconds,
        "same solver: unrolled / implicit loss": solving.loss / same.loss,
        "same solver: unrolled / implicit time": solving.seconds / same.seconds,
        "same accuracy: unrolled / fastest implicit time": solving.seconds / best.seconds,
        "share of the outer loss in the implicit time": settings.distil_steps * floor / best.seconds,
        "accuracy of ten images": best.accuracy,
    }
    note = NOTE.format(rate=settings.distil_rate, floor=1e3 * floor, enough=enough)
    columns = ["route", "inner problem", "starts from", "ms per outer step", "loss"]
    drawn = {
        "C. The ten images learnt": _draw_images(best.images),
        "C. Outcome against cost": _draw_choices({"implicit": implicit, "unrolled": unrolled}, reference),
    }
    return Findings(metrics, [Table("C. Distillation", columns, rows, note)], drawn)


def fastest(routes: Sequence[Distilled], reference: float) -> Distilled:
    """The fastest that is as good as the reference to 1%; if there is none, the best."""
    as_good = [route for route in routes if route.loss <= 1.01 * reference]
    return min(as_good, key=lambda route: route.seconds) if as_good else min(routes, key=lambda route: route.loss)


def _draw_images(images):
    with style.house_style():
        import matplotlib.pyplot as plt

        figure, places = plt.subplots(2, 5, figsize=(6.4, 3.0))
        pictures = np.asarray(images).reshape(10, 8, -1)
        high = float(np.abs(pictures).max())
        for digit, place in enumerate(places.ravel()):
            shown = place.imshow(pictures[digit], cmap=style.SIGNED, vmin=-high, vmax=high, origin="upper")
            place.set_title(f"{digit}")
            place.set(xticks=[], yticks=[])
            place.spines[["top", "right"]].set_visible(True)
            place.grid(False)
        figure.colorbar(shown, ax=places, label="ink", shrink=0.8, pad=0.02)
        return figure


def _draw_choices(routes, reference: float):
    """Loss above the reference against time: name -> {warm: all choices}."""
    with style.house_style():
        import matplotlib.pyplot as plt

        figure, place = plt.subplots(figsize=(7.2, 3.4))
        for colour, (name, starts) in zip(style.COLOURS, routes.items(), strict=False):
            for warm, found in starts.items():
                milliseconds = [1e3 * one.seconds / len(one.losses) for one in found]
                above = [max(1e2 * (one.loss / reference - 1), 1e-3) for one in found]
                look = {"facecolor": "none" if warm else colour, "edgecolor": colour, "s": 42, "linewidth": 1.6}
                label = f"{name}, from {'the step before' if warm else 'zero'}"
                place.scatter(milliseconds, above, label=label, marker="o" if name == "implicit" else "s", **look)
        place.axhline(1.0, color=style.INK, linewidth=1, linestyle=":")
        below = {"xytext": (3, -3), "textcoords": "offset points", "ha": "left", "va": "top", "fontsize": 9}
        place.annotate("as good", (0, 1.0), xycoords=("axes fraction", "data"), **below)
        place.set(xscale="log", yscale="log", xlabel="ms per outer step", ylabel="loss above the reference, %")
        place.set_title("Each choice of each route")
        place.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return figure
