"""A streaming pipeline: source files are read, cleaned, embedded and written, all at the same time.

What one sees: the reader is a generator that is never far ahead; a batch goes from stage to stage as a reference, never
through this program; and only a few are under way. Stages are plain classes with a state of their own, and give the
same in a plain loop. A worker may be killed at any point: the stage comes back with the state that it had.

    python examples/streaming_pipeline.py
"""

import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy

import scaleout

BATCH, UNDER_WAY, BUCKETS, WIDTH = 12, 4, 512, 32


def read(paths: list[Path]) -> Iterator[list[str]]:
    for start in range(0, len(paths), BATCH):
        yield [path.read_text("utf-8", "replace") for path in paths[start : start + BATCH]]


class Cleaner:
    """Keeps a text's words, but for those that more than half of all texts so far had."""

    def __init__(self) -> None:
        self.texts, self.texts_with = 0, Counter[str]()

    def clean(self, batch: list[str]) -> list[list[str]]:
        texts = [[word for word in text.split() if word.isalpha()] for text in batch]
        self.texts += len(texts)
        self.texts_with.update(word for words in texts for word in set(words))
        return [[word for word in words if 2 * self.texts_with[word] <= self.texts] for words in texts]


class Embedder:  # by a random projection of hashed words: texts with the same words get similar vectors
    def __init__(self) -> None:
        self.projection = numpy.random.default_rng(0).normal(size=(BUCKETS, WIDTH))

    def embed(self, texts: list[list[str]]) -> numpy.ndarray:
        hashes = [[zlib.crc32(word.encode()) % BUCKETS for word in words] for words in texts]
        return numpy.log1p([numpy.histogram(found, BUCKETS, (0, BUCKETS))[0] for found in hashes]) @ self.projection


class Writer:
    def __init__(self, folder: str) -> None:
        self.folder, self.written = folder, 0

    def write(self, vectors: numpy.ndarray) -> None:
        numpy.save(f"{self.folder}/{self.written:03}.npy", vectors)  # written again, it is the same file
        self.written += 1


def run_pipeline(paths: list[Path], folder: str) -> None:
    cleaner = scaleout.remote(Cleaner).options(on_failure="replay").remote()
    embedder = scaleout.remote(Embedder).options(on_failure="restart", max_task_retries=-1).remote()
    writer = scaleout.remote(Writer).options(on_failure="replay").remote(folder)
    under_way: list[scaleout.ObjectRef] = []
    for batch in scaleout.remote(read).remote(paths):
        if len(under_way) == UNDER_WAY:
            scaleout.get(under_way.pop(0))
        under_way.append(writer.write.remote(embedder.embed.remote(cleaner.clean.remote(batch))))
    scaleout.get(under_way)


if __name__ == "__main__":
    sources, cleaner, embedder = sorted(Path(os.__file__).parent.glob("*.py")), Cleaner(), Embedder()
    expected = [embedder.embed(cleaner.clean(batch)) for batch in read(sources)]
    with tempfile.TemporaryDirectory() as folder:
        run_pipeline(sources, folder)
        written = [numpy.load(path) for path in sorted(Path(folder).glob("*.npy"))]
    assert numpy.array_equal(numpy.concatenate(written), numpy.concatenate(expected))
    print(f"{sum(map(len, written))} files in {len(written)} batches, each file as {WIDTH} numbers")
