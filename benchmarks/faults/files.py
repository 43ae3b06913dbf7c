"""Images, arrays and weights, damaged at random: read, or refused by name, in bounded memory."""

import io
import json
import pickle
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save

from benchmarks.faults.counts import Counts
from resa_jax.data.decode import BadImageError, decode_image
from resa_jax.data.decoding import Decoding
from resa_jax.data.sources import open_source
from resa_jax.errors import UserError
from resa_jax.paths import as_path
from resa_jax.weights.files import read_tensors
from resa_jax.workdir import read_records


_MEMORY = 2**30  # that one file may cost, bytes
_SECONDS = 20
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "JPEG2000")


def break_files(folder: Path, seed: int, scale: float) -> dict:
    """Some hundred files of each kind."""
    generator, counts = random.Random(seed), Counts()
    pixels = np.random.default_rng(seed).integers(256, size=(96, 128, 3), dtype=np.uint8)
    for kind in _FORMATS:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        for _ in range(round(40 * scale)):
            data = _damaged(file.getvalue(), generator)
            _try(counts, f"image, {kind}", None, lambda data=data: decode_image(data, Decoding()))
    tensors = {"a": np.arange(12, dtype=np.float32), "b": np.ones((3, 2), np.float16)}
    archive = io.BytesIO()
    np.savez(archive, images=pixels[None], labels=np.array([1]))
    records = "".join(json.dumps({"step": n, "epoch": n / 2}) + "\n" for n in range(1, 9))
    kinds: dict[str, tuple[bytes, Callable]] = {
        "a.safetensors": (save(tensors), read_tensors),
        "a.pkl": (pickle.dumps({"model": tensors}), read_tensors),
        "a.npz": (archive.getvalue(), lambda path: open_source(f"npz:{path}")[0]),
        "a.csv": (b"path,label\na.png,cat\n", lambda path: open_source(f"list:{path}")),
        "metrics.jsonl": (records.encode(), lambda path: read_records(as_path(path))),
    }
    Image.fromarray(pixels[:8, :8]).save(folder / "a.png")
    for name, (whole, read) in kinds.items():
        path = folder / name
        for _ in range(round(100 * scale)):
            path.write_bytes(_damaged(whole, generator))
            _try(counts, name, path, lambda path=path, read=read: read(path))
    return counts.result()


def _damaged(whole: bytes, generator: random.Random) -> bytes:
    """A file cut, or with bytes that are others, missing, doubled, or all the same."""
    data = bytearray(whole)
    start = generator.randrange(len(data))
    end = min(len(data), start + generator.choice((1, 4, 64)))
    kind = generator.randrange(6)
    if kind == 0:
        return bytes(data[:start])
    if kind == 1:
        data[start:end] = generator.randbytes(end - start)
    elif kind == 2:
        del data[start:end]
    elif kind == 3:
        data[start:start] = data[start:end]
    elif kind == 4:
        data[start:end] = bytes([generator.choice((0, 255))]) * (end - start)
    else:
        for _ in range(3):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(data)


def _try(counts: Counts, kind: str, path: Path | None, read: Callable) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(_SECONDS)
    try:
        read()
    except (UserError, BadImageError) as error:
        named = path is None or str(path) in str(error)
        outcome = (
            "refused" if named and str(error) and " at 0x" not in str(error) else "silently_wrong"
        )
        counts.add(kind, outcome, str(error))
    except TimeoutError:
        counts.add(kind, "hangs", kind)
    except Exception as error:
        counts.add(kind, "tracebacks", f"{error!r}")
    else:
        counts.add(kind, "ran")
    finally:
        signal.alarm(0)
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > _MEMORY:
        counts.add(kind, "silently_wrong", "more than a gigabyte of memory")


def _too_long(number, frame):
    raise TimeoutError
