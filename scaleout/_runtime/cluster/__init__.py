"""Many nodes: what a node lends to drivers, how a driver uses it, and who knows of whom."""
