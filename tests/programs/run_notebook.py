"""Runs a notebook, with nbclient, and writes the outputs of each code cell to `outputs.json`.

A program of its own, as nbclient keeps sockets and threads as long as its process lives. A cell with the tag
"interrupted" gets Ctrl-C, the way that the Stop button of a notebook does it, once it has printed something.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

CELL_TIMEOUT_S = 60


class Client(NotebookClient):
    interrupted: tuple[Any, ...] = ()

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        """Called for each message about a cell while it runs."""
        tags = cell.metadata.get("tags", [])
        if msg["msg_type"] == "stream" and "interrupted" in tags and cell_index not in self.interrupted:
            self.interrupted += (cell_index,)
            self.interrupting = asyncio.ensure_future(self.km.interrupt_kernel())
        return super().process_message(msg, cell, cell_index)


def main(path: str) -> None:
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # where it is set, ipykernel does not show what workers print
    notebook = nbformat.read(path, as_version=4)
    # Sockets in this directory: ports that are free now may be taken by a test that runs beside this one.
    manager = AsyncKernelManager(kernel_name="python3", connection_file="kernel.json", transport="ipc", ip="kernel")
    client = Client(notebook, km=manager, timeout=CELL_TIMEOUT_S, allow_errors=True)
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    Path("outputs.json").write_text(json.dumps(outputs))  # the kernel, too, has our stdout


if __name__ == "__main__":
    main(sys.argv[1])
