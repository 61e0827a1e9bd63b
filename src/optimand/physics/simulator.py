"""What a simulator is: a pure map of a state to the next one; everything else is written once, outside the physics.

A `Simulator` is the model: its array fields are the physical parameters, its static fields are sizes and flags. The
state is another object, a pytree of arrays of fixed shapes that holds all that the next step needs, so that a rollout
can be cut anywhere and gone on with. Derivatives with respect to parameters, state and controls are those of the map.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, PyTree

__all__ = ["Simulator", "SteadySimulator"]


class Simulator(eqx.Module):
    """The abstract simulator of something that evolves in time.

    A subclass defines `initial` (whose arguments are its own) and `step`; the rest has defaults.
    """

    @abc.abstractmethod
    def initial(self, *args, **kwargs) -> PyTree:
        """The state at the beginning."""

    @abc.abstractmethod
    def step(self, state: PyTree, control: PyTree = None) -> PyTree:
        """The state one control period later; pure, and of the same structure, shapes and dtypes."""

    def observe(self, state: PyTree) -> PyTree:
        """What a rollout stores of a state: by default, all of it."""
        return state

    def controls(self) -> PyTree:
        """The structure of one period's control, as `jax.ShapeDtypeStruct`s; `None` if nothing is controlled."""
        return None

    def safe_dt(self, state: PyTree) -> Array:
        """The longest time step that is stable at this state; infinite if there is no such bound."""
        return jnp.asarray(jnp.inf)

    def invariants(self, state: PyTree) -> dict[str, Array]:
        """Quantities that the physics keeps, or changes in a known way: for tests and reports."""
        return {}


class SteadySimulator(eqx.Module):
    """The abstract simulator of something at rest: a state at which a residual vanishes.

    A subclass defines `residual` and `guess`.
    """

    @abc.abstractmethod
    def residual(self, state: PyTree, control: PyTree = None) -> PyTree:
        """F(state; parameters, control), with the structure of the state; zero at rest."""

    @abc.abstractmethod
    def guess(self, control: PyTree = None) -> PyTree:
        """Where `solve` starts, if it is not told."""

    def solve(
        self,
        control: PyTree = None,
        guess: PyTree = None,
        *,
        solver: optx.AbstractRootFinder | None = None,
        max_steps: int = 64,
        throw: bool = True,
    ) -> PyTree:
        """The state at rest, by Newton's method.

        Its derivatives with respect to the parameters and the control follow from the residual at the answer (implicit
        function theorem); no iteration is differentiated.

        **Arguments:**

        - `control`: passed to `residual`.
        - `guess`: where to start; `self.guess(control)` if it is `None`.
        - `solver`: an Optimistix root finder; Newton's method by default, to a relative and absolute tolerance of 1e-8 in
          double and 1e-5 in single precision.
        - `throw`: whether to raise if `max_steps` do not suffice; otherwise the last iterate is returned.
        """
        start = self.guess(control) if guess is None else guess
        if solver is None:
            tolerance = 1e-8 if jnp.result_type(*_floats(start)) == jnp.float64 else 1e-5
            solver = optx.Newton(rtol=tolerance, atol=tolerance)
        dynamic, static = eqx.partition((self, control), eqx.is_array)

        def residual(state, dynamic):
            simulator, control = eqx.combine(dynamic, static)
            return simulator.residual(state, control)

        return optx.root_find(residual, solver, start, dynamic, max_steps=max_steps, throw=throw).value


def _floats(tree: PyTree) -> list[Array]:
    return jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
