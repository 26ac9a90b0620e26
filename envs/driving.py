"""Gymnasium's car, the same to the last bit, in half of Python's time."""

import math

from gymnasium.envs.box2d.car_dynamics import (
    ENGINE_POWER,
    FRICTION_LIMIT,
    SIZE,
    WHEEL_MOMENT_OF_INERTIA,
    Car,
)

BRAKE_FORCE = 15  # radians per second
STIFFNESS = 205000 * SIZE * SIZE  # what makes a force of a difference of speeds


class SwiftCar(Car):
    """The same forces, computed with Python's numbers instead of NumPy's, and each body read once.

    Each operation is the parent's, in its order, for each rounds.
    """

    def gas(self, gas: float) -> None:
        gas = min(max(float(gas), 0.0), 1.0)
        for wheel in self.wheels[2:4]:
            wheel.gas += min(gas - wheel.gas, 0.1)  # gradually more, but less at once

    def brake(self, b: float) -> None:
        super().brake(float(b))

    def steer(self, s: float) -> None:
        super().steer(float(s))

    def step(self, dt: float) -> None:
        for wheel in self.wheels:
            joint, omega = wheel.joint, wheel.omega
            turn = wheel.steer - joint.angle
            joint.motorSpeed = math.copysign(min(50.0 * abs(turn), 3.0), turn)

            grass = not wheel.tiles
            friction_limit = FRICTION_LIMIT * 0.6
            for tile in wheel.tiles:
                friction_limit = max(friction_limit, FRICTION_LIMIT * tile.road_friction)

            # The wheel's directions, sideways and forward, are (cosine, sine), (-sine, cosine).
            direction, velocity = wheel.GetWorldVector((1, 0)), wheel.linearVelocity
            cosine, sine = direction.x, direction.y
            forward_speed = -sine * velocity.x + cosine * velocity.y
            side_speed = cosine * velocity.x + sine * velocity.y

            power = dt * ENGINE_POWER * wheel.gas
            omega += power / WHEEL_MOMENT_OF_INERTIA / (abs(omega) + 5.0)
            self.fuel_spent += power
            if wheel.brake >= 0.9:
                omega = 0
            elif wheel.brake > 0:
                less = min(BRAKE_FORCE * wheel.brake, abs(omega))
                omega += -less if omega > 0 else less
            wheel.phase += omega * dt

            forward = (-forward_speed + omega * wheel.wheel_rad) * STIFFNESS
            side = -side_speed * STIFFNESS
            force = math.sqrt(forward * forward + side * side)
            self._skid(wheel, grass, force > 2.0 * friction_limit)
            if force > friction_limit:
                forward = forward / force * friction_limit
                side = side / force * friction_limit
            wheel.omega = omega - dt * forward * wheel.wheel_rad / WHEEL_MOMENT_OF_INERTIA
            wheel.ApplyForceToCenter(
                (side * cosine + forward * -sine, side * sine + forward * cosine), True
            )

    def _skid(self, wheel, grass: bool, skids: bool) -> None:
        """The traces on the ground, which a spectator sees."""
        if not skids:
            wheel.skid_start = wheel.skid_particle = None
            return
        trace = wheel.skid_particle
        if trace and trace.grass == grass and len(trace.poly) < 30:
            trace.poly.append((wheel.position[0], wheel.position[1]))
        elif wheel.skid_start is None:
            wheel.skid_start = wheel.position
        else:
            wheel.skid_particle = self._create_particle(wheel.skid_start, wheel.position, grass)
            wheel.skid_start = None
