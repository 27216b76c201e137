"""Runs a command that dies when its parent does, even by kill -9. A script with no imports of ours.

    python -S -E with_parent.py PARENT_PID COMMAND [ARGUMENT...]

On Linux the kernel does it (PR_SET_PDEATHSIG, which survives exec); elsewhere this process stays and watches.
Called by anvil.py: a chain left behind would hold its port and go on making blocks that nobody saves.
"""

import os
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
SIGKILL = 9
WATCH_SECONDS = 0.5


def main(parent: int, command: list[str]) -> int:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL)
        if os.getppid() != parent:  # it died before the request: the signal would never come
            return 1
        os.execv(command[0], command)
    child = subprocess.Popen(command)
    try:
        while child.poll() is None and os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
    finally:
        child.kill()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
