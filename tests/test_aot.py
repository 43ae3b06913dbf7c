"""Programs compiled for TPUs that are not at hand, by the compiler that libtpu brings."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.aot import collectives, topology_devices
from benchmarks.scaling_model import network_shapes
from resa_jax.config import load_config
from resa_jax.sharding import create_mesh


ROOT = Path(__file__).parents[1]
SMALL = ["batch_size=64", "encoder.depth=1", "encoder.width=64", "encoder.image_size=32"]
SMALL += ["method.hidden_size=96", "method.output_size=80"]


def test_a_collective_that_is_spread_over_fusions_counts_once():
    hlo = """
%begin.1 (z: bf16[1,5]) -> bf16[2,5] {
  %b = bf16[2,5]{1,0} all-gather(%z), channel_id=2, dimensions={0}
}
%go_on.1 (z: bf16[1,5]) -> bf16[2,5] {
  %c = bf16[2,5]{1,0} all-gather(%z), channel_id=2, dimensions={0}
}
ENTRY %main (x: f32[8,4], y: f32[3]) -> f32[16] {
  %a = (f32[8,4]{1,0}, f32[3]{0}) all-reduce(%x, %y), channel_id=1, to_apply=%add
  %f = f32[5]{0} all-reduce(%x, %y), channel_id=1, to_apply=%add
  %g = bf16[2,5]{1,0} fusion(%z), kind=kOutput, calls=%begin.1
  %h = bf16[2,5]{1,0} fusion(%z), kind=kOutput, calls=%go_on.1
  %d = ((f32[2]{0}), (f32[16]{0})) all-gather-start(%z), channel_id=3, dimensions={0}
  %e = f32[16]{0} all-gather-done(%d)
}
"""
    assert collectives(hlo) == [
        {"kind": "all-reduce", "dtype": "f32", "bytes": 4 * 40, "count": 2},
        {"kind": "all-gather", "dtype": "f32", "bytes": 4 * 16, "count": 1},
        {"kind": "all-gather", "dtype": "bf16", "bytes": 20, "count": 1},
    ]


@pytest.mark.aot
@pytest.mark.parametrize(
    ("topology", "slices"),
    [
        *((f"v5e:{shape}", 1) for shape in ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
        *((f"v6e:{shape}", 1) for shape in ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
        *((f"v5p:{shape}", 1) for shape in ("2x2x1", "2x2x2", "2x2x4", "4x4x4", "4x4x8")),
        *((f"tpu7x:{shape}", 1) for shape in ("2x2x2", "2x2x4", "4x4x4")),
        *((f"v3:{shape}", 1) for shape in ("2x2", "4x4")),
        ("v5e:4x4", 2),
        ("v5p:2x2x2", 2),
    ],
)
def test_the_mesh_is_in_the_order_of_slices_and_processes(topology, slices):
    mesh = create_mesh(topology_devices("tpu", topology, slices))
    order = [(getattr(d, "slice_index", 0), d.process_index) for d in mesh.devices.flat]
    assert order == sorted(order)
    assert mesh.shape.get("slice", 1) == slices


@pytest.mark.aot
@pytest.mark.parametrize(
    ("topology", "precision", "gradients"),
    [("v5e:2x4", "float32", "f32"), ("v5e:4x4", "bfloat16", "bf16")],
)
def test_the_compiled_step(tmp_path, topology, precision, gradients):
    """Order, collectives, their dtypes and donation of a bfloat16 ViT's step."""
    output = tmp_path / "aot.json"
    fields = [*SMALL, f"gradient_reduction={precision}"]
    command = [sys.executable, "-m", "benchmarks.aot", "--config=configs/imagenet_vits.py"]
    command += [f"--topology={topology}", f"--output={output}"]
    command += [f"--config.{field}" for field in fields]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads(output.read_text())

    assert found["process_order"] == sorted(found["process_order"])
    bytes_of = {(c["kind"], c["dtype"]): c["bytes"] for c in found["collectives"]}
    assert set(kind for kind, _ in bytes_of) == {"all-gather", "all-reduce"}
    assert bytes_of["all-gather", "f32"] == 4 * 64 * (64 + 2 * 80)  # encodings, two embeddings
    width = {"f32": 4, "bf16": 2}[gradients]
    parameters = trained_parameters(fields)
    assert parameters * width <= bytes_of["all-reduce", gradients] < parameters * width * 1.5
    # Parameters, their EMA and AdamW's two moments, in float32.
    assert found["donated_bytes_per_device"] >= found["state_bytes_per_device"]
    assert found["state_bytes_per_device"] > 4 * 4 * parameters


def trained_parameters(fields):
    shapes = network_shapes(load_config("configs/imagenet_vits.py", fields))
    return sum(math.prod(s) for path, s in shapes.params.items() if path not in shapes.frozen)
