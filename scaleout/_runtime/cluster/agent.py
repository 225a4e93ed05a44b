"""A node's place in its cluster: it registers with the head, says every second that it is there, learns who else is.

A thread of its own, as gRPC blocks. A head that is away is waited for; what runs here goes on.
"""

from __future__ import annotations

import threading

import grpc

from scaleout._runtime.base import limits
from scaleout._runtime.cluster import head_pb2 as pb
from scaleout._runtime.cluster import head_pb2_grpc as service
from scaleout._runtime.cluster.head import channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleout._runtime.cluster import tls


class Agent:
    """See the module's docstring.

    `on_nodes(reply)` is told of every change of the list of nodes while `wants_nodes()`; `on_fenced()` when our epoch
    is over: what was begun under it others may have begun anew. All are called on the agent's thread. `report(line)`
    writes to the log.
    """

    def __init__(
        self,
        head_address: str,
        identity: tls.Identity,
        node: pb.Node,
        wants_nodes: Callable[[], bool],
        on_nodes: Callable[[pb.NodesReply], None],
        on_fenced: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        self._address = head_address
        self._identity = identity
        self._connect()
        self._node = node
        self._wants_nodes = wants_nodes
        self._on_nodes = on_nodes
        self._on_fenced = on_fenced
        self._report = report
        self._is_over = threading.Event()
        self._version = 0
        self._is_away = False
        self.epoch = 0
        self._thread = threading.Thread(target=self._run, name="scaleout-agent", daemon=True)

    def _connect(self) -> None:
        self._channel = channel(self._address, self._identity)
        self._head = service.HeadStub(self._channel)

    def take_new_certificate(self) -> None:
        """Any thread: what goes on over the old connection goes on."""
        before = self._channel
        self._connect()
        threading.Timer(limits.DIAL_SECONDS, before.close).start()

    def start(self) -> None:
        """Registered when this returns. grpc.RpcError if the head does not answer, or refuses."""
        self._register()
        self._renew()
        self._thread.start()

    def _register(self) -> None:
        request = pb.RegisterRequest(node=self._node)
        reply = self._head.Register(request, timeout=limits.DIAL_SECONDS, wait_for_ready=not self.epoch)
        before, self.epoch = self.epoch, reply.epoch
        if before and before != reply.epoch:
            self._report(f"the head had given this node up: epoch {before} is over, now it is {reply.epoch}")
            self._on_fenced()

    def _run(self) -> None:
        while not self._is_over.wait(limits.RENEW_SECONDS):
            try:
                self._renew()
                if self._is_away:
                    self._is_away = False
                    self._report(f"the head at {self._address} is back")
            except grpc.RpcError as error:
                if self._is_over.is_set():
                    return
                if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                    self._try_to_register()
                elif not self._is_away:
                    self._is_away = True
                    self._report(f"the head at {self._address} does not answer ({error.code().name}); work goes on")

    def _renew(self) -> None:
        request = pb.RenewRequest(node_id=self._node.node_id, epoch=self.epoch)
        version = self._head.Renew(request, timeout=limits.DIAL_SECONDS).version
        if version != self._version and self._wants_nodes():
            reply = self._head.Nodes(pb.NodesRequest(), timeout=limits.DIAL_SECONDS)
            self._version = reply.version
            self._on_nodes(reply)

    def nodes(self) -> pb.NodesReply | None:
        """Any thread: the nodes at this moment; None if the head does not answer."""
        try:
            return self._head.Nodes(pb.NodesRequest(), timeout=limits.HEAD_SECONDS)
        except grpc.RpcError:
            return None

    def _try_to_register(self) -> None:
        try:
            self._register()
        except grpc.RpcError as error:
            self._report(f"the head at {self._address} does not take this node back yet ({error.code().name})")

    def close(self) -> None:
        """Say good-bye, if the head is there."""
        self._is_over.set()
        try:
            self._head.Leave(pb.LeaveRequest(node_id=self._node.node_id, epoch=self.epoch), timeout=1.0)
        except grpc.RpcError:
            pass  # it will notice
        self._channel.close()
