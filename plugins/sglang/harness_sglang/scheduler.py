"""Runs in SGLang's scheduler process, where the model is: looks at what was loaded, and marks modules for a profile.

`sglang.Engine` has a class attribute for the function its scheduler processes run; `run` is ours.
"""

from __future__ import annotations

from typing import Any

from harness_sglang import journal

LOOK = "harness_look"  # key of what the scheduler says of itself when it is ready


def run(*arguments: Any, **named: Any) -> None:
    """As sglang.srt.managers.scheduler.run_scheduler_process, with a scheduler that tells more."""
    journal.attach()
    from sglang.srt.managers import scheduler

    _extend(scheduler.Scheduler)
    scheduler.run_scheduler_process(*arguments, **named)


def _extend(scheduler: type) -> None:
    from harness_sglang.look import look

    plain = scheduler.get_init_info

    def get_init_info(self: Any) -> dict[str, Any]:
        return {**plain(self), LOOK: look(self)}

    scheduler.get_init_info = get_init_info
    scheduler.harness_mark, scheduler.harness_unmark = _mark, _unmark


def _mark(self: Any, profiler: str) -> None:
    """Called by `Engine.collective_rpc`: modules run in ranges of their names, where no graph replays them."""
    from harness.profilers.ranges import MARKS, modules_marked

    self._harness_marks = modules_marked(self.tp_worker.model_runner.model, MARKS[profiler])
    self._harness_marks.__enter__()


def _unmark(self: Any) -> None:
    self._harness_marks.__exit__(None, None, None)
