"""On the path of a cluster's processes: a process that opens a file whose name begins with `deadly` dies, as a fault in
a decoder ends it; and one that opens the 20th file of a folder `mortal`."""

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
    if name.startswith("deadly") or opened == MORTAL:
        os.kill(os.getpid(), signal.SIGSEGV)


sys.addaudithook(watch)
