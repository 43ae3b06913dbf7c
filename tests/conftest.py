"""What all tests share: eight CPU devices, and quick compilation."""

import logging
import os
from importlib.metadata import version


# Half the time to compile. JAX 0.12 has it no more, and ends at a flag that it does not know.
_OLDER_CODE_GENERATOR = ["--xla_cpu_use_fusion_emitters=false"] if version("jax") < "0.12" else []

# Before JAX starts: sharding needs devices, and the tests compile more than they compute.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        *_OLDER_CODE_GENERATOR,
        "--xla_cpu_parallel_codegen_split_count=1",  # the tests already keep all cores busy
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"
# scikit-learn's threads wait for one another while the tests keep all cores busy.
os.environ["OMP_NUM_THREADS"] = "1"

os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
_CACHE_BYTES = 2**30


def pytest_configure(config):
    """One compilation of each program for all tests, the processes that they start, and later runs.

    Processes write at once; who meets half an entry warns, which pyproject.toml ignores, and
    compiles.
    """
    if not hasattr(config, "cache"):  # -p no:cacheprovider
        return
    folder = config.cache.mkdir("jax")
    is_worker = hasattr(config, "workerinput")
    if not is_worker and sum(file.stat().st_size for file in folder.iterdir()) > _CACHE_BYTES:
        for file in folder.iterdir():
            file.unlink()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)


def pytest_collection_modifyitems(items):
    """The files with whole runs go first, so that no worker is left with one at the end."""
    first = ("test_smoke", "test_distributed", "test_run")
    items.sort(key=lambda item: item.path.stem not in first)  # stable


# As a program that has set up logging, so that `train` adds no handler, which would outlive a test.
logging.getLogger("resa_jax").setLevel(logging.INFO)
