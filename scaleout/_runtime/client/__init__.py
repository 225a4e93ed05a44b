"""Sessions, embedded and remote, behind one interface."""
