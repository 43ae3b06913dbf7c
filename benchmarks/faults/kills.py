"""SIGKILL at random moments of a run; then the same command again, to the end."""

import random
import shutil
import time
from pathlib import Path

from benchmarks.faults.counts import Counts
from benchmarks.faults.runs import checksums_of, finish, kill, rows, start, write_images


def kill_runs(folder: Path, seed: int, scale: float) -> dict:
    """50 kills, 40 of a run of one process and 10 of two; each must end as the unbroken run.

    A third of the runs are killed twice. The moments are uniform from the start of the command to
    its end: importing, compiling, steps, evaluations, saves, the export.
    """
    generator, counts, images = random.Random(seed), Counts(), write_images(folder)
    for processes, total in ((1, round(40 * scale)), (2, round(10 * scale))):
        expected, seconds = _unbroken(folder / f"whole-{processes}", images, processes)
        kind, number = f"{processes} process{'es' * (processes > 1)}", 0
        while number < total:
            workdir = folder / "killed"
            shutil.rmtree(workdir, ignore_errors=True)
            moments = []
            for _ in range(2 if number % 3 == 0 and number + 1 < total else 1):
                moments.append(round(generator.uniform(0, seconds), 2))
                running = start(workdir, images, processes)
                time.sleep(moments[-1])
                kill(running)
                finish(running)
                number += 1
            code, said = finish(start(workdir, images, processes))
            case = f"killed after {moments} of {seconds:.1f} s"
            if code is None:
                results = ["hangs"]
            elif code != 0 or "Traceback" in said:
                results = ["tracebacks"]
            else:
                results = ["ran" if _end(workdir) == expected else "lost"]
            for result in results * len(moments):
                counts.add(kind, result, case if result == "ran" else f"{case}: {said}")
    return counts.result()


def _unbroken(workdir: Path, images: Path, processes: int) -> tuple[tuple, float]:
    """The end of a run, and how long one takes whose programs are in the cache."""
    for _ in range(2):
        shutil.rmtree(workdir, ignore_errors=True)
        begin = time.perf_counter()
        code, said = finish(start(workdir, images, processes))
        assert code == 0, said
        seconds = time.perf_counter() - begin
    return _end(workdir), seconds


def _end(workdir: Path) -> tuple:
    return rows(workdir), checksums_of(workdir)
