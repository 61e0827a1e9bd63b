"""C. Online imitation: a policy learns to balance a pole from an expert that is asked about the states the policy visits.

Each round rolls the current policy out, and the expert, a linear-quadratic regulator with a bounded force, is asked what it
would have done in every state that was visited: the data of a round depend on the policy, and are not kept.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from optimand.physics import CartPole, CartPoleState, lqr
from optimand.report import figures
from optimand.smooth import TargetProblem
from optimand.studies.base import Findings, Run, Table

from . import Settings
from .measuring import Rival, Sweep, adagrad, adam, rows, sgd, sls, sso_rival, sweep

SCALE = np.array([0.4, 0.8, 0.2, 0.8])  # of the inputs of a policy: m, m/s, rad, rad/s
FORCE = 10.0  # N, the most that is pushed, and the unit of a policy's output
BOUNDS = (2.4, 0.5)  # m, rad: beyond them an episode ends, and the next begins

NOTE = """\
Squared difference to the expert's force (in units of {force:g} N) on states that the policy visits, from {episodes} fresh rollouts of
{horizon} steps; the mean over the last {last} rounds. A round costs {horizon} calls of the expert. "Calls" is after how many the loss is first
at most twice the least of all methods ({target:.3g}). "Upright" is the share of steps that do not end an episode. Tuned methods are shown with
the member of their grid that needs the fewest calls, and of these the one with the lowest loss: learning rates {rates}, for OGD and
Adam constant or divided by the root of the round (power 0 or 0.5); longest steps {longest} for SLS. SSO is not tuned: its step size in target space is 1/L = {eta:g}."""


class Policy(eqx.Module):
    """A network from the state of the cart-pole to a force, in units of `FORCE`."""

    net: eqx.nn.MLP

    def __call__(self, state):
        return self.net(state / SCALE.astype(state.dtype))


class Rollout(eqx.Module):
    """The states that a policy visits, and what the expert would have done there: a stream of `TargetProblem`."""

    pole: CartPole
    gain: Any
    steps: int = eqx.field(static=True)

    def expert(self, state):
        """The force of the regulator, bounded, in units of `FORCE`."""
        return jnp.clip(-(state @ self.gain) / FORCE, -1.0, 1.0)

    def __call__(self, policy, key):
        states, _ = self.visit(policy, key)
        return states, jax.vmap(self.expert)(states)

    def visit(self, policy, key):
        """States in order, and whether each was followed by another of the same episode."""

        def fresh(key):
            return jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0) * jnp.array([0.5, 0.2, 0.15, 0.2])

        def step(state, key):
            force = FORCE * jnp.clip(policy(state), -1.0, 1.0)
            new = self.pole.step(CartPoleState.from_vector(state), force).vector()
            inside = (jnp.abs(new[0]) <= BOUNDS[0]) & (jnp.abs(new[2]) <= BOUNDS[1])
            return jnp.where(inside, new, fresh(key)), (state, inside)

        of_start, of_steps = jax.random.split(key)
        return jax.lax.scan(step, fresh(of_start), jax.random.split(of_steps, self.steps))[1]


def model(policy, example):
    return policy(example[0])


def loss(target, example):
    return (target - example[1]) ** 2


@dataclasses.dataclass(frozen=True)
class Judge:
    """Loss and share of upright steps of a policy on states of its own, the same random numbers for every policy."""

    episodes: int

    def __call__(self, problem, policy, key):
        rollout = problem.stream.fn

        def one(key):
            states, inside = rollout.visit(policy, key)
            answers = jax.vmap(rollout.expert)(states)
            return jnp.mean(jax.vmap(lambda state, answer: loss(policy(state), (state, answer)))(states, answers)), jnp.mean(inside)

        losses, upright = jax.vmap(one)(jax.random.split(key, self.episodes))
        return jnp.stack([jnp.mean(losses), jnp.mean(upright)])


def run(settings: Settings, key, out: Run) -> Findings:
    of_policy, of_rounds, of_judge = jax.random.split(key, 3)
    pole = CartPole()
    stream = Rollout(pole, lqr(pole), settings.horizon)
    policy = Policy(eqx.nn.MLP(4, "scalar", settings.hidden, 2, activation=jax.nn.tanh, key=of_policy))
    problem = TargetProblem(model, loss, stream=stream)
    powers = [0.0, 0.5]
    rivals = [
        (Rival("OGD", sgd), rows(settings.imitation_rates, powers)),
        *([(Rival("Adam", adam), rows(settings.imitation_rates, powers))] if "Adam" in settings.rivals else []),
        *([(Rival("AdaGrad", adagrad), rows(settings.imitation_rates))] if "AdaGrad" in settings.rivals else []),
        *([(Rival("SLS", sls), rows(settings.longest))] if "SLS" in settings.rivals else []),
        *(
            (sso_rival(settings, m, settings.rounds), rows([settings.imitation_eta], [0.0]))
            for m in settings.imitation_inner_steps
        ),
    ]
    found: list[Sweep] = []
    for rival, grid in rivals:
        out.progress(f"C: {rival.name}")
        found.append(
            sweep(problem, rival, grid, policy, of_rounds, calls=settings.rounds, measure=Judge(settings.episodes), measure_key=of_judge)
        )  # fmt: skip
    last = max(1, settings.rounds // 8)
    final = lambda one: np.mean(one.figures[:, -last:, 0], axis=1)
    least = min(np.nanmin(final(one)) for one in found)
    metrics: dict[str, float] = {"least loss": least}
    lines, curves = [], {}
    for one in found:
        reached = np.array([first_below(curve, 2 * least) for curve in one.figures[:, :, 0]])
        losses = np.where(np.isfinite(final(one)), final(one), np.inf)
        chosen = int(np.lexsort((losses, np.where(np.isfinite(reached), reached, np.inf)))[0])
        short = one.name.replace("SSO, m =", "SSO")
        calls = settings.horizon * reached[chosen]
        upright = float(np.mean(one.figures[chosen, -last:, 1]))
        if one.name.startswith("SSO"):
            metrics[f"{short}, calls per step"] = one.calls_per_step(settings.rounds)
        metrics |= {f"{short} calls": calls if np.isfinite(calls) else np.nan, f"{short} loss": losses[chosen], f"{short} upright": upright}
        choice = "" if one.name.startswith("SSO") else ", ".join(f"{number:g}" for number in one.grid[chosen])
        lines.append([one.name, choice, losses[chosen], calls if np.isfinite(calls) else "never", upright])
        curves[one.name] = (np.arange(settings.rounds + 1), one.figures[chosen, :, 0])
    note = NOTE.format(
        force=FORCE, episodes=settings.episodes, horizon=settings.horizon, last=last, target=2 * least, eta=settings.imitation_eta,
        rates=", ".join(f"{rate:g}" for rate in settings.imitation_rates), longest=", ".join(f"{step:g}" for step in settings.longest),
    )  # fmt: skip
    table = Table("C. Imitation", ["method", "of its grid", "loss", "calls", "upright"], lines, note)
    figure = figures.curves(curves, xlabel="rounds", ylabel="loss on its own states", title="Online imitation")
    return Findings(metrics, [table], {"C. Imitation": figure})


def first_below(curve: np.ndarray, bar: float) -> float:
    """The number of the first measurement at or below a bar; infinite if there is none."""
    below = np.flatnonzero(curve <= bar)
    return float(below[0]) if len(below) else np.inf
