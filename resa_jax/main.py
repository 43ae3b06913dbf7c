"""Pre-training from the command line.

python -m resa_jax.main --config=NAME[:VARIANT] --workdir=DIR [--config.FIELD=VALUE ...]

NAME is a recipe that comes with the package, as digits, or FILE.py, a recipe of one's own.

The processes of a Cloud TPU slice, of srun, Open MPI or an indexed Kubernetes job find each other;
elsewhere each gets --coordinator_address, --num_processes and --process_id.
"""

import os

from absl import flags

from resa_jax.cli import run
from resa_jax.config import load_config
from resa_jax.data.check import check_batch_size, check_source
from resa_jax.data.decoding import Decoding
from resa_jax.errors import UserError
from resa_jax.freed_memory import keep_freed_memory
from resa_jax.paths import as_path
from resa_jax.processes import cluster
from resa_jax.workdir import claim_workdir


_CONFIG = flags.DEFINE_string(
    "config", None, "Recipe: NAME or FILE.py, and :VARIANT.", required=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; the same folder again resumes it.", required=True
)
_EXTEND = flags.DEFINE_bool(
    "extend", False, "Go on with the finished run in --workdir, for the epochs that are more now."
)
_find_processes = cluster.define_flags()


def main(arguments: list[str]) -> None:
    """Checks the configuration before anything heavy is imported, then trains."""
    config = load_config(_CONFIG.value, [a.removeprefix("--config.") for a in arguments[1:]])
    data, how = config.data, Decoding.of(config.data)
    count = check_source(data.source, how, classes=data.classes, long_tail=data.long_tail)
    if count is not None:
        check_batch_size(config.batch_size, count, data.source)
    if data.test_source is not None:
        check_source(data.test_source, how, classes=data.classes, split="test")
    if config.init_from is not None and not as_path(config.init_from, "config.init_from=").exists():
        raise UserError(f"config.init_from={config.init_from}: there is no such file or folder.")
    claim_workdir(_WORKDIR.value, config, write=False, extend=_EXTEND.value)
    processes = _find_processes()

    from resa_jax.processes.distributed import joined_processes
    from resa_jax.training.disk import disk_faults_explained
    from resa_jax.training.loop import train
    from resa_jax.training.memory import out_of_memory_explained

    explained = out_of_memory_explained(config), disk_faults_explained(_WORKDIR.value)
    with joined_processes(processes), explained[0], explained[1]:
        train(config, _WORKDIR.value, extend=_EXTEND.value)


def command() -> None:
    """`resa-jax`, which is `python -m resa_jax.main`."""
    keep_freed_memory(os.environ)
    run(main, overrides=True)


if __name__ == "__main__":
    command()
