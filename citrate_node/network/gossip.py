"""Gossip that no peer can stop: py-libp2p's pubsub and gossipsub with their doors closed.

`SafePubsub` replaces the methods that touch what peers send: a malformed frame, a garbage key or a raising
validator stopped the whole host in bare 0.8.1. `SafeGossipSub` ignores control messages that would make us
remember or dial what a peer invents. Each remedy has a test that fails without it
(tests/network/test_gossip_hardening.py). Called by libp2p_network, on the trio side.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakValueDictionary

import libp2p.pubsub.gossipsub
import libp2p.pubsub.pubsub
import trio
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import signature_validator

from citrate_node.network.ledger import INVALID_MESSAGE, LATE_MESSAGE, MALFORMED_FRAME, OVER_RATE, Ledger
from citrate_node.network.settings import NetworkConfig, PeerFailed
from citrate_node.network.streams import Stream, read_some
from citrate_node.network.waste import SeenMessages, SequenceMarks, Worth

log = logging.getLogger(__name__)

FRAME_SIZE_BYTES_MAX: Final = 1 << 20
MESSAGES_PER_FRAME_MAX: Final = 2_000
CONTROLS_PER_FRAME_MAX: Final = 256
IDS_PER_CONTROL_MAX: Final = 1_000
SUBSCRIPTIONS_PER_PEER_MAX: Final = 32
QUEUED_MESSAGES_MAX: Final = 1_024
QUEUED_BYTES_MAX: Final = 8 << 20
"""To one peer. The library keeps 32 messages whatever their size and drops the rest without a word."""
DEGREE, DEGREE_LOW, DEGREE_HIGH = 6, 4, 12
"""gossipsub's usual mesh; with four nodes each simply has the other three."""

Deliver = Callable[[str, str, str, bytes], None]
"""(topic, origin, forwarder, data) of each valid message of a topic we are subscribed to, once."""


def install() -> None:
    """Replace, in place, what the library looks up by name. Idempotent."""
    libp2p.pubsub.pubsub.RpcQueue = SendQueue
    # a signed address record in every frame costs each receiver two signature checks, and we have our own
    for module in (libp2p.pubsub.pubsub, libp2p.pubsub.gossipsub):
        module.env_to_send_in_RPC = lambda host: (b"", False)


class SendQueue(RpcQueue):  # type: ignore[misc]
    """What waits to be sent to one peer, bounded by bytes as well as by number."""

    def __init__(self) -> None:
        super().__init__(max_size=QUEUED_MESSAGES_MAX)
        self._size_bytes = 0

    def push(self, rpc: Any, priority: bool = False) -> bool:
        rpc.ClearField("senderRecord")
        size_bytes = rpc.ByteSize()
        if self._size_bytes + size_bytes > QUEUED_BYTES_MAX or not super().push(rpc, priority):
            return False
        self._size_bytes += size_bytes
        return True

    async def pop(self) -> Any:
        rpc = await super().pop()
        if rpc is not None:
            self._size_bytes -= rpc.ByteSize()
        return rpc


class SafeGossipSub(GossipSub):  # type: ignore[misc]
    """gossipsub 1.1 for small meshes and announcements.

    Only 1.1 is offered: 1.2 adds an IDONTWANT for every message of any size, half as much work again for 1 kB
    as for 60 kB (benchmarks/network_gossip.py), and go and js peers speak 1.1 as well.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(
            protocols=[PROTOCOL_ID_V11],
            degree=DEGREE,
            degree_low=DEGREE_LOW,
            degree_high=DEGREE_HIGH,
            heartbeat_interval=1,  # the default of 120 s leaves a new peer outside the mesh for minutes
            adaptive_gossip_enabled=False,  # it slowed the heartbeat of a small, healthy network to 30 s
            spam_protection_enabled=False,  # it drops, silently, what is above 10 a second, our own included
        )
        self._ledger = ledger

    async def heartbeat(self) -> None:
        while True:
            try:
                await super().heartbeat()
            except Exception:
                log.exception("a gossip heartbeat failed")
                await trio.sleep(self.heartbeat_interval)

    async def publish(self, msg_forwarder: Any, pubsub_msg: Any) -> None:
        await super().publish(msg_forwarder, pubsub_msg)
        self.recent_message_deliveries.clear()  # grows for ever; only adaptive gossip would read it

    def _check_equivocation(self, msg: Any) -> bool:
        return True  # it keeps a thousand whole payloads to notice what the seen ids have already caught

    def _handle_dropped_rpc(self, peer_id: Any, rpc: Any, reason: str) -> None:
        self._ledger.count("frames_not_sent")
        super()._handle_dropped_rpc(peer_id, rpc, reason)

    async def handle_rpc(self, rpc: Any, sender_peer_id: Any) -> None:
        control = rpc.control
        entries = sum(
            len(getattr(control, kind)) for kind in ("ihave", "iwant", "graft", "prune", "idontwant")
        )
        if entries > CONTROLS_PER_FRAME_MAX:
            raise ValueError(f"{entries} control messages in one frame")
        rpc.ClearField("senderRecord")
        await super().handle_rpc(rpc, sender_peer_id)

    async def handle_ihave(self, ihave_msg: Any, sender_peer_id: Any) -> None:
        if ihave_msg.topicID in self.mesh:
            del ihave_msg.messageIDs[IDS_PER_CONTROL_MAX:]
            await super().handle_ihave(ihave_msg, sender_peer_id)

    async def handle_iwant(self, iwant_msg: Any, sender_peer_id: Any) -> None:
        wanted = dict.fromkeys(
            iwant_msg.messageIDs[:IDS_PER_CONTROL_MAX]
        )  # one id asked for twice is sent once
        del iwant_msg.messageIDs[:]
        iwant_msg.messageIDs.extend(wanted)
        await super().handle_iwant(iwant_msg, sender_peer_id)

    async def handle_graft(self, graft_msg: Any, sender_peer_id: Any) -> None:
        if graft_msg.topicID in self.mesh:  # a PRUNE in answer would keep us out for a minute if we join now
            await super().handle_graft(graft_msg, sender_peer_id)

    async def handle_prune(self, prune_msg: Any, sender_peer_id: Any) -> None:
        if prune_msg.topicID in self.mesh:  # else each invented topic would be remembered with its back-off
            await super().handle_prune(prune_msg, sender_peer_id)

    async def _do_px(self, px_peers: Any) -> None:
        """Dial nobody on a PRUNE's word; peers are exchanged by peers.py, bounded and checked."""


class SafePubsub(Pubsub):  # type: ignore[misc]
    """pubsub whose reading end is ours: bounded, accounted for, and never the end of the host."""

    def __init__(
        self,
        host: Any,
        router: SafeGossipSub,
        config: NetworkConfig,
        ledger: Ledger,
        validate: Callable[[str, bytes], bool],
        worth: Callable[[str, bytes], Worth],
        deliver: Deliver,
    ) -> None:
        super().__init__(host, router, max_subscriptions_per_peer=SUBSCRIPTIONS_PER_PEER_MAX)
        library_cache: Any = self.seen_messages
        library_cache.stop()  # a thread that nothing else would ever end
        self.seen_messages: SeenMessages = SeenMessages(trio.current_time)
        self._sequences = SequenceMarks(trio.current_time)
        # from the second and a count, a node that restarts repeats numbers, and its messages are dropped
        self.counter = time.time_ns()
        self._announced_on: WeakValueDictionary[Any, Any] = WeakValueDictionary()
        self._config = config
        self._ledger = ledger
        self._validate = validate
        self._worth = worth
        self._deliver = deliver

    def get_hello_packet(self) -> Any:
        packet = rpc_pb2.RPC()
        for topic in self.topic_ids:
            packet.subscriptions.add(subscribe=True, topicid=topic)
        return packet

    async def write_msg(self, stream: Any, rpc_msg: Any) -> bool:
        rpc_msg.ClearField("senderRecord")
        self._ledger.count("gossip_bytes_sent", rpc_msg.ByteSize())
        return bool(await super().write_msg(stream, rpc_msg))

    async def stream_handler(self, stream: Stream) -> None:
        """Read a peer's frames until it ends; whatever it sends, only its own stream pays for it."""
        peer = stream.muxed_conn.peer_id
        if self._announced_on.get(peer) is not stream.muxed_conn:
            # a node that was restarted announces all its topics; what it had before is outdated
            self._announced_on[peer] = stream.muxed_conn
            self._forget_all_subscriptions(peer)
        try:
            await self._read_frames(stream, peer)
            return
        except PeerFailed as error:
            log.debug("gossip stream of %s ended: %s", peer, error)
        except Exception as error:
            self._ledger.count("frames_malformed")
            self._ledger.penalise(str(peer), MALFORMED_FRAME, f"sent a malformed gossip frame ({error!r})")
        with contextlib.suppress(Exception):
            await stream.reset()
        self._handle_dead_peer(peer)

    async def handle_dead_peer_queue(self) -> None:
        """A connection ended. The peer may have a new one by now, and a gossip stream that died too."""
        async with self.dead_peer_receive_channel:
            self.event_handle_dead_peer_queue_started.set()
            async for peer_id in self.dead_peer_receive_channel:
                stream = self.peers.get(peer_id)
                if not self._peer_is_connected(peer_id) or (stream is not None and _is_dead(stream)):
                    self._handle_dead_peer(peer_id)

    def _handle_dead_peer(self, peer_id: Any) -> None:
        """Forget a peer that left; of one that is still (or again) connected only the stream is renewed.

        The library would then forget its subscriptions too, though the peer may have announced them on the
        new connection already, and would never hear them again.
        """
        if not self._peer_is_connected(peer_id):
            super()._handle_dead_peer(peer_id)
            return
        self._drop_stream(peer_id)
        self._schedule_peer_stream_retry(peer_id)

    def _drop_stream(self, peer_id: Any) -> None:
        stream = self.peers.pop(peer_id, None)
        queue = self.peer_queues.pop(peer_id, None)
        if queue is not None:
            queue.close()
        self._replayed_recent_topics.pop(peer_id, None)
        self.router.remove_peer(peer_id)
        if stream is not None and self.manager.is_running:
            self.manager.run_task(_close, stream)

    async def _read_frames(self, stream: Stream, peer: Any) -> None:
        frames = _Frames(stream)
        peer_id = str(peer)
        while (frame := await frames.next()) is not None:
            rpc = rpc_pb2.RPC()
            rpc.ParseFromString(frame)
            if len(rpc.publish) > MESSAGES_PER_FRAME_MAX:
                raise ValueError(f"{len(rpc.publish)} messages in one frame")
            self._ledger.count("gossip_bytes_received", len(frame))
            wait = self._ledger.admit(peer_id, max(1, len(rpc.publish)), len(frame))
            for message in rpc.publish:
                await self.push_msg(peer, message)
                await trio.lowlevel.checkpoint()  # a frame of many messages must not hold up everybody else
            for subscription in rpc.subscriptions[: 4 * SUBSCRIPTIONS_PER_PEER_MAX]:
                if len(subscription.topicid) <= 256:
                    self.handle_subscription(peer, subscription)
            if rpc.HasField("control"):
                await self.router.handle_rpc(rpc, peer)
            if wait > 0.0:  # meanwhile yamux's window fills and stops the peer
                self._ledger.held_back(peer_id, wait)
                await trio.sleep(wait)

    async def push_msg(self, msg_forwarder: Any, msg: Any) -> None:
        """Check a message once, deliver it, pass it on. Ours need only the last."""
        ledger = self._ledger
        if msg_forwarder == self.my_id:
            self._mark_msg_seen(msg)
            ledger.note_seen()
            await self.router.publish(msg_forwarder, msg)
            return
        forwarder = str(msg_forwarder)
        if self._is_msg_seen(msg):
            ledger.note_repeated(forwarder)
            return
        topic = msg.topicIDs[0] if len(msg.topicIDs) == 1 else ""
        if topic not in self.topic_ids:
            ledger.note_useless(forwarder, 1.0, "sends topics that nobody here listens to")
            return
        origin = str(ID(msg.from_id))
        if ledger.is_blocked(origin) or ledger.is_blocked(forwarder) or msg.from_id == self.my_id.to_bytes():
            ledger.count("messages_refused")
            if msg.from_id == self.my_id.to_bytes():
                ledger.note_useless(forwarder, 1.0, "sends us our own messages")
            return
        if not self._is_valid(topic, msg):
            ledger.count("messages_invalid")
            ledger.penalise(forwarder, INVALID_MESSAGE, f"forwarded an invalid message on {topic}")
            return
        self._mark_msg_seen(msg)
        if not self._is_useful(forwarder, origin, msg):
            return
        if not ledger.admit_origin(origin):
            ledger.count("messages_over_rate")
            if forwarder == origin:
                ledger.penalise(origin, OVER_RATE, "publishes more than it may", in_haste=True)
            return
        ledger.count("messages_received")
        if forwarder != origin:
            ledger.note_useful(forwarder)
        self._deliver(topic, origin, forwarder, msg.data)
        await self.router.publish(msg_forwarder, msg)

    def _is_useful(self, forwarder: str, origin: str, msg: Any) -> bool:
        """Whether a valid message is of use now; whoever brought one that is not is accounted for it."""
        worth = self._worth(origin, msg.data)
        if worth is not Worth.USELESS:
            sent_before = self._sequences.is_below(origin, int.from_bytes(msg.seqno, "big"))
            if worth is Worth.USEFUL:
                self._ledger.note_seen()
                return True
            if not sent_before:
                self._ledger.note_seen()
                self._ledger.count("messages_late")
                if forwarder == origin:
                    self._ledger.note_useless(origin, LATE_MESSAGE, "publishes for closed checkpoints")
                return False
        self._ledger.count("messages_useless")
        self._ledger.note_useless(forwarder, 1.0, "repeats old messages, or foreign ones")
        return False

    def _is_valid(self, topic: str, msg: Any) -> bool:
        """Whether a message is right whoever looks. Runs without a pause, so no second copy slips past it."""
        if len(msg.data) > self._config.message_size_bytes_max or len(msg.seqno) != 8:
            return False
        try:
            return bool(signature_validator(msg) and self._validate(topic, msg.data))
        except Exception as error:
            log.info("checking a message on %s failed: %r", topic, error)
            return False


def _is_dead(stream: Stream) -> bool:
    connection = stream.muxed_conn
    return bool(connection.is_closed or connection.event_shutting_down.is_set())


async def _close(stream: Stream) -> None:
    """End a stream that is no longer used: closed, not reset, which the peer would take for a death."""
    with contextlib.suppress(Exception):
        await stream.close()


class _Frames:
    """Length-prefixed frames of a stream, read in large pieces: each read of yamux costs a round of locks."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._held = bytearray()

    async def next(self) -> bytes | None:
        """The next frame; None where the stream ends between two. ValueError when it is not a frame."""
        while (prefix := _varint(self._held)) is None:
            if not await self._more():
                if self._held:
                    raise PeerFailed("the stream ended inside a frame")
                return None
        size_bytes, start = prefix
        if size_bytes > FRAME_SIZE_BYTES_MAX:
            raise ValueError(f"a frame of {size_bytes} bytes")
        while len(self._held) < start + size_bytes:
            if not await self._more():
                raise PeerFailed("the stream ended inside a frame")
        frame = bytes(self._held[start : start + size_bytes])
        del self._held[: start + size_bytes]
        return frame

    async def _more(self) -> bool:
        piece = await read_some(self._stream, 65_536)
        self._held += piece
        return bool(piece)


def _varint(data: bytearray) -> tuple[int, int] | None:
    """(value, length) of the unsigned varint that data begins with; None when it has not all arrived."""
    value = 0
    for index, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, index + 1
    if len(data) >= 5:
        raise ValueError("a frame length of more than five bytes")
    return None
