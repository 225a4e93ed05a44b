"""Every bound of the runtime, with its reason. Sizes in bytes, times in seconds unless the name says otherwise."""

from __future__ import annotations

# -- what travels inside a frame ---------------------------------------------------------------
INLINE_BYTES = 64 * 1024
"""A payload up to this size travels inside its frame; a larger one goes to a segment and only its place travels."""

FRAME_BYTES = 1 << 20
"""A body larger than this from a local process is a bug of ours, not data: nothing legitimate comes near it."""

PIECE_BYTES = 512 * 1024
"""Of a large value, or of what one worker is sent or has said, on a link between machines: a frame of its own, within
what a frame may be."""

TURN_BYTES = 1 << 20
"""What one turn of a reactor reads or sends on a link between machines, so that others have their turn."""

RECEIVE_BYTES = 64 * 1024
"""One receive: larger buffers cost more to allocate than the system calls they save (13 µs at 256 KiB, 1.3 at 64)."""

CALLABLE_CACHE_ENTRIES = 512
CALLABLE_CACHE_BYTES = 32 << 20
"""Pickled callables an owner keeps for resending, beyond those in use: bounded in both, as lambdas may be endless."""

# -- how much is in flight ----------------------------------------------------------------------
PREFETCH_TASKS = 64
"""Most tasks in flight per worker: deeper buys nothing, the system calls are amortised long before."""

PREFETCH_BYTES = 1 << 20
"""Most payload bytes in flight per worker, so that many of them cannot fill memory with queued frames."""

PREFETCH_SECONDS = 0.005
"""What is queued behind a running task should take about this long: more would be taken back too often."""

TRUSTED_SAMPLES = 2
"""Calls of a function that go unprefetched before its measured duration is believed."""

STALL_SECONDS = 0.003
"""A worker that finished nothing for this long gives back what is queued behind the running task."""

REVOKE_SETTLE_SECONDS = 0.001
"""Between storing `revoked_from` and loading `claimed`: far longer than a store takes to become visible."""

WORDS_SECONDS = 0.01
"""How soon a driver hears that a worker of another machine has begun a task: for `Future.running`, limits of time."""

FEED_TASKS = 4096
"""Tasks of one lazy iterable that may wait undispatched; the feeder thread pauses above, so memory stays bounded."""

EAGER_ITEMS = 20_000
"""A sized sequence up to this long is submitted at once by the caller; a longer one gets a feeder thread."""

UNSEEN_TASKS = 100
"""Tasks that a thread submits before it lets the reactor see them: a turn costs about as much as ten of them."""

LONGEST_WAIT_SECONDS = 86_400.0
"""No timer is set further ahead: `epoll` takes milliseconds in 31 bits. Whoever is woken early looks again."""

PARKED_SECONDS = 0.005
"""A direct call whose answer nobody has begun to read for so long becomes an ordinary one."""

CLAIM_CHECK_SECONDS = 0.05
"""How often the reactor looks whether the holder of a worker it wants back is still there."""

# -- between machines ---------------------------------------------------------------------------
DIAL_SECONDS = 5.0
"""For a connection and its handshake. On a network where that is not enough, nothing here would be of use."""

ADMISSIONS = 64
"""Connections that have not shown yet who they are; more are closed."""

NEWCOMER_BYTES = 4096
"""What is read from somebody who has shown nothing yet. A certificate request has 500."""

SOURCES_BYTES = 50 << 20
"""Of the program's own modules that are sent to nodes, in all. Who has more of them has data or a copy of the world."""

SOURCE_PART_BYTES = 512 * 1024
"""Of a module, in one answer: half a frame."""

CERTIFICATE_SECONDS = 90 * 24 * 3600
"""That a member's certificate is good for. It is renewed when half of that is over."""

KEYS_LOOK_SECONDS = 3600.0
"""How often a node looks whether that is so."""

LEAVE_SECONDS = 1.0
"""That a program which exits takes at most to say so to the nodes of its cluster."""

PLACE_SECONDS = 0.5
"""How often an actor that no node has a place for looks again."""

TIDY_SECONDS = 1.0
"""After the end of a program a node's memory of it is collected."""

STEWARD_LOOK_SECONDS = 0.5
"""How often the head looks whether the steward of detached actors is still there."""

STEWARD_DIAL_SECONDS = 20.0
"""Who calls the steward of detached actors waits so long for it: it may have to be started."""

STEWARD_TRIAL_SECONDS = 5.0
"""One that fails sooner is started again for the next caller, and that not before some seconds are over."""

STEWARD_PAUSE_SECONDS = 30.0
"""The longest of these pauses, which begin at a second."""

STEWARD_END_SECONDS = 5.0
"""That it may take to end its actors."""

SOURCES_KEPT_SECONDS = 7 * 24 * 3600
"""That a node keeps a module after it was sent."""

LINE_BYTES = 8192
"""What a worker of another machine has printed goes to the driver line by line; a longer one in parts."""

FOLDED_LINES = 5
"""So often a worker of another machine may print the same line in a row; how often it did beyond that is told."""

FOLD_SECONDS = 1.0
"""After so long, at the latest."""

SIGNAL_SECONDS = 0.5
"""So long at most the main thread waits without having looked for a signal that came just before."""

RECORD_CHARACTERS = 64 * 1024
"""Of the message of a record that a worker logs; the rest is cut off."""

WAITING_RECORDS = 10_000
"""Of workers, for the handlers of their owner; what comes while there are so many is dropped, and counted."""

OUTPUT_BYTES_PER_SECOND = 1 << 20
"""Of all that a driver's workers on one node print; the rest is dropped, and counted. Nobody reads faster."""

SILENCE_SECONDS = 10
"""A machine that does not answer for so long is gone: see also `core.membership`."""

RESUME_SECONDS = 5.0
"""That a node and a driver who have lost their connection wait for the next one, before each gives the other up."""

RESUME_PAUSE_SECONDS = 0.2
"""Between attempts to make it."""

CONFIRM_BYTES = 1 << 20
"""After so much received on a link between machines the sender is told, who keeps it until then."""

UNCONFIRMED_BYTES = 16 << 20
"""With so much sent and not confirmed a link sends no more: what 1 Gbit/s has under way in 0.1 s."""

SPREAD_BYTES = 1 << 20
"""A value of so many bytes that several nodes need goes from node to node, and not from the driver to each."""

BULK_BYTES = 1 << 20
"""Read and sent at once, from node to node."""

BULK_IDLE_SECONDS = 10.0
"""A connection from node to node that is not used is closed after so long."""

PULLS = 4
"""Values that a node receives from other nodes at once: what more is wanted waits, rather than that all are slow."""

LINEAGE_BYTES = 256 << 20
"""Of recipes for values that stay on other machines; with more, results are sent to their owner as they are made."""

REDIAL_SECONDS = 2.0
"""Until a driver tries again to reach a node that the head has and that it has lost, or could not reach."""

HEAD_SECONDS = 1.0
"""For what a node asks its head while a driver waits; if that is away, the node says what it knows."""

RESTLESS_SECONDS = 1.0
"""How long a worker's control page is looked at after something was sent to it or by it: it may begin a task late."""

RENEW_SECONDS = 1.0
"""How often a node tells the head that it is there."""

# -- supervision --------------------------------------------------------------------------------
TERMINATE_GRACE_SECONDS = 0.5
"""From SIGTERM to SIGKILL in `terminate()`."""

INTERRUPT_GRACE_SECONDS = 0.3
"""From SIGINT to SIGKILL when Ctrl-C left a wait: the prompt must be back in under a second."""

INITIALIZER_FAILURES = 3
"""Consecutive workers lost in their initializer before the group is declared broken."""

ZYGOTE_RESTARTS_PER_MINUTE = 5
"""A zygote that dies more often than this is not bad luck; giving up is clearer than a fork storm."""

NESTING_DEPTH = 5
"""Pools inside pools: deeper is a runaway recursion."""

HELP_DEPTH = 16
"""Tasks inside tasks that wait for them, in one worker: each takes some of the stack. Below that is another worker."""

HELD_IDLE_SECONDS = 0.5
"""A worker that idles this long and holds references looks for those that garbage and threads have let go."""

REPLAY_ATTEMPTS = 3
"""How often a call may be under way when its actor's process dies and still be made again with the log: more often, and
it is the call that kills."""

ACTOR_WINDOW_TASKS = 256
"""Calls that are sent to an actor before it has answered: what is sent need not be waited for."""

LINE_AFTER_CALLS = 3
"""A worker that has called an actor so often, one call after another, gets a line to it."""

LINE_PATIENCE_SECONDS = 0.01
"""An answer that takes longer goes by the owner, so that the slot of whoever waits for it is free meanwhile."""

LINES_PER_WORKER = 64
"""Each takes a descriptor at both ends."""

NOTED_CALLS = 100
"""The owner is told of so many calls over lines at once, for the history."""

KEPT_BACK_SECONDS = 0.0005
"""So long the youngest task that a worker has submitted is kept from others: mostly it waits for it, and does it."""

ENDLESS_RETRIES = 1 << 30
"""What -1 means: more often than any worker dies."""

HISTORY_EVENTS = 10_000
"""Ended tasks that `list_tasks` and `timeline` still know: about 2 MB."""

FREE_TASKS = 64
"""Tasks that need no resource at all run at most so many at once: each still takes a process."""

STREAM_AHEAD = 32
"""Items that a streaming task may be ahead of its consumer."""

MEMORY_WATCH_SECONDS = 0.25
MEMORY_SHORT_SHARE = 0.01
"""While tasks run: with less than this share of the memory left the newest retriable one is killed, to run again
later. The system's own killer is near then, and would as soon take the driver."""

MEMORY_KILL_PAUSE_SECONDS = 1.0
"""Between two such kills, so that the first can have an effect."""

# -- store --------------------------------------------------------------------------------------
WARM_BYTES = 256 << 20
"""Freed pages a writer keeps committed while it is in use: reusing them is ten times faster than new ones. (64 MiB
was too little: two 50 MB arrays in turn were always cold.)"""

WARM_SECONDS = 2.0
"""After this long without use the warm pages go back to the system too."""
