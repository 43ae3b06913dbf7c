"""Which processes a run consists of, from flags or from the cluster's environment.

Nothing heavy is imported here, so that an environment that is half set is answered before JAX
starts.
"""

import glob
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from resa_jax.errors import UserError


flags.disclaim_key_flags()  # those defined here are flags of the command that asks for them

# What JAX reads to find the processes of a job, by scheduler.
_SLURM = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
_FLAGS = "--coordinator_address, --num_processes and --process_id"


def define_flags() -> Callable[[], dict[str, Any] | None]:
    """Defines a command's flags of its processes; what is returned finds them, once parsed."""
    coordinator = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
    num_processes = flags.DEFINE_integer(
        "num_processes", None, "Processes of the run; 1 ignores the cluster's environment."
    )
    process_id = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
    return lambda: find_processes(
        coordinator.value, num_processes.value, process_id.value, os.environ
    )


def find_processes(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> dict[str, Any] | None:
    """How to join the other processes of the run.

    Flags come first; `--num_processes=1` alone means one process, whatever the environment. Without
    flags the environment is that of srun, of a Cloud TPU host, of an indexed Kubernetes job or of
    Open MPI, and JAX finds the coordinator by itself.

    Args:
      coordinator_address, num_processes, process_id: the values of the flags, None where not given.
      environment: the process's environment variables.

    Returns:
      Arguments for `jax.distributed.initialize`, or None where the run is one process.

    Raises:
      UserError: the flags or the environment are only half set.
    """
    given = (coordinator_address, num_processes, process_id)
    if given == (None, 1, None):
        return None
    if given != (None, None, None):
        return _from_flags(*given)
    if _count("SLURM_NTASKS", environment) > 1:
        return _from_slurm(environment)
    if "cpu" not in environment.get("JAX_PLATFORMS", "") and _is_tpu_host(environment):
        return {}
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return _from_kubernetes()
    if _count("OMPI_COMM_WORLD_SIZE", environment) > 1:
        return _from_open_mpi(environment)
    return None


def _from_flags(coordinator_address, num_processes, process_id):
    flags = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [f"--{name}" for name, value in flags.items() if value is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} not given; {_FLAGS} go together, or none of them."
        )
    if not re.fullmatch(r".+:\d+", coordinator_address):
        raise UserError(
            f"--coordinator_address={coordinator_address} must be HOST:PORT, the host of process 0."
        )
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must be from 0 to {num_processes - 1}, "
            f"with --num_processes={num_processes}."
        )
    return flags | {"cluster_detection_method": "deactivate"}


def _from_slurm(environment):
    missing = [name for name in _SLURM if name not in environment]
    if missing:
        raise UserError(
            f"SLURM_NTASKS is {environment['SLURM_NTASKS']}, but {missing[0]} is not set: a Slurm "
            "job of several tasks must start this command by srun. --num_processes=1 runs it alone."
        )
    return {"cluster_detection_method": "slurm"}


def _from_open_mpi(environment):
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return {"cluster_detection_method": "ompi"}
    if importlib.util.find_spec("mpi4py") is not None:
        return {"cluster_detection_method": "mpi4py"}
    raise UserError(
        f"OMPI_COMM_WORLD_SIZE is {environment['OMPI_COMM_WORLD_SIZE']}, but Open MPI 5 tells the "
        f"coordinator's address only through mpi4py: pip install mpi4py, or give {_FLAGS}."
    )


def _from_kubernetes():
    if importlib.util.find_spec("kubernetes") is None:
        raise UserError(
            "JOB_COMPLETION_INDEX is set, but the package that reads a Kubernetes job is not "
            f"installed: pip install 'jax[k8s]', or give {_FLAGS}; --num_processes=1 runs it alone."
        )
    return {"cluster_detection_method": "k8s"}


def _is_tpu_host(environment):
    # As JAX finds out: libtpu is installed and the host has chips. A single host joins itself.
    if importlib.util.find_spec("libtpu") is None:
        return False
    return "TPU_WORKER_HOSTNAMES" in environment or bool(
        glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    )


def _count(name, environment):
    text = environment.get(name, "1")
    if not text.isdigit():
        raise UserError(f"The environment variable {name} is {text!r}; it must be a whole number.")
    return int(text)
