"""From samples to the table: medians, ratios, verdicts; as text, Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.model import Experiment, Row
from benchmarks.runner import Outcome

COLUMNS = ("fork", "spawn", "scaleout")
_HEADINGS = ("row", "measure", *COLUMNS, "compared with", "ratio", "at most", "verdict")
_NOTHING = "–"


@dataclass(frozen=True)
class Line:
    """One row with its figures. `score` is what the bar is on: a ratio, or the value itself."""

    row: Row
    values: Mapping[str, float]  # contender key -> median
    reference: str | None
    score: float | None

    @property
    def verdict(self) -> str:
        if self.score is None:
            return "not measured"
        if self.row.at_most is None:
            return "reported"
        return "met" if self.score <= self.row.at_most else "MISSED"


def line_of(row: Row, outcomes: Mapping[str, Outcome]) -> Line:
    values = {}
    for key, outcome in outcomes.items():
        samples = _values(row, key, outcomes)
        if outcome.is_running and samples:
            values[key] = statistics.median(samples)
    references = [key for key in row.reference if key in values]
    reference = min(references, key=lambda key: values[key], default=None)
    score = values.get(row.subject)
    if score is not None and row.reference:
        score = score / values[reference] if reference and values[reference] > 0 else None
    return Line(row, values, reference, score)


def _values(row: Row, key: str, outcomes: Mapping[str, Outcome]) -> list[float]:
    taken = [sample[row.metric] for sample in outcomes[key].samples]
    if row.minus is None or key == row.minus:
        return taken
    less = [sample[row.metric] for sample in outcomes[row.minus].samples]
    return [value - base for value, base in zip(taken, less, strict=False)]


def table(lines: Sequence[Line]) -> list[list[str]]:
    """Cells as text, the headings first."""
    return [list(_HEADINGS), *(_cells(line) for line in lines)]


def _cells(line: Line) -> list[str]:
    row = line.row
    is_ratio = bool(row.reference)
    compared = _NOTHING
    if line.reference is not None:
        compared = line.reference
        if line.reference not in COLUMNS:  # its value stands in no column of its own
            compared += f": {_figure(line.values[line.reference], row.unit)}"
    at_most = _NOTHING
    if row.at_most is not None:
        at_most = f"{row.at_most:g} x" if is_ratio else _figure(row.at_most, row.unit)
    return [
        row.name,
        row.measures,
        *(_figure(line.values.get(key), row.unit) for key in COLUMNS),
        compared,
        f"{line.score:.3g} x" if is_ratio and line.score is not None else _NOTHING,
        at_most,
        line.verdict,
    ]


_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def _figure(value: float | None, unit: str) -> str:
    """Three digits and a unit that suits the size."""
    if value is None:
        return _NOTHING
    if unit == "count":
        return f"{value:.0f}"
    if unit == "MB":
        return f"{value:.1f} MB"
    if unit == "x":
        return f"{value:.3g} x"
    scale, name = next((s for s in _SECONDS if abs(value) >= s[0]), _SECONDS[-1])
    return f"{value / scale:.3g} {name}"


def as_text(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def as_markdown(cells: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(row).replace("__main__", "`__main__`") + " |" for row in cells]
    return "\n".join([rows[0], "|" + "---|" * len(_HEADINGS), *rows[1:]])


def notes(outcomes: Mapping[str, Mapping[str, Outcome]]) -> list[str]:
    """One sentence for each contender that was skipped or failed; repetitions are merged."""
    skipped: dict[str, None] = {}
    failed: list[str] = []
    for experiment, by_key in outcomes.items():
        for key, outcome in by_key.items():
            if outcome.skipped is not None:
                skipped[f"{key.split(',')[0]}: skipped, {outcome.skipped}"] = None
            if outcome.failed is not None:
                failed.append(f"{experiment}, {key}: FAILED, {outcome.failed}")
    return [*skipped, *failed]


def machine() -> list[str]:
    """Facts that the figures depend on; no date, so that the page changes only with them."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return [
        f"{len(os.sched_getaffinity(0))} cores ({_cpu_model()}), {memory_gb:.0f} GB of memory",
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}",
    ]


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def summary(lines: Sequence[Line]) -> str:
    counts = dict.fromkeys(("met", "MISSED", "reported", "not measured"), 0)
    for line in lines:
        counts[line.verdict] += 1
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)


_PAGE = """\
<!-- Generated by the command below. Do not edit: run it again. -->

# Performance

Made by `{command}` on

{machine}

Two workers. Each figure is the median of {repeat} repetitions or more; contenders run side by side, their
repetitions in turn. **fork** and **spawn** are the standard library's `multiprocessing.Pool` with that start
method, **scaleout** is `scaleout.multiprocessing.Pool`. The ratio is scaleout's median to that of the contender in
"compared with", which is the faster one where the standard library stands there twice; it is what counts, the times
only say on which scale. Where nothing is compared, the limit is on scaleout's own figure. Sizes are in decimal MB.

{table}

{summary}.
{notes}"""


def as_page(lines: Sequence[Line], note_lines: Sequence[str], command: str, repeat: int) -> str:
    return _PAGE.format(
        command=command,
        machine="\n".join(f"- {fact}" for fact in machine()),
        repeat=repeat,
        table=as_markdown(table(lines)),
        summary=summary(lines),
        notes="".join(["\n", *(f"- {note}\n" for note in note_lines)]) if note_lines else "",
    )


def as_json(
    lines: Sequence[Line],
    experiments: Sequence[Experiment],
    outcomes: Mapping[str, Mapping[str, Outcome]],
    command: str,
) -> str:
    """Everything, every single sample included."""
    return json.dumps(
        {
            "command": command,
            "machine": machine(),
            "rows": [
                {
                    "name": line.row.name,
                    "measures": line.row.measures,
                    "unit": line.row.unit,
                    "medians": dict(line.values),
                    "reference": line.reference,
                    "score": line.score,
                    "at_most": line.row.at_most,
                    "verdict": line.verdict,
                }
                for line in lines
            ],
            "experiments": {
                experiment.name: {
                    key: {
                        "samples": outcome.samples,
                        "skipped": outcome.skipped,
                        "failed": outcome.failed,
                    }
                    for key, outcome in outcomes[experiment.name].items()
                }
                for experiment in experiments
            },
        },
        indent=1,
    )
