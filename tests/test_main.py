"""What a user is shown of the log; in a process of its own, since importing it defines flags."""

import subprocess
import sys

_SCRIPT = """
import asyncio, gc, logging as python_logging

from absl import logging

from remem_jax import main


async def leave_a_failed_write():
    asyncio.get_running_loop().create_future().set_exception(OSError("no room"))
    gc.collect()


logging.use_absl_handler()
logging.set_verbosity(logging.INFO)
logging.get_absl_handler().addFilter(main._is_ours)
asyncio.run(leave_a_failed_write())
python_logging.getLogger("asyncio").error("something else of asyncio")
logging.warning("our own")
"""


def test_writes_that_fail_unheard_are_not_shown_and_all_else_is() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True)

    shown = [line.partition("] ")[2] for line in done.stderr.splitlines() if "] " in line]
    assert done.returncode == 0, done.stderr
    assert shown == ["something else of asyncio", "our own"]
