"""The first thing that runs in a zygote: loads what every worker needs, then serves."""

from __future__ import annotations

import multiprocessing.context
import random
import socket
from multiprocessing import process, reduction

from scaleout._runtime.pickling import definitions, encode, namespace
from scaleout._runtime.process import worker, zygote
from scaleout._runtime.wire import control_page

PRELOADED = (multiprocessing, random, socket, process, reduction, definitions, encode, namespace, control_page)


def main(channel_fd: int, starter_pid: int) -> None:
    zygote.main(channel_fd, starter_pid, worker.main)
