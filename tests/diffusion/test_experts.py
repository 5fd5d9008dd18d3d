"""The switch between two denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.core.types import Time
from dit_video.diffusion.experts import by_time
from dit_video.diffusion.schedule import Schedule


@pytest.mark.parametrize("steps, shift, boundary", [(10, 12.0, 0.875), (7, 5.0, 0.9)])
def test_the_boundary_belongs_to_the_expert_for_noise(steps, shift, boundary):
    velocity = jax.jit(by_time(lambda x, t, m: (x + 1, m), lambda x, t, m: (x - 1, m), boundary))
    x = jnp.zeros((1, 1, 2, 2, 1))
    times = [*Schedule(steps, shift).instants().model[:-1], np.float32(boundary)]
    signs = []
    for t in times:
        known = Time(jnp.array([[t, 0.0]], jnp.float32), jnp.zeros((1, 1, 2, 2), jnp.int32).at[0, 0, 0].set(1))
        v, memory = velocity(x, known, (7,))
        assert memory[0] == 7
        signs.append(float(v[0, 0, 1, 1, 0]))
    assert signs == [1.0 if round(1000 * t) >= 1000 * boundary else -1.0 for t in times]  # as the reference decides
    assert signs[-1] == 1.0 and -1.0 in signs
