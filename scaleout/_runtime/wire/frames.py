"""The frames that owners, workers and the zygote exchange, and how a byte stream is cut into them.

A frame is a 20-byte header and a body. The header's fields are read in one call on the per-task path:

    length  u32   bytes of body that follow
    kind    u8    one of the constants below
    flag    u8    TASK: how to call; RESULT: what came out; 0 elsewhere. Bit 7: the body describes stored data
    aux     u32   TASK: callable id; RESULT: duration in µs
    number  u64   TASK, RESULT: sequence number of the task on this worker; otherwise an id

Frames of these kinds carry one file descriptor, sent as ancillary data with the frame's first byte: see
FD_KINDS. There is one socket per worker and it is always read with `recvmsg` (0.5 µs more than `recv` per
wake-up), so a descriptor arrives in stream order, before the first frame that names what it is; a second
socket per worker for descriptors was considered and not needed.
"""

from __future__ import annotations

from struct import Struct

HEADER = Struct("<IBBxxIQ")
HEADER_BYTES = HEADER.size

# owner -> worker
HELLO = 1  # + control page fd; body: what a worker must know to be itself
INITIALIZE = 2  # body: pickled (initializer, initargs); number of fds that were passed before it in aux
TASK = 3
CALLABLE = 4  # number: callable id
DEFINITION = 5  # number: definition id
FORGET = 6  # body: callable ids no longer needed
FREE = 7  # body: extents of the receiver's own segment whose last reader is gone
EXIT = 8  # finish what is queued before this frame, then exit
LOOSE_FD = 9  # + fd, for the INITIALIZE or TRACKER frame that follows
FORGET_DEFINITIONS = 11  # body: definition ids that are superseded and needed by nothing
TRACKER = 10  # + fd of the driver's resource tracker
OBJECT = 12  # number: object id; aux: the WANT it answers, 0: a dependency of the next task; body: its value or failure
WAITED = 13  # number: the WANT that is satisfied; body: what is there of it, in its order
TAKEN = 14  # number: sequence number of a task that streams; aux: how many items its consumer took; flag 1: its last
RESUME = 15  # all that was sent before it and is not done yet comes again: see NEED and RETURNED, of an actor
CANCEL = 16  # number: sequence number of a call that nobody wants; actors that can end it do
LINE = 17  # + fd: an end of a line; number: the actor; flag 1: to the caller, aux: the actor's worker; flag 0: to that

# worker -> owner
READY = 20
RESULT = 21
RETURNED = 22  # body: sequence numbers that were revoked before they were claimed
RELEASED = 23  # body: extents of the receiver's segments whose last view died
NEED = 24  # number: sequence number of a task that could not be decoded; body: (module, name, traceback)
INITIALIZER_FAILED = 25
CHANNEL = 26  # + fd: the worker becomes an owner and asks for a channel to the zygote
SUBMIT = 27  # a task, from inside a task; flag: STORED or 0; body: see node.clerk
PUT = 28  # number: object id; flag: as of RESULT; body: the value
WANT = 29  # number: of the request; body: (object ids, how many are enough, whether values are wanted, may help)
UNWANT = 31  # number: of a WANT that is given up
RELEASE = 32  # body: (object id, hand-overs settled) of objects that nothing here refers to any more
ITEM = 33  # number: sequence number of a task; aux: position; flag and body as of RESULT: one of its several results
FUNCTION = 34  # number: what SUBMIT calls it from now on; body: a pickled function
CREATE_ACTOR = 37  # flag and body: as of SUBMIT, see node.clerk
CHECKPOINT = 36  # flag and body as of RESULT: what an actor has saved, as of all that it has answered
REQUEST = 35  # number: object id for the answer; body: a question to the owner, see node.clerk
CALLED = 38  # number: object id of a call that was made over a line and is the owner's now; body: see node.lines
ANSWERED = 39  # number: object id of a call that was made over a line; flag and body as of RESULT: its answer
LOGGED = 61  # body: (what is in a log record, how many were dropped before it)
NOTED = 49  # body: what the history is to say of calls over lines
# both ways
SEGMENT = 30  # + fd; number: segment id; body: (size, is_on_disk)

# on a line, besides TASK and RESULT, whose number is the object's; both ways
BY_OWNER = 60  # number: of the call whose answer goes by the owner

# owner <-> zygote
STATE = 40  # body: what the children that follow are to look like
OUTPUT = 41  # + fd; number: 1 or 2
FORK = 42  # + fd: the child's socket; number: worker id
KILL = 43  # number: worker id, aux: signal
PARK = 44  # nothing to do for now: exit by yourself after aux ms
ADOPT = 45  # + fd: a further channel; number: worker id of its owner
FORKED = 46  # number: worker id, aux: pid
EXITED = 47  # number: worker id, aux: wait status
REFUSED = 48  # number: worker id; body: why

# driver <-> node, besides the zygote's frames; number: worker id, where nothing else is said
WELCOME = 77  # the node's first frame, once it knows who is there; body: JSON, see cluster.admission
JOIN = 78  # a newcomer's first frame, and the answer; body: JSON, see cluster.admission
ATTACH = 79  # the driver's first frame, and the node's answer; body: what they must know of each other
WATCH = 92  # from now on the driver wants to hear of nodes from this one
FORGET_SEGMENT = 90  # number: of one that nobody reads or writes any more
UNSEAT = 91  # the worker that was greeted will not be
NODES = 88  # body: the nodes that there are now
PRINTED = 89  # aux: 1 for stdout, 2 for stderr; body: whole lines of a worker, with where they are from
RELAY = 80  # both ways; body: whole frames to the worker, or from it
GREET = 81  # body: (what the worker's HELLO is to say, but for what its node has: see cluster.tenant; GPUs in 1/1000)
WORD = 82  # aux: a word of the control page; body: its new value
LOOK = 83  # aux: the number of this question
WORDS = 84  # aux: the LOOK that it answers, 0: unasked; body: the words of the control page, with an age for SINCE_NS
INTRODUCE = 85  # the worker is to know a segment before what is relayed next; body: (segment id, size, is_on_disk)
PIECE = 86  # both ways; number: segment id; body: offset in 8 bytes, and what is there
CONFIRM = 93  # both ways; number: how many bytes of the stream have arrived
BYE = 94  # both ways: no connection follows this one
FETCH = 95  # number: of this question; body: an extent of a segment there, whose bytes are wanted
FETCHED = 96  # number: the question; what was asked for has been sent; flag 1: it is not there
PULL = 97  # number: of this question; body: see cluster.tenant; FETCHED is the answer. Between nodes: see cluster.bulk
SHORT = 98  # the node has little memory left; body: how much of it the driver's workers have there, by pid
DISCARD = 87  # body: extents of mirrored segments that nobody reads any more

FD_KINDS = frozenset({HELLO, LOOSE_FD, TRACKER, LINE, CHANNEL, SEGMENT, OUTPUT, FORK, ADOPT})

AT_ONCE = frozenset({HELLO, SEGMENT, TRACKER, LOOSE_FD, LINE, FREE})
"""A worker obeys these as soon as they are read: descriptors come in the order of their frames, whoever reads them, and
nothing else depends on when."""

# TASK flags: how to call
CALL_ARGS = 0  # payload is args
CALL_ARGS_KWARGS = 1  # payload is (args, kwargs)
CALL_ITEM = 2  # payload is the one argument
MAP_ITEMS = 3  # payload is a list of single arguments; the result is a list
STARMAP_ITEMS = 4  # payload is a list of argument tuples; the result is a list
CREATE = 5  # payload is (args, kwargs) of the actor's constructor
METHOD = 6  # the callable is a method's name, payload is (args, kwargs)
RESTORE = 7  # payload is what the actor saved
ENVELOPE = 0x08  # payload is marshal of (payload, dependencies, handed-over references, number of results)
MAY_STAY = 0x20  # a large result is not needed at the owner: see STAYS
HELP = 0x10  # for the task that runs there and waits for it
TRACE_ITEMS = 0x40  # a repeated attempt: note each item's index in the control page
STORED = 0x80
HOW_MASK = 0x07

# RESULT flags: what came out. The shims map these to the exceptions of the module they stand for.
HAS_REFERENCES = 0x40  # body is marshal of (body, references in the value)
STAYS = 0x20  # what is stored stays on the machine where it was made, until somebody fetches it
STATUS_MASK = 0x1F
OK = 0
TASK_RAISED = 1
ARGUMENT_NOT_UNPICKLED = 2
RESULT_NOT_PICKLED = 3
TASK_EXITED = 4  # raised SystemExit
# never on the wire: outcomes that the owner itself finds
WORKER_DIED = 16
ARGUMENT_NOT_PICKLED = 17
RESULT_NOT_UNPICKLED = 18
GROUP_BROKEN = 19
SESSION_CLOSED = 20
DROPPED = 21
OUT_OF_MEMORY = 22
TIMED_OUT = 23
CANCELLED = 24
STREAM_ENDED = 25
ACTOR_DIED = 26
LOST = 27
INFEASIBLE = 28


def frame(kind: int, body: bytes = b"", *, flag: int = 0, aux: int = 0, number: int = 0) -> bytes:
    """One whole frame."""
    return HEADER.pack(len(body), kind, flag, aux, number) + body
