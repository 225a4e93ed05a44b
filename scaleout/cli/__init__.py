"""The `scaleout` command."""
