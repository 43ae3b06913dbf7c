"""What all tests share: eight CPU devices, and quick compilation."""

import os
import tempfile


# Before JAX starts: sharding needs devices, and the tests compile more than they compute.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"
# One compilation of each program for all tests and the processes that they start.
_cache = tempfile.TemporaryDirectory(prefix="resa_jax_compile_cache_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"


def pytest_collection_modifyitems(items):
    """The files with whole runs go first, so that no worker is left with one at the end."""
    first = ("test_smoke", "test_distributed", "test_run")
    items.sort(key=lambda item: item.path.stem not in first)  # stable
