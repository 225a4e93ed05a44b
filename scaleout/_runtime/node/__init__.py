"""One machine's share of the runtime: effects only, no decisions."""
