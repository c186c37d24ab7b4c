"""On the path of a cluster's processes, so that opening some photos ends the process, as a fault in a decoder does.

deadly*: whoever opens it. hopeless*: whoever opens it but a process that only tries photos. mortal/*: the 20th.
"""

import multiprocessing
import os
import signal
import sys

MORTAL = 20
opened = 0


def watch(event: str, args: tuple[object, ...]) -> None:
    global opened
    if event != "open" or not isinstance(args[0], str):
        return
    folder, name = os.path.split(args[0])
    opened += os.path.basename(folder) == "mortal"
    hopeless = name.startswith("hopeless") and multiprocessing.parent_process() is None
    if name.startswith("deadly") or hopeless or opened == MORTAL:
        os.kill(os.getpid(), signal.SIGSEGV)


sys.addaudithook(watch)
