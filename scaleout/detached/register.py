"""What a steward must know again after its end: the actors that may be made anew, and how."""

from __future__ import annotations

import marshal
import sqlite3

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Any

SCHEMA = 1


class Register:
    """A file of SQLite; one thread uses it. What a method has written is on disk when it returns."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA):
            raise RuntimeError(f"{path} has schema {version}, and this version of scaleout knows {SCHEMA}")
        self._database.execute("CREATE TABLE IF NOT EXISTS actors (key INTEGER PRIMARY KEY, made BLOB NOT NULL)")
        self._database.execute("CREATE TABLE IF NOT EXISTS ends (id INTEGER PRIMARY KEY)")
        self._database.execute(f"PRAGMA user_version = {SCHEMA}")

    def all(self) -> Iterator[tuple[int, dict[str, Any], list[bytes]]]:
        """(key, options, packed class and arguments) of each."""
        for key, made in self._database.execute("SELECT key, made FROM actors ORDER BY rowid").fetchall():
            options, parts = marshal.loads(made)
            yield key, options, parts

    def add(self, key: int, options: dict[str, Any], parts: Sequence[Any]) -> None:
        made = marshal.dumps((options, list(map(bytes, parts))))
        self._database.execute("INSERT INTO actors VALUES (?, ?)", (key, made))

    def remove(self, key: int) -> None:
        self._database.execute("DELETE FROM actors WHERE key = ?", (key,))

    def begin(self) -> bool:
        """Whether the steward before this one came to its end: then there is nothing left of its actors."""
        (ends,) = self._database.execute("SELECT count(*) FROM ends").fetchone()
        self._database.execute("DELETE FROM ends")
        return bool(ends)

    def end(self) -> None:
        self._database.execute("INSERT INTO ends DEFAULT VALUES")
        self._database.close()
