"""Where arrays lie: the batch is split over the mesh, and parameters too under "fsdp"."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from resa_jax.errors import UserError


# Tensors below this size stay whole on every device: gathering them costs more than storing them.
_FSDP_MIN_BYTES = 256 * 2**10


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all processes, in the order of slices, processes and ids.

    Row i of a global batch lies where the order of the processes says, whatever the topology: the
    orders that suit an interconnect (`jax.make_mesh`) give a process's rows to devices of others.
    On several TPU slices a first axis, `slice`, counts them.

    The axes are automatic: XLA's partitioner places everything that is not constrained, so a
    program means the same on 1 and on 256 devices (BatchNorm's means are those of the global
    batch).
    """
    devices = jax.devices() if devices is None else devices
    ordered = sorted(devices, key=lambda d: (_slice(d), d.process_index, d.id))
    num_slices = len({_slice(device) for device in ordered})
    shape = (len(ordered),) if num_slices == 1 else (num_slices, len(ordered) // num_slices)
    names = ("slice", "data")[-len(shape) :]
    return Mesh(np.array(ordered).reshape(shape), names, axis_types=(AxisType.Auto,) * len(shape))


def _slice(device):
    return getattr(device, "slice_index", 0)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis split over all devices."""
    return NamedSharding(mesh, P(mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def check_divisible(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Refuses a global batch that the devices, or their micro-batches, do not divide."""
    parts = mesh.size * micro_batches
    if batch_size % parts:
        below = batch_size // parts * parts
        sizes = f"{below} or {below + parts}" if below else parts
        micro = f" in {micro_batches} micro-batches each" if micro_batches > 1 else ""
        raise UserError(
            f"config.batch_size is {batch_size}, which the {mesh.size} devices{micro} do not "
            f"divide; {sizes} would do."
        )


def to_devices(
    batch: Mapping[str, Any], mesh: Mesh, names: Sequence[str] = ("images", "sizes")
) -> tuple[jax.Array, ...]:
    """Arrays of a batch, of which each process has its rows, as global arrays over the mesh."""
    return tuple(
        jax.make_array_from_process_local_data(batch_sharding(mesh), batch[name]) for name in names
    )


def state_sharding(mesh: Mesh, shapes, mode: str):
    """Shardings for every array of a train state.

    Args:
      shapes: a pytree with `shape` and `dtype`, as from `jax.eval_shape`.
      mode: "dp" replicates everything; "fsdp" splits each large tensor along its largest axis that
        the number of a slice's devices divides, and replicates the others.
    """
    parts = mesh.shape["data"]

    def spec(leaf):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        divisible = [a for a, n in enumerate(leaf.shape) if n % parts == 0]
        if mode == "dp" or size < _FSDP_MIN_BYTES or not divisible:
            return replicated(mesh)
        axis = max(divisible, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, P(*[None] * axis, "data"))

    return jax.tree.map(spec, shapes)


def shard_rows(x: jax.Array) -> jax.Array:
    """Keeps the rows of `x` split over the mesh in use; without a mesh, `x` itself."""
    return _constrain(x, lambda names: P(names))


def gather_rows(x: jax.Array) -> jax.Array:
    """All rows of `x` on every device of the mesh in use; without a mesh, `x` itself."""
    return _constrain(x, lambda names: P())


def _constrain(x, spec):
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, spec(mesh.axis_names))


def on_each_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(params, batch_stats, views)` run by each device of the mesh on its rows of views.

    Rows (the results' first part) stay where they are; its second part must be equal on all.
    Without a mesh, `function` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    rows, whole = P(mesh.axis_names), P()
    return jax.shard_map(function, in_specs=(whole, whole, rows), out_specs=(rows, whole))


def for_each_device(params: Any, reduction: str = "float32") -> Any:
    """The parameters for a device's own rows, inside of `on_each_device`.

    Their gradients are those of all rows: summed over the devices here and nowhere else, so once,
    however often a parameter is used. Left to the partitioner a bfloat16 network's are summed in
    bfloat16, and each use apart.

    Args:
      reduction: dtype of the sum over devices; a tensor's own dtype if that is wider.
    """
    axes = _manual_axes()
    if not axes:
        return params

    @jax.custom_vjp
    def spread(x):
        return jax.lax.pcast(x, axes, to="varying")

    def backward(_, gradient):
        narrow = gradient.astype(reduction) if reduction == "bfloat16" else gradient
        return (jax.lax.psum(narrow, axes).astype(gradient.dtype),)

    spread.defvjp(lambda x: (spread(x), None), backward)
    return jax.tree.map(spread, params)


def mean_over_devices(x: Any) -> Any:
    """The mean of each array over all devices, inside of `on_each_device`; else the array."""
    axes = _manual_axes()
    return jax.lax.pmean(x, axes) if axes else x


def count_devices() -> int:
    """How many devices share the rows, inside of `on_each_device`; else 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in mesh.manual_axes)


def _manual_axes():
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)
