"""The process that measures one contender of one experiment. Started by `runner`, not by hand.

    python -m benchmarks.measure EXPERIMENT CONTENDER full|quick

Each line on stdin asks for one sample; the answer is one line of JSON on stdout: the sample,
or {"error": why}. What user code prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

from benchmarks.model import Setting
from benchmarks.registry import BY_NAME


def main(experiment_name: str, contender_key: str, mode: str) -> None:
    experiment = BY_NAME[experiment_name]
    contender = next(c for c in experiment.contenders if c.key == contender_key)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    samples = experiment.function(Setting(contender.peer, mode == "quick", contender.options))
    for _ in sys.stdin:
        answer: dict[str, float | str]
        try:
            answer = dict(next(samples))
        except Exception as error:  # noqa: BLE001 - what the library under test does wrong is a result, too
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
        if "error" in answer:
            return
    samples.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(*sys.argv[1:])
