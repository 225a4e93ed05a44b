"""Every speed and memory row that scaleout promises, beside its peers in the same run.

    python -m benchmarks                               # everything; minutes
    python -m benchmarks --quick                       # small sizes: does it run, roughly how does it stand
    python -m benchmarks --rows apply,starmap-array --repeat 9
    python -m benchmarks --write docs/performance.md   # the published page

One experiment runs one function for several contenders, usually the standard library's Pool with
fork, with spawn, and scaleout's. Every contender has a process of its own; repetitions go round
(A B C, A B C, ...), so that drift of the machine hits all alike; what counts is the ratio of medians. Nothing
here is a test: a row that misses its bar says so in the table and fails nothing.

This package reaches the library only by its public names. It is not installed with it.

| module | what |
|---|---|
| `model` | the nouns: experiment, contender, row, setting |
| `startup`, `calls`, `throughput`, `executors`, `joblib_calls`, `arrays`, `memory`, `threads` | the experiments |
| `microbenchmark` | those of tasks, actors and objects, beside Ray |
| `registry` | all experiments in the order of the table |
| `peers` | how each peer is opened, and whether it is installed |
| `workloads` | what runs in the workers |
| `runner`, `measure` | the interleaving; the process that it starts per contender |
| `scripts`, `process_tree` | generated driver programs; what /proc says of one and its children |
| `report` | ratios, verdicts, the table as text, Markdown and JSON |
"""
