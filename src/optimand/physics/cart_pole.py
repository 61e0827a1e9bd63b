r"""A pole that is balanced on a cart: the standard small problem of control.

A cart of mass M is pushed by a force F along a line; on it stands, freely hinged, a pole of mass m and length 2 l, whose angle
\(\theta\) is measured from upright. Without friction

$$\ddot\theta = \frac{g \sin\theta - a \cos\theta}{l \big(\tfrac43 - \tfrac{m \cos^2\theta}{M + m}\big)}, \qquad
  \ddot x = a - \frac{m l \ddot\theta \cos\theta}{M + m}, \qquad a = \frac{F + m l \dot\theta^2 \sin\theta}{M + m},$$

the equations of Barto, Sutton and Anderson (1983) without friction, integrated by the classical Runge-Kutta method (theirs used
Euler's). Near upright the linear-quadratic regulator balances it: `lqr` has the gains.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.arguments import need_positive
from ..core.errors import ArgumentError
from .simulator import Simulator

__all__ = ["CartPole", "CartPoleState", "lqr"]


class CartPoleState(eqx.Module):
    """`position` (m) and `velocity` (m/s) of the cart; `angle` (rad, from upright) and `angular_velocity` (rad/s) of the pole."""

    position: Float[Array, ""]
    velocity: Float[Array, ""]
    angle: Float[Array, ""]
    angular_velocity: Float[Array, ""]

    def vector(self) -> Float[Array, "4"]:
        """The four numbers in this order."""
        return jnp.stack([self.position, self.velocity, self.angle, self.angular_velocity])

    @staticmethod
    def from_vector(vector: Float[Array, "4"]) -> "CartPoleState":
        """The reverse of `vector`."""
        return CartPoleState(vector[0], vector[1], vector[2], vector[3])


class CartPole(Simulator):
    """The simulator. A control is the force on the cart in newton, held during the time step; `None` is none.

    **Arguments:** masses of cart and pole in kg, `half_length` of the pole in m, `gravity` in m/s^2, the time step `dt` in s.

    Raises `ArgumentError`, naming the argument, for a number that is not positive.

    ```python
    pole = om.physics.CartPole()
    gain = om.physics.lqr(pole)
    state = pole.initial(angle=0.1)
    for _ in range(100):
        state = pole.step(state, -gain @ state.vector())
    abs(state.angle)  # below 0.01
    ```
    """

    cart_mass: Any = 1.0
    pole_mass: Any = 0.1
    half_length: Any = 0.5
    gravity: Any = 9.8
    dt: Any = 0.02

    def __check_init__(self):
        for name in ("cart_mass", "pole_mass", "half_length", "gravity", "dt"):
            need_positive(name, getattr(self, name))

    def initial(
        self, position: Any = 0.0, velocity: Any = 0.0, angle: Any = 0.0, angular_velocity: Any = 0.0
    ) -> CartPoleState:
        """The state with these numbers."""
        return CartPoleState(*map(jnp.asarray, (position, velocity, angle, angular_velocity)))

    def controls(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), jnp.zeros(()).dtype)

    def acceleration(self, state: CartPoleState, force: Any = 0.0) -> tuple[Array, Array]:
        """Of the cart, in m/s^2, and of the angle, in rad/s^2."""
        total, moment = self.cart_mass + self.pole_mass, self.pole_mass * self.half_length
        sine, cosine = jnp.sin(state.angle), jnp.cos(state.angle)
        push = (force + moment * state.angular_velocity**2 * sine) / total
        inertia = self.half_length * (4 / 3 - self.pole_mass * cosine**2 / total)
        angular = (self.gravity * sine - cosine * push) / inertia
        return push - moment * angular * cosine / total, angular

    def step(self, state: CartPoleState, control: Any = None) -> CartPoleState:
        force = 0.0 if control is None else control

        def rate(vector):
            state = CartPoleState.from_vector(vector)
            linear, angular = self.acceleration(state, force)
            return jnp.stack([state.velocity, linear, state.angular_velocity, angular])

        x, h = state.vector(), self.dt
        k1 = rate(x)
        k2 = rate(x + h / 2 * k1)
        k3 = rate(x + h / 2 * k2)
        k4 = rate(x + h * k3)
        return CartPoleState.from_vector((x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)).astype(x.dtype))

    def invariants(self, state: CartPoleState) -> dict[str, Array]:
        """The energy in joule, which is kept where no force acts; zero of the potential at the hinge."""
        moment = self.pole_mass * self.half_length
        linear = 0.5 * (self.cart_mass + self.pole_mass) * state.velocity**2
        coupled = moment * state.velocity * state.angular_velocity * jnp.cos(state.angle)
        turning = 2 / 3 * moment * self.half_length * state.angular_velocity**2
        return {"energy": linear + coupled + turning + moment * self.gravity * jnp.cos(state.angle)}


def lqr(
    simulator: CartPole, state_cost: Any = None, control_cost: float = 0.01
) -> Float[Array, "4"]:
    r"""The gains K of the linear-quadratic regulator of the upright pole: the force is \(-K s\).

    Minimises \(\sum_t s_t^\top Q s_t + R F_t^2\) over the linearisation of a time step at rest, by the discrete algebraic Riccati
    equation. It runs on the host, outside of transformations.

    **Arguments:** `state_cost`, Q, by default diag(1, 1, 10, 1) in the order of `CartPoleState.vector`; `control_cost`, R.

    Raises `ArgumentError` if Q is not a symmetric 4 x 4 matrix or R not positive.
    """
    import scipy.linalg

    cost = np.diag([1.0, 1.0, 10.0, 1.0]) if state_cost is None else np.asarray(state_cost, float)
    if cost.shape != (4, 4) or not np.allclose(cost, cost.T):
        raise ArgumentError("state_cost", f"must be a symmetric 4 x 4 matrix, not of shape {cost.shape}.")
    need_positive("control_cost", control_cost)

    def step(vector, force):
        return simulator.step(CartPoleState.from_vector(vector), force).vector()

    rest = jnp.zeros(4)
    a, b = (np.asarray(part, float) for part in jax.jacobian(step, (0, 1))(rest, jnp.zeros(())))
    b = b[:, None]
    p = scipy.linalg.solve_discrete_are(a, b, cost, np.array([[control_cost]]))
    return jnp.asarray(np.linalg.solve(control_cost + b.T @ p @ b, b.T @ p @ a)[0])
