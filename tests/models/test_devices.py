"""A vision transformer walks the same path on one device and on several, which here are simulated."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.thorough

WALKS = """
import os
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
import operator, jax, jax.numpy as jnp, equinox as eqx, numpy as np, optax, wmlib as wm
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P, reshard

x, y = jax.random.normal(jax.random.key(1), (8, 3, 8, 8)), jnp.arange(8) % 4

def walked(net, x, y):
    task = wm.objectives.Task(operator.call, x, y, 4)
    method = wm.PenalisedDescent(optax.sgd(0.1, momentum=0.9), 1.0, 4)
    how = dict(method=method, steps=3, key=jax.random.key(0), held_out=x)
    path = wm.walk(operator.call, net, task, x, wm.distances.kl, **how)
    return [np.asarray(a) for a in jax.tree.leaves((path.lengths, path.drift, path.kept, eqx.filter(path.weights[-1], eqx.is_array)))]

for stem, head in (("convolutions", "mean"), ("patches", "classification")):
    sizes = dict(in_shape=(3, 8, 8), patch=4, width=8, depth=1, heads=2, units=16, classes=4, dropout=0.0)
    net = wm.models.Transformer(stem=stem, head=head, **sizes, key=jax.random.key(0))
    alone = walked(net, x, y)
    # Images divided, by the types of arrays.
    with jax.set_mesh(jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))):
        whole = jax.tree.map(lambda a: reshard(a, P()) if eqx.is_array(a) else a, net)
        explicit = walked(whole, reshard(x, P("d")), reshard(y, P("d")))
    # Images and weights divided, as the compiler sees fit.
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    def place(a):
        if not eqx.is_array(a):
            return a
        axis = next((i for i, n in enumerate(a.shape) if n % 4 == 0), None)
        return jax.device_put(a, NamedSharding(mesh, P(*("d" if i == axis else None for i in range(a.ndim)))))
    auto = walked(*jax.tree.map(place, (net, x, y)))
    for found in (explicit, auto):
        for a, b in zip(found, alone, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
"""


def test_a_walk_on_several_devices_is_that_on_one():
    done = subprocess.run([sys.executable, "-c", WALKS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
