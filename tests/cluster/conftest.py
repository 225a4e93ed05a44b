from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import Cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Nothing runs yet; what is started is stopped."""
    with tempfile.TemporaryDirectory(prefix="so-") as directory:  # short: paths of sockets have 100 bytes
        made = Cluster(Path(directory))
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def pair(cluster: Cluster) -> Cluster:
    """A head and another node, of two CPUs each."""
    cluster.start_head()
    cluster.start_node()
    return cluster
