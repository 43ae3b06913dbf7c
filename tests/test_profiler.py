"""The profile of a few steps."""

from pathlib import Path

import jax
import pytest

from resa_jax.config import load_config
from resa_jax.errors import UserError
from resa_jax.training.profiler import Profiler


ROOT = Path(__file__).parents[1]
SMOKE = str(ROOT / "configs" / "digits.py:smoke")


def traced_steps(folder, window, num_steps):
    """Numbers of the steps that the trace of a loop of `num_steps` holds; None without a trace."""
    double = jax.jit(lambda x: 2 * x)
    with Profiler(folder, window) as profiler:
        for step in range(1, num_steps + 1):
            with profiler.step(step):
                result = double(step)
            profiler.launched(step, result)
    paths = list(folder.glob("profile/**/*.xplane.pb"))
    if not paths:
        return None
    profile = jax.profiler.ProfileData.from_file(str(paths[0]))
    events = [event for plane in profile.planes for line in plane.lines for event in line.events]
    return [dict(event.stats)["step_num"] for event in events if event.name == "train"]


# JAX's own, on Python 3.12; as an error it ends the interpreter.
@pytest.mark.filterwarnings("ignore:builtin type event_stats:DeprecationWarning")
@pytest.mark.parametrize(
    ("window", "steps"),
    [((2.0, 2.0), [2, 3]), ((3.0, 5.0), [3, 4]), ((1.0, 1.0), [1]), ((9.0, 2.0), None)],
)
def test_the_steps_of_the_window_are_traced(tmp_path, window, steps):
    assert traced_steps(tmp_path, window, num_steps=4) == steps


def test_no_trace_by_default(tmp_path):
    assert traced_steps(tmp_path, None, num_steps=2) is None


@pytest.mark.parametrize("window", ["(2.5,1)", "(0,3)", "(3,)", "(1,2,3)"])
def test_a_window_is_two_whole_numbers(window):
    with pytest.raises(UserError, match=r"config\.profile is .* two whole numbers from 1"):
        load_config(SMOKE, [f"profile={window}"])
