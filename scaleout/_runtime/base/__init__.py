"""Identifiers, limits and settings."""
