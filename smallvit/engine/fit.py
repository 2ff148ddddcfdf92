"""The training loop: schedule, step, log, evaluate, save."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from smallvit.core.objective import AbstractObjective, BatchT
from smallvit.engine.checkpoint import LAST
from smallvit.engine.forecast import foresee, say_forecast
from smallvit.engine.log import TrainLog
from smallvit.engine.memory import retrying
from smallvit.engine.plan import FitPlan
from smallvit.engine.runtime import compiled_networks
from smallvit.engine.signals import note_signals, stopped
from smallvit.engine.state import FitResult, TrainState
from smallvit.engine.step import train_step
from smallvit.parallel import processes


def fit(
    objective: AbstractObjective[BatchT],
    batches: Callable[[int], BatchT],
    plan: FitPlan,
    *,
    evaluate: Callable[[], dict[str, float]] | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    foreseen: bool = False,
) -> FitResult:
    """Train an objective and leave it with the weights of the last step, or their running average.

    Args:
        objective: Stage to train, on the device.
        batches: Returns the batch of a step, or this process's rows of it: a function of seed and
            step alone.
        plan: Settings.
        evaluate: Scores the objective on validation; it must leave the weights alone.
        watch: Told of the steps done and of all metrics at each evaluation, once they are logged;
            it may raise to stop the run.
        resume: Continue from the newest checkpoint in the run folder.
        stop_after: Stop after this many steps of the run (a dry run).
        foreseen: Say how long the run will take: before the first step, with the memory, and take
            no more images at once than fit; where that cannot be known, after the first steps.

    Raises:
        ConfigError: If a batch that must stay whole is to be cut, or does not fit.
        OutOfMemoryError: If not even two images at once fit.
        DataError: If the log cannot be written, once the state is saved.
        DivergedError: If the loss or a gradient was not finite; that update was not applied.
        InterruptedRunError: After SIGTERM or SIGINT, once the state is saved.
        ProcessLostError: If another process ended; the state before the step at hand is saved.
    """
    state = TrainState(objective, plan)
    if resume:
        state.resume()
    result, means = state.result, state.means
    end = plan.total_steps if stop_after is None else min(stop_after, plan.total_steps)
    evaluations_left = (lambda _: 0) if evaluate is None else plan.evaluations_left
    late = foreseen and foresee(state, batches, evaluations=evaluations_left(result.step)) is None
    metrics_path = None if plan.folder is None else plan.folder / "metrics.jsonl"
    with (
        note_signals() as received,
        compiled_networks(objective) if plan.runtime.compiled else nullcontext(),
        TrainLog(
            metrics_path, plan.title, plan.total_steps, result.step, pauses_after=evaluations_left
        ) as log,
        state.saved_on_failure(),
    ):
        owed = resume and evaluate is not None and state.owes_evaluation
        means.start_clock()
        for step in range(result.step - owed, end):
            owed = step < result.step  # it was taken, and only its evaluation is to be made
            if not owed:
                arguments, metrics = state.begin_step(step), None
                while metrics is None:  # each time with fewer images at once or a smaller scale
                    with retrying(state, step):
                        metrics = train_step(
                            objective, batches(step), micro_batch=result.micro_batch, **arguments
                        )
                state.end_step(step)
                means.add(step, metrics)
                log.move(result.step)

            last = result.step == end
            eval_now = evaluate is not None and (last or plan.evaluates_after(result.step))
            every = plan.log.checkpoint_steps
            log_now = result.step % plan.log.every_steps == 0 or eval_now or last
            # A signal from here on waits for the next step, or in several processes on CUDA
            # devices, which are not waited for here, for the next log line.
            at_once = processes.count() == 1 or plan.runtime.device.type == "cpu" or log_now
            stop = at_once and processes.any_of(bool(received))
            save_now = last or stop or owed or (result.step % every == 0 if every else eval_now)

            if log_now or save_now:
                result.train_s += means.close().seconds  # the only wait for the device
                line = means.of_line() | state.describe()
                if evaluate is not None and eval_now:
                    with log.pausing("evaluating"):
                        result.metrics = state.score(evaluate)
                    line |= result.metrics
                news = means.tell() | result.metrics if eval_now else None
                processes.on_first(partial(log.write, result.step, line, news))
                if eval_now and watch is not None:
                    processes.on_first(partial(watch, result.step, line))
                if eval_now:
                    state.keep_best()
                if save_now:
                    state.save(LAST)
                if late and stop_after is None and log.step_s is not None and not last:
                    late = False
                    say_forecast(plan, log.step_s, result.step, evaluations_left(result.step))
                means.start_clock()
            elif processes.count() == 1 and log.is_due:
                log.say(means.tell())
            if stop and not last:
                raise stopped(received, state.where)
    state.finish()
    return result
