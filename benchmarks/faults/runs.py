"""A tiny run of the whole command, and what must be the same at its end."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


TIMEOUT = 300  # seconds after which a run counts as one that hangs
_FIELDS = (
    *(
        "steps=24",
        "batch_size=32",
        "log_every=4",
        "eval.every_epochs=1",
        "checkpoint.every_epochs=1",
    ),
    *("eval.max_images=64", "encoder.name=vitc_s16", "encoder.patch_size=4", "encoder.width=64"),
    *("encoder.depth=1", "data.mean=(0.3,0.3,0.3)", "data.std=(0.4,0.4,0.4)"),
)
_TIMES = ("images_per_second", "data_wait_fraction", "tflops_per_device", "seconds/")


def write_images(folder: Path) -> Path:
    """The first 256 digits, 8 steps an epoch."""
    images, labels = load_digits(return_X_y=True)
    images = np.uint8(images[:256].reshape(256, 8, 8) * 15)
    np.savez(folder / "digits.npz", images=images, labels=labels[:256])
    return folder / "digits.npz"


def start(workdir: Path, images: Path, processes: int = 1) -> list[subprocess.Popen]:
    """The processes of the run; one of them has two devices, two have one each."""
    command = [
        sys.executable,
        "-m",
        "resa_jax.main",
        "--config=digits:smoke",
        f"--workdir={workdir}",
    ]
    command += [f"--config.{field}" for field in (*_FIELDS, f"data.source=npz:{images}")]
    command += [f"--compile_cache={images.parent / f'cache-{processes}'}"]
    devices = f"--xla_force_host_platform_device_count={2 // processes}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            command.append(f"--coordinator_address=127.0.0.1:{free.getsockname()[1]}")
        command.append(f"--num_processes={processes}")
    return [
        subprocess.Popen(
            command + ([f"--process_id={number}"] if processes > 1 else []),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]


def finish(running: list[subprocess.Popen]) -> tuple[int | None, str]:
    """Exit code (the highest; None: it hung) and what the processes said."""
    said, codes = "", []
    for process in running:
        try:
            said += process.communicate(timeout=TIMEOUT)[0]
            codes.append(process.returncode)
        except subprocess.TimeoutExpired:
            kill(running)
            return None, said + (process.communicate()[0] or "")
    return max(codes, key=abs), said


def kill(running: list[subprocess.Popen]) -> None:
    """SIGKILL to all of them."""
    for process in running:
        process.kill()


def rows(workdir: Path) -> list[dict]:
    """The records of a run without their times."""
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(_TIMES)}
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


def checksums_of(workdir: Path, *, state: bool = True) -> dict[str, int]:
    """Of a run's export and, with `state`, of its last checkpoint."""
    from resa_jax.checkpoint import read_subtree
    from resa_jax.integrity import checksums
    from resa_jax.weights.export import read_tree
    from resa_jax.workdir import checkpoint_paths

    tree = {"encoder": read_tree(workdir / "encoder" / "weights")}
    if not state:
        return checksums(tree)
    parts = ("step", "params", "batch_stats", "ema_params", "ema_batch_stats", "opt_state")
    return checksums(tree | {"state": read_subtree(checkpoint_paths(workdir)[-1], *parts)})
