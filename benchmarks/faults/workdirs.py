"""A finished run and a stopped one, each with a file damaged; then the same command again."""

import random
import shutil
from pathlib import Path

from benchmarks.faults.counts import Counts
from benchmarks.faults.runs import checksums_of, finish, rows, start, write_images
from resa_jax.errors import UserError


def break_workdirs(folder: Path, seed: int, scale: float) -> dict:
    """40 workdirs; the command must end as the unbroken run did, or refuse the file by its name."""
    generator, counts, images = random.Random(seed), Counts(), write_images(folder)
    whole = folder / "whole"
    code, said = finish(start(whole, images))
    assert code == 0, said
    expected = rows(whole), checksums_of(whole)
    stopped = folder / "stopped"
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "encoder")
    shutil.rmtree(max((stopped / "checkpoints").iterdir(), key=lambda path: int(path.name)))
    for number in range(round(40 * scale)):
        origin = (whole, stopped)[number % 2]
        workdir = folder / "damaged"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(origin, workdir)
        files = sorted(path for path in workdir.rglob("*") if path.is_file())
        # Every third time one of the few files that are ours, of many that are Orbax's.
        own = [
            path for path in files if path.suffix in (".json", ".jsonl") and path.parts[-2] != "d"
        ]
        victim = generator.choice(own if number % 3 == 0 else files)
        kind = _damage(victim, generator)
        case = f"{origin.name}, {victim.relative_to(workdir)}: {kind}"
        code, said = finish(start(workdir, images))
        if code is None:
            counts.add(origin.name, "hangs", f"{case}: {said}")
        elif "Traceback" in said or code not in (0, 2):
            counts.add(origin.name, "tracebacks", f"{case}: exit {code}: {said}")
        elif code == 2:
            fine = said.splitlines()[-1].startswith("error: ")
            last = said.splitlines()[-1]
            counts.add(origin.name, "refused" if fine else "silently_wrong", f"{case}: {last}")
        elif _is_whole(workdir, expected, victim, said):
            counts.add(origin.name, "ran", case)
        else:
            counts.add(origin.name, "lost", f"{case}: {said}")
    return counts.result()


def _damage(victim: Path, generator: random.Random) -> str:
    kind = generator.choice(("cut", "emptied", "missing", "garbled", "one bit"))
    data = bytearray(victim.read_bytes())
    if kind == "missing":
        victim.unlink()
    elif kind == "emptied" or not data:
        victim.write_bytes(b"")
        return "emptied"
    elif kind == "cut":
        victim.write_bytes(data[: generator.randrange(len(data))])
    else:
        if kind == "one bit":
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        else:
            start = generator.randrange(len(data))
            data[start : start + 32] = generator.randbytes(32)
        victim.write_bytes(data)
    return kind


def _is_whole(workdir: Path, expected: tuple, victim: Path, said: str) -> bool:
    try:
        sums = checksums_of(workdir)
    except UserError:
        # A finished run's checkpoint is damaged, which the command had no need of, and whoever
        # reads it is told; the export is whole.
        if "checkpoints" not in victim.parts or "nothing is left" not in said:
            return False
        sums = checksums_of(workdir, state=False)
        expected = expected[0], {k: v for k, v in expected[1].items() if k in sums}
    if sums != expected[1]:
        return False
    if victim.name != "metrics.jsonl":
        return rows(workdir) == expected[0]
    # What the damage took of the records cannot come back, but is spoken of. A digit that became
    # another one is a record like any other.
    try:
        return len(rows(workdir)) == len(expected[0]) or "metrics.jsonl" in said
    except ValueError:
        return "metrics.jsonl" in said
