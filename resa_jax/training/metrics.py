"""What a run tells: `metrics.jsonl`, TensorBoard, and one line or one bar on the terminal."""

import json
import logging
import math
from collections.abc import Mapping
from typing import SupportsFloat

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter
from tqdm import tqdm

from resa_jax.data.images import visible
from resa_jax.data.view import View
from resa_jax.errors import UserError
from resa_jax.paths import AnyPath, Mirror
from resa_jax.terminal import progress_bar
from resa_jax.training.flops import peak_flops
from resa_jax.training.memory import gibibytes
from resa_jax.training.records import truncate_records
from resa_jax.training.wall_time import WallTime
from resa_jax.workdir import METRICS, checkpoint_paths


_LOG = logging.getLogger("resa_jax")
_SHOWN_IMAGES = 8
# Healthy batches have 1 / sqrt(d), 0.01 or more, and ranks above 5; few images have no rank at all.
_COLLAPSED_STD, _COLLAPSED_RANK, _WATCHED_BATCH = 2e-3, 1.5, 8
_BAD_IMAGES = 32  # before their share is looked at


class MetricsWriter:
    """Writes a run's records, on process 0, and stops the run when the loss is not finite.

    `hold` keeps a step's metrics, still being computed, and deals with those of the step before, so
    that reading them never makes the device wait. A step stands once in `metrics.jsonl`: starting
    at one drops the records after it, which an interrupted run wrote and this one will write
    again. To be used as a context manager.
    """

    def __init__(
        self,
        workdir: AnyPath,
        config: ConfigDict,
        clock: WallTime,
        first_step: int,
        total_steps: int,
        steps_per_epoch: int,
        flops: float,
    ):
        """Starts after `first_step`; the first ten steps and the last are always recorded."""
        self._workdir, self._clock = workdir, clock
        self._total_steps = total_steps
        self._steps_per_epoch, self._config = steps_per_epoch, config
        self._first_step, self._bad_images, self._collapsed = first_step, 0, False
        self._held: tuple[int, Mapping[str, jax.Array]] | None = None
        self._last = first_step, clock.split()
        self._flops = flops
        # The peaks are bfloat16's, which float32 has nothing to do with.
        self._peak = peak_flops(jax.devices()[0]) if config.precision == "bfloat16" else None
        self._active = jax.process_index() == 0
        if self._active:
            self._mirror = Mirror(workdir)
            self._mirror.fetch(METRICS)
            path = self._mirror.folder / METRICS
            truncate_records(path, first_step, config.log_every)
            self._file = path.open("a", encoding="utf-8")
            self._tensorboard = SummaryWriter(
                str(self._mirror.folder / "tensorboard"), purge_step=first_step + 1
            )
            self._bar = progress_bar(total_steps, first_step, "step")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._active:
            self._bar.close()
            self._tensorboard.close()
            self._file.close()
            self._mirror.close()

    def hold(self, step: int, metrics: Mapping[str, jax.Array], bad_images: int) -> None:
        """Takes the metrics of the step just launched, and finishes those of the one before.

        `bad_images` counts the undecodable images that this step's batch left out.
        """
        self.flush()
        self._bad_images += bad_images
        taken = (step - self._first_step) * self._config.batch_size // jax.process_count()
        if self._bad_images >= _BAD_IMAGES and 2 * self._bad_images > taken:
            raise UserError(
                f"{self._bad_images} images could not be decoded, where {taken} were needed. "
                "data.on_bad_image=skip is meant for single ones: see to the files."
            )
        self._held = step, metrics

    def flush(self) -> None:
        """Finishes the step that is held: waits for its metrics, checks and records them.

        Raises:
          FloatingPointError: when its loss is not finite.
        """
        if self._held is None:
            return
        (step, metrics), self._held = self._held, None
        loss = float(metrics["loss"])
        if not math.isfinite(loss):
            others = [n for n, x in metrics.items() if n != "loss" and not np.isfinite(float(x))]
            also = f", as are {', '.join(sorted(others))}" if others else ""
            raise FloatingPointError(
                f"The loss of step {step} is {loss}{also}; {_last_checkpoint(self._workdir)}."
            )
        if self._active:
            self._bar.update(step - self._bar.n)
        if step <= 10 or step % self._config.log_every == 0 or step == self._total_steps:
            record = jax.device_get(metrics) | self._throughput(step)
            if self._config.data.on_bad_image == "skip":
                record["bad_images"] = self._bad_images
            self.write(step, record)

    def publish(self) -> None:
        """Finishes the step that is held, and leaves every record where other readers find it."""
        self.flush()
        if self._active:
            self._tensorboard.flush()
            self._mirror.show(now=True)

    def write(self, step: int, record: Mapping[str, SupportsFloat]) -> None:
        """Writes one record of scalars: of the train step, or of an evaluation after that step."""
        if not self._active:
            return
        record = {name: float(value) for name, value in record.items()}
        epoch = step / self._steps_per_epoch
        self._file.write(json.dumps({"step": step, "epoch": epoch} | record) + "\n")
        self._file.flush()
        self._mirror.show()
        for name, value in record.items():
            self._tensorboard.add_scalar(name, value, step)
        if "loss" in record:
            self._report(step, epoch, record)
            self._watch(step, epoch, record)
        else:
            # The hidden layers' scores are for the report.
            shown = {k: v for k, v in record.items() if not k.startswith(("eval/p0", "eval/p1"))}
            self.say(", ".join(f"{name} {value:.4g}" for name, value in shown.items()))

    def show(self, step: int, views: tuple[Float[jax.Array, "m _ _ c"], ...]) -> None:
        """Puts the first images of a step's views into TensorBoard, side by side, as `views/N`."""
        if not self._active:
            return
        mean, std = np.array(self._config.data.mean), np.array(self._config.data.std)
        for number, view in enumerate(views):
            # Of the first device, since other processes' images are out of reach.
            images = np.asarray(view.addressable_shards[0].data)[:_SHOWN_IMAGES].astype(np.float32)
            pixels = np.rint((images * std + mean) * 255).clip(0, 255).astype(np.uint8)
            strip = visible(np.concatenate(pixels, axis=1))
            self._tensorboard.add_image(f"views/{number}", strip, step, dataformats="HWC")

    def say(self, text: str) -> None:
        """Logs a line."""
        _LOG.info("%s", text)

    def _throughput(self, step):
        # Since the last record; compilation, evaluations and checkpoints do not count.
        (last_step, last), now = self._last, self._clock.split()
        self._last = step, now
        wait = now["data_wait"] - last["data_wait"]
        busy = max(now["step"] - last["step"] + wait, 1e-9)
        rate = (step - last_step) * self._config.batch_size / busy
        flops = rate * self._flops / jax.device_count()
        record = {
            "images_per_second": rate,
            "data_wait_fraction": wait / busy,
            "tflops_per_device": flops / 1e12,
        }
        return record if self._peak is None else record | {"mfu_percent": 100 * flops / self._peak}

    def _watch(self, step, epoch, record):
        """Says once that the embeddings of a batch are all the same, or lie on a line."""
        if self._collapsed or epoch < 0.5 or self._config.batch_size < _WATCHED_BATCH:
            return
        std, rank = record.get("embedding_std", 1.0), record.get("effective_rank", math.inf)
        self._collapsed = std < _COLLAPSED_STD or rank < _COLLAPSED_RANK
        if self._collapsed:
            self.say(
                f"Warning: at step {step} the embeddings have collapsed: embedding_std is "
                f"{std:.2g}, effective_rank {rank:.2g} (1 / sqrt(dimensions), and more than a few, "
                "where they have not). Look at the images as views/0 in TensorBoard, and at the "
                f"learning rate; {_last_checkpoint(self._workdir)}."
            )

    def _report(self, step, epoch, record):
        rate = record["images_per_second"]
        text = f"epoch {epoch:.1f}, loss {record['loss']:.4f}, {rate:.0f} images/s"
        if "mfu_percent" in record:
            text += f", MFU {record['mfu_percent']:.0f} %"
        if not self._bar.disable:
            self._bar.set_postfix_str(text)
            return
        images = (self._total_steps - step) * self._config.batch_size
        remaining = tqdm.format_interval(images / rate)
        self.say(f"step {step}/{self._total_steps}, {text}, ETA {remaining}")


def _last_checkpoint(workdir):
    paths = checkpoint_paths(workdir)
    return f"the last good checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"


def describe(config: ConfigDict, mesh: Mesh, images: int, total_steps: int, memory: int) -> str:
    """A line that says what is about to run, and where; `memory` in bytes a device."""
    kinds = sorted({device.device_kind for device in mesh.devices.flat})
    micro = "" if config.micro_batches == 1 else f" in {config.micro_batches} micro-batches"
    how, color = config.data, any(View(**view).has_color for view in config.views)
    left_out = ""
    if color and (how.channels, how.bits) != (3, 8):
        left_out = (
            " Jitter, graying and solarising are left out: they are for RGB of 8 bits, and these "
            f"images have {how.channels} channels of {how.bits} bits."
        )
    return (
        f"{config.method.name}, {config.encoder.name} on {images} images of {config.data.source}: "
        f"{total_steps} steps of {config.batch_size} images{micro} on {mesh.size} x "
        f"{' and '.join(kinds)}, {jax.process_count()} process(es), {gibibytes(memory)} a device."
        f"{left_out}"
    )
