"""Worker processes that do not outlive the process that started them."""

import multiprocessing
import os
import signal
import threading
import time


def end_with_parent(grace: float = 0.0) -> None:
    """End this worker process when its parent ends, for whatever reason; call it in the worker.

    Without it, a worker of a pool whose parent is killed waits for work forever.

    Args:
        grace: seconds between SIGTERM, at which a worker may save what it has, and its end; 0: it
            ends at once.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
        if grace:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
