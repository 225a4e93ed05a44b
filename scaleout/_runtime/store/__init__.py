"""Shared-memory segments: writing, reading, releasing."""
