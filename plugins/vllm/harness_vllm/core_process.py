"""The engine core where it is a process of its own: its death is said at once.

vLLM's synchronous client waits for ever for the answer of a core that was killed (seen in 0.32), and a run with it.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import threading

from harness_vllm import journal

SIGNAL = signal.SIGUSR1


class CoreProcesses:
    """Watches the children vLLM has now. Call from the main thread, which is where their death is raised."""

    def __init__(self) -> None:
        self._children = multiprocessing.active_children()
        self._is_closing = False
        if self._children:
            signal.signal(SIGNAL, self._raise)
            threading.Thread(target=self._watch, daemon=True).start()

    def expect_end(self) -> None:
        self._is_closing = True

    def _watch(self) -> None:
        multiprocessing.connection.wait([child.sentinel for child in self._children])
        if not self._is_closing:
            signal.pthread_kill(threading.main_thread().ident, SIGNAL)

    def _raise(self, number: int, frame: object) -> None:
        codes = [child.exitcode for child in self._children if child.exitcode is not None]
        raise RuntimeError(f"vLLM's engine core ended, exit code {codes}: {journal.last_error() or 'without a word'}")
