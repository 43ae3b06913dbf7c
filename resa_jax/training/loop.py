"""Pre-training, from a configuration to an exported encoder."""

import logging
import os
from contextlib import nullcontext

import jax
from ml_collections import ConfigDict

from resa_jax.checkpoint import Checkpoints, refuse_newer_format, restore_newest
from resa_jax.config import to_json
from resa_jax.data.pipeline import batches, steps_per_epoch
from resa_jax.data.sources import open_sources
from resa_jax.data.statistics import with_statistics
from resa_jax.evaluation.online import OnlineEvaluation
from resa_jax.processes.agreement import check_agreement
from resa_jax.processes.distributed import Preemption
from resa_jax.sharding import check_divisible, create_mesh, to_devices
from resa_jax.terminal import speak_unless_logging
from resa_jax.training.disk import check_disk
from resa_jax.training.extension import count_steps, with_schedule_start
from resa_jax.training.finish import finish, is_finished
from resa_jax.training.initialize import initialize_from
from resa_jax.training.memory import available_bytes, check_memory
from resa_jax.training.metrics import MetricsWriter, describe
from resa_jax.training.profiler import Profiler
from resa_jax.training.programs import compile_programs
from resa_jax.training.records import last_metrics
from resa_jax.training.schedule import is_due
from resa_jax.training.wall_time import WallTime
from resa_jax.workdir import claim_workdir, locked


_LOG = logging.getLogger("resa_jax")


def train(
    config: ConfigDict, workdir: str | os.PathLike, *, extend: bool = False
) -> dict[str, int | float]:
    """Pre-trains as `config` says; a run that was interrupted in `workdir` goes on.

    Args:
      config: a recipe, as `resa_jax.config.load_config` returns it.
      workdir: the run's folder (config.json, metrics.jsonl, tensorboard/, checkpoints/, encoder/).
      extend: go on with the finished run there for the epochs that `config` has more.

    Returns:
      The last metrics of every kind, evaluations included.

    Raises:
      UserError: for a mistake in the configuration, the data or the folder.
      KeyboardInterrupt: at Ctrl-C, after the step at hand was saved; a second one raises at once.
      FloatingPointError: when the loss is not finite; the last checkpoint is good.
    """
    clock = WallTime()
    speak_unless_logging()
    mesh = create_mesh()
    check_divisible(config.batch_size, mesh, config.micro_batches)
    lock = locked(workdir) if jax.process_index() == 0 else nullcontext()
    with jax.set_mesh(mesh), lock:
        # Data: batch i is a function of (seed, i) alone, so the step restarts the stream.
        source, test_source = open_sources(config.data, config.batch_size)
        config = with_statistics(config, source)
        sources = {"config.data.source": source} | (
            {} if test_source is None else {"config.data.test_source": test_source}
        )
        check_agreement(config, workdir, sources)
        epoch = steps_per_epoch(len(source), config.batch_size)
        config = with_schedule_start(config, workdir, epoch, extend)
        total_steps = count_steps(config, epoch)
        workdir = claim_workdir(workdir, config, write=False, extend=extend)

        if is_finished(workdir, total_steps):
            _LOG.info("%s holds a finished run of %d steps; nothing is left.", workdir, total_steps)
            return last_metrics(workdir, total_steps)

        refuse_newer_format(workdir / "checkpoints")
        with clock("compile"):
            programs = compile_programs(config, mesh, source.canvas, epoch, total_steps)
        check_memory(programs.memory, available_bytes(mesh), config)
        check_disk(workdir, programs.abstract_state, config.checkpoint.keep)
        evaluation = OnlineEvaluation(
            config, programs.networks.evaluated, mesh, source, test_source
        )
        first_step, state = restore_newest(workdir / "checkpoints", programs.abstract_state)
        with (
            Checkpoints(workdir / "checkpoints", config.checkpoint.keep, to_json(config)) as saved,
            MetricsWriter(
                workdir, config, clock, first_step, total_steps, epoch, programs.flops
            ) as writer,
            batches(
                source,
                batch_size=config.batch_size,
                seed=config.seed,
                start_step=first_step,
                num_steps=total_steps,
                workers=config.data.workers,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ) as stream,
            Profiler(workdir, config.profile) as profiler,
            Preemption() as preemption,
        ):
            writer.say(describe(config, mesh, len(source), total_steps, programs.memory))
            if state is None:
                with clock("compile"):
                    state = programs.init()
                state = initialize_from(config, state)
                if config.eval.baselines:
                    with clock("evaluation"):
                        writer.write(0, evaluation(*state.evaluated))
                if config.checkpoint.initial:
                    saved.save(state, 0)
            else:
                writer.say(f"Going on after step {first_step} of {total_steps}.")

            # Nothing can be refused any more.
            claim_workdir(workdir, config, write=jax.process_index() == 0, extend=extend)
            for step in range(first_step + 1, total_steps + 1):
                with profiler.step(step):
                    with clock("data_wait"):
                        batch = next(stream)
                    images = to_devices(batch, mesh)
                    with jax.transfer_guard("disallow"):  # no hidden copy from host or elsewhere
                        views = programs.make_views(state.step, *images)
                        state, metrics = programs.train_step(state, views)
                saved.check()
                profiler.launched(step, metrics)
                if step == 1:
                    writer.show(step, views)
                writer.hold(step, metrics, bad_images=batch["num_bad"])

                # Evaluate before saving, so that a checkpoint's records are all on disk.
                last, stop = step == total_steps, preemption.reached(step)
                if last or is_due(config.eval.every_epochs, step, epoch):
                    writer.flush()
                    with clock("evaluation"):
                        writer.write(step, evaluation(*state.evaluated))
                if last:
                    writer.write(step, clock.record() | {"memory_gib": programs.memory / 2**30})
                if last or stop or is_due(config.checkpoint.every_epochs, step, epoch):
                    writer.publish()
                    with clock("checkpoint"):
                        saved.save(state, step)
                if stop and not last:
                    saved.check(wait=True)
                    writer.say(
                        f"Stopped by {preemption.signal or 'SIGTERM'}: step {step} is saved. The "
                        f"same command, with --workdir={workdir}, goes on from there."
                    )
                    if preemption.signal == "SIGINT":
                        raise KeyboardInterrupt
                    return last_metrics(workdir)

        finish(config, workdir, programs, evaluation, state)
    return last_metrics(workdir)
