"""`python -m tests.simulation --nodes 30 --seed 7`: see `world`. `--seeds 200` runs that many, from `--seed` on.
`--growth 10 100 1000` says how what the head and a driver do grows with the nodes."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from growth import growth
from world import World


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--drivers", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--growth", type=int, nargs="+", metavar="NODES", default=())
    options = parser.parse_args()
    for nodes in options.growth:
        started = time.perf_counter()
        found = growth(nodes, options.seed)
        print("  ".join(f"{name} {figure:.3g}" for name, figure in found.items()), end="")
        print(f"  ({time.perf_counter() - started:.1f} s)", flush=True)
    if options.growth:
        return
    for seed in range(options.seed, options.seed + options.seeds):
        started = time.perf_counter()
        try:
            found = World(seed, options.nodes, options.drivers, options.tasks).run()
        except BaseException:
            print(f"seed {seed}:", flush=True)
            raise
        print(f"seed {seed}: {found}, {time.perf_counter() - started:.2f} s", flush=True)


if __name__ == "__main__":
    main()
