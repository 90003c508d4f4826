"""Where arrays stand on the devices: examples shared out over all of them, parameters on each or shared out as well."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from minibert.tpu.model import AXIS, LAYERS


def mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """One axis over the devices, by default all there are, of all hosts."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The same on each device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Examples shared out; they are the axis number `axis`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def parameters(mesh: Mesh, shapes: Any, shared: bool) -> Any:
    """Where each parameter (or moment) stands: on every device, or, if `shared`, a part of it on each.

    Shared out are weights of products by rows, and tables of embeddings, whose rows are too many words to divide, by
    columns. Vectors, and what does not divide, stand on each device: where these are 2, 4, 8 or more, that is little.
    """

    def place(path: Any, shape: Any) -> NamedSharding:
        first = 1 if path[0].key == LAYERS else 0  # the axis of layers, over which a loop runs, stays whole
        axis = 1 if path[0].key.startswith("embeddings") else first
        is_matrix = len(shape.shape) == first + 2
        return rows(mesh, axis) if shared and is_matrix and shape.shape[axis] % mesh.size == 0 else everywhere(mesh)

    return jax.tree_util.tree_map_with_path(place, shapes)


def put(tree: Any, shardings: Any) -> Any:
    """Host arrays, the same on every host, onto the devices, by one sharding for all or a tree of them; a host copies
    what its own devices hold.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def one(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        # A copy: on a CPU JAX would take the array's own memory, which others write to.
        return jax.make_array_from_callback(array.shape, sharding, lambda index: np.array(array[index]))

    return jax.tree.map(one, tree, shardings)


def get(tree: Any) -> Any:
    """Arrays of the devices, whole, in this host's memory. Where others hold parts of them all hosts have to ask."""

    def one(array: jax.Array) -> np.ndarray:
        if not (array.is_fully_addressable or array.is_fully_replicated):
            assert isinstance(array.sharding, NamedSharding)
            array = _gathering(array.sharding.mesh)(array)  # one at a time: the devices have no room for two of all
        return np.asarray(array)

    return jax.tree.map(one, tree)


@cache
def _gathering(mesh: Mesh) -> Any:
    """A function that brings parts from everywhere to everywhere, compiled once for each shape."""
    return jax.jit(lambda x: x, out_shardings=everywhere(mesh))
