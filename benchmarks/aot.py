"""What the compiler makes of a recipe's programs for TPUs or GPUs that are not at hand.

python -m benchmarks.aot --topology=v5e:4x4 --config=configs/imagenet_vits.py --output=FILE.json
[--slices=2] [--platform=cuda --topology=h100:8] [--programs=train_step,make_views,init]
[--config.FIELD=VALUE ...]

XLA's own compilers for these chips run on a CPU host. TPU: `pip install 'resa_jax[aot]'` brings
libtpu. CUDA: the two plugin wheels of the installed JAX and cuDNN, for attention's kernel, as in
`pip install --no-deps --target=DIR jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION
nvidia-cudnn-cu13` with DIR on PYTHONPATH.

The file has `process_order`, the process of each position in the mesh; `model_flops_per_device` of
a step, as a run's MFU counts them; `state_bytes_per_device` of the train state; then the figures of
the first program, and those of the others under their names: `peak_bytes_per_device`;
`flops_per_device`, as the compiler counts them; `donated_bytes_per_device`, reused for the results;
`collectives`, each with kind, dtype, the bytes that a device is given, and the number of
operations; `compile_seconds`; and for TPUs `estimated_cycles` by scope, which ranks programs and is
no time: a loop's body counts once, a custom kernel not at all.
"""

import json
import math
import os
import re
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from absl import flags


# Before JAX starts: libtpu asks no metadata server and shares its lock file.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Without a GPU there is nothing that could time the candidates of a matrix product.
_CUDA_FLAGS = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from resa_jax.cli import run  # noqa: E402
from resa_jax.config import load_config  # noqa: E402
from resa_jax.data.decoding import Decoding  # noqa: E402
from resa_jax.errors import UserError  # noqa: E402
from resa_jax.sharding import check_divisible, create_mesh  # noqa: E402
from resa_jax.training.flops import train_flops  # noqa: E402
from resa_jax.training.programs import lower_programs  # noqa: E402


_PLATFORM = flags.DEFINE_enum("platform", "tpu", ["tpu", "cuda"], "Compiler.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "v5e:4x4, v5p:2x2x2, ... as libtpu names them; h100:N.", required=True
)
_SLICES = flags.DEFINE_integer("slices", 1, "TPU slices of this topology.", lower_bound=1)
_CONFIG = flags.DEFINE_string("config", None, "Recipe: FILE.py or FILE.py:VARIANT.", required=True)
_PROGRAMS = flags.DEFINE_list("programs", ["train_step"], "train_step, make_views, init.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.", required=True)

# One H100 80GB SXM, as XLA describes the device that it compiles for.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "u8": 8, "s8": 8, "f64": 64, "s64": 64, "u64": 64}
_SCOPES = ("forward", "assignment", "loss", "update")  # jax.named_scope of the train step
_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def main(arguments: list[str]) -> None:
    """Compiles the programs and writes what was found."""
    overrides = [a.removeprefix("--config.") for a in arguments[1:]]
    unknown = set(_PROGRAMS.value) - {"train_step", "make_views", "init"}
    if unknown or not _PROGRAMS.value:
        raise UserError(
            f"--programs={','.join(_PROGRAMS.value)}: a list of train_step, make_views and init."
        )
    config = load_config(_CONFIG.value, overrides)
    if "auto" in (config.data.mean, config.data.std):  # a run takes them from its data
        config.data.update({"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)})
    mesh = create_mesh(topology_devices(_PLATFORM.value, _TOPOLOGY.value, _SLICES.value))
    check_divisible(config.batch_size, mesh, config.micro_batches)
    result = {
        "command": " ".join(["python -m benchmarks.aot", *sys.argv[1:]]),
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "jax": jax.__version__,
        "compiler": _compiler_version(_PLATFORM.value),
        "process_order": [device.process_index for device in mesh.devices.flat],
    }
    # A whole mesh would want its devices at hand for the first array made under it.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = lower_programs(config, mesh, Decoding.of(config.data).shape, 1000, 100_000)
        programs = {}
        for name in _PROGRAMS.value:
            program = getattr(lowered, name)
            programs[name] = figures(program.lower() if name == "init" else program)
    result |= {
        "model_flops_per_device": config.batch_size
        / mesh.size
        * train_flops(config, lowered.networks.momentum is not None),
        "state_bytes_per_device": sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(lowered.abstract_state)
        ),
    }
    first = _PROGRAMS.value[0]
    result |= {"program": first} | programs.pop(first) | programs
    Path(_OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{_TOPOLOGY.value}: {result['peak_bytes_per_device'] / 2**30:.2f} GiB a device, "
        f"compiled in {result['compile_seconds']:.0f} s"
    )


def topology_devices(platform: str, topology: str, slices: int = 1) -> list[jax.Device]:
    """The devices of a topology that need not exist here.

    Args:
      platform: "tpu" or "cuda".
      topology: "v5e:4x4" and the like, as libtpu names them; "h100:8" for GPUs of one host.
      slices: TPU slices of this shape.
    """
    try:
        if platform == "tpu":
            more = {"num_slices": slices} if slices > 1 else {}
            found = topologies.get_topology_desc(topology, platform="tpu", **more)
        else:
            chip, _, count = topology.partition(":")
            if chip != "h100" or not count.isdigit():
                raise UserError(f"--topology={topology}: for CUDA it is h100:N, N GPUs of a host.")
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_CUDA_FLAGS}"
            found = topologies.get_topology_desc(
                "h100", platform="cuda", target_config=_H100, topology=f"1x1x{count}"
            )
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"--platform={platform} --topology={topology}: the compiler is not installed or does "
            f"not know it ({str(error).splitlines()[0]}). See {__name__}'s first lines."
        ) from error
    return list(found.devices)


def figures(program: jax.stages.Lowered) -> dict[str, Any]:
    """Compiles a program; what the compiler says of it."""
    start = time.perf_counter()
    compiled = program.compile()
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    memory: Any = compiled.memory_analysis()
    result = {
        "peak_bytes_per_device": memory.peak_memory_in_bytes,
        "flops_per_device": (compiled.cost_analysis() or {}).get("flops"),
        "donated_bytes_per_device": memory.alias_size_in_bytes,
        "collectives": collectives(text),
        "compile_seconds": round(seconds, 1),
    }
    cycles = estimated_cycles(text)
    return result | ({"estimated_cycles": cycles} if cycles else {})


def collectives(hlo: str) -> list[dict[str, Any]]:
    """The collective operations of a compiled program by kind and dtype, the most bytes first.

    Bytes are those that a device is given by all of them in one step. An operation that the
    compiler has spread over several fusions, to overlap it, is found in each of them and counts
    once: by its channel, which others share only at the top.
    """
    at_top = False
    pattern = re.compile(rf"= (\(*[a-z0-9]+\[.*?) ({_KINDS})(-start)?\((.*)")
    seen: set[tuple[str, ...]] = set()
    count: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    for line in hlo.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            at_top = line.startswith("ENTRY ")
        match = pattern.search(line)
        if not match:
            continue
        shapes, kind, start, rest = match.groups()
        arrays = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shapes)
        channel = re.search(r"channel_id=(\d+)", rest)
        if channel and not at_top:
            operation = kind, channel[1], str(arrays)
            if operation in seen:
                continue
            seen.add(operation)
        if start and kind != "all-reduce":  # operands and results, the latter last
            arrays = arrays[len(arrays) // 2 :]
        for dtype in {dtype for dtype, _ in arrays}:
            count[kind, dtype] += 1
        for dtype, dims in arrays:
            elements = math.prod(int(n) for n in dims.split(",") if n)
            size[kind, dtype] += elements * _BITS.get(dtype, 32) // 8
    return [
        {"kind": kind, "dtype": dtype, "bytes": total, "count": count[kind, dtype]}
        for (kind, dtype), total in size.most_common()
    ]


def estimated_cycles(hlo: str) -> dict[str, int]:
    """The TPU compiler's estimates, in all and by scope, the largest first; empty for others."""
    found: Counter[str] = Counter()
    for line in hlo.splitlines():
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
        if cycles:
            name = re.search(r'op_name="([^"]*)"', line)
            found[_scope(name[1] if name else "")] += int(cycles[1])
    return {"all": found.total()} | dict(found.most_common()) if found else {}


def _scope(op_name):
    """Of "jit(train_step)/transpose(jvp(forward))/..." the words "forward, backward pass"."""
    scope = re.search(rf"[/(]({'|'.join(_SCOPES)})\b", op_name)
    if not scope:
        return "other"
    return f"{scope[1]}, backward pass" if "transpose(" in op_name else scope[1]


def _compiler_version(platform):
    package = {"tpu": "libtpu", "cuda": "jax-cuda13-pjrt"}[platform]
    return f"{package} {version(package)}"


if __name__ == "__main__":
    run(main, overrides=True)
