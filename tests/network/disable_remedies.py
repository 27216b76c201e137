"""Does each remedy's test fail without it? Takes the remedies out, one at a time, in a copy of the source.

    python tests/network/disable_remedies.py [--green] [WORD ...]    # whose name holds a word; default: all

Each test must be green with the remedy and red without it; `--green` takes the first for granted, after a run
of the tests. Prints a line per remedy; exit code 1 where one is not as it must be, or the text that is taken
out has changed. The libraries are loaded once and each run is forked from there.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS_MAX = 150
PRELOADED = (
    *("numpy", "hypothesis", "httpx", "cbor2", "nacl.signing", "coincurve", "eth_account", "pytest_asyncio"),
    *("libp2p", "libp2p.pubsub.gossipsub", "libp2p.tools.anyio_service", "libp2p.security.noise.transport"),
)
NETWORK = "citrate_node/network/"


@dataclass(frozen=True)
class Remedy:
    """Where a remedy stands, and what stands there without it."""

    name: str
    file: str
    taken_out: dict[str, str]
    """Text that stands there once, to what takes its place."""
    test: str


def _off(method: str) -> dict[str, str]:
    """A method of ours gives way to the library's."""
    return {f"def {method}(": f"def {method}_off("}


GOSSIP, HARDENING = NETWORK + "gossip.py", NETWORK + "hardening.py"
T_GOSSIP, T_DOORS = "test_gossip.py::test_", "test_gossip_hardening.py::test_"
T_HARD, T_PEERS, T_ASK = "test_hardening.py::test_", "test_peers.py::test_", "test_requests.py::test_"
T_WASTE = "test_waste.py::test_a_peer_that_slowly_sends_useless_messages_is_cut_off_and_nobody_else"
RAISE = {
    'log.info("checking a message on %s failed: %r", topic, error)\n            return False': "raise error"
}

REMEDIES = [
    Remedy(
        "malformed frame",
        GOSSIP,
        _off("stream_handler"),
        T_DOORS + "a_malformed_frame_costs_its_sender_points_and_the_node_nothing",
    ),
    Remedy(
        "garbage key", GOSSIP, RAISE, T_DOORS + "a_message_with_a_wrong_envelope_is_invalid_and_nothing_else"
    ),
    Remedy(
        "raising validator",
        GOSSIP,
        RAISE,
        T_DOORS + "a_validator_that_raises_refuses_the_message_and_the_node_lives",
    ),
    Remedy(
        "raising handler",
        HARDENING,
        {"set_stream_handler(handle_guarded)": "set_stream_handler(handle)"},
        T_HARD + "a_handler_that_raises_ends_its_stream_and_not_the_node",
    ),
    Remedy(
        "plaintext",
        HARDENING,
        {"sec_opt=security": "sec_opt=None"},
        T_HARD + "a_peer_that_offers_only_plaintext_is_turned_away",
    ),
    Remedy(
        "cancelled write",
        HARDENING,
        {"    make_writes_atomic()\n    make_reads": "    make_reads"},
        T_ASK + "a_write_that_is_cancelled_half_way_is_finished_first",
    ),
    Remedy(
        "write to a deaf peer",
        HARDENING,
        {"    make_writes_atomic()\n    make_reads": "    make_reads"},
        T_HARD + "a_stalled_write_closes_the_connection_and_nothing_else",
    ),
    Remedy(
        "giving up while a stream opens",
        NETWORK + "streams.py",
        {"nursery.start_soon(open_it)": "await open_it()"},
        T_ASK + "giving_up_while_a_stream_opens_keeps_no_slot_of_the_connection",
    ),
    Remedy(
        "frame in pieces",
        HARDENING,
        {"    make_reads_exact()\n    bound": "    bound"},
        T_HARD + "a_frame_that_comes_byte_by_byte_is_read_whole",
    ),
    Remedy(
        "announced size",
        HARDENING,
        {"if n > READ_SIZE_BYTES_MAX:": "if False:"},
        T_HARD + "a_size_that_no_honest_peer_announces_is_refused_before_anything_is_read",
    ),
    Remedy(
        "sequence numbers",
        GOSSIP,
        {"self.counter = time.time_ns()": "pass"},
        T_GOSSIP + "messages_published_after_a_restart_with_the_same_key_and_port_arrive",
    ),
    Remedy(
        "own messages capped",
        GOSSIP,
        {"spam_protection_enabled=False": "spam_protection_enabled=True"},
        T_GOSSIP + "a_burst_of_our_own_messages_leaves_the_node_whole",
    ),
    Remedy(
        "32 messages queued",
        GOSSIP,
        {"libp2p.pubsub.pubsub.RpcQueue = SendQueue": "pass"},
        T_GOSSIP + "a_burst_of_our_own_messages_leaves_the_node_whole",
    ),
    Remedy(
        "bytes queued",
        GOSSIP,
        {"if self._size_bytes + size_bytes > QUEUED_BYTES_MAX or not": "if not"},
        T_DOORS + "a_send_queue_is_bounded_in_bytes_and_empties_again",
    ),
    Remedy(
        "slow heartbeat",
        GOSSIP,
        {"heartbeat_interval=1,": ""},
        T_DOORS + "a_mesh_that_lost_a_peer_finds_it_again_by_the_next_heartbeats",
    ),
    Remedy(
        "failing heartbeat",
        GOSSIP,
        _off("heartbeat"),
        T_DOORS + "a_heartbeat_that_fails_is_followed_by_another",
    ),
    Remedy(
        "slow redial",
        NETWORK + "peers.py",
        {"known.dial_at = now + known.wait_seconds\n": "known.dial_at = now + 67.0\n"},
        T_PEERS + "a_peer_that_comes_back_is_redialled_and_heard",
    ),
    Remedy(
        "greeting after a restart",
        GOSSIP,
        {"if self._announced_on.get(peer) is not stream.muxed_conn:": "if False:"}
        | _off("_handle_dead_peer")
        | _off("handle_dead_peer_queue"),
        T_PEERS + "a_node_that_is_back_before_its_old_connection_has_closed_is_greeted_anew",
    ),
    Remedy(
        "second connection",
        GOSSIP,
        _off("_handle_dead_peer") | _off("handle_dead_peer_queue"),
        T_PEERS + "a_second_connection_takes_over_gossip_when_the_first_one_ends",
    ),
    Remedy(
        "dead link",
        HARDENING,
        {"    notice_dead_links()\n    give": "    give"},
        T_HARD + "a_link_that_dies_in_silence_is_noticed_by_the_kernel",
    ),
    Remedy(
        "delivered several times",
        GOSSIP,
        {
            "        if not self._is_valid(topic, msg):": (
                "        await trio.sleep(0.05)\n        if not self._is_valid(topic, msg):"
            )
        },
        T_GOSSIP + "a_message_that_comes_from_three_peers_is_checked_and_delivered_once",
    ),
    Remedy(
        "thread left behind",
        GOSSIP,
        {"library_cache.stop()": "pass"},
        T_PEERS + "starting_and_stopping_leaves_no_thread_and_no_socket_behind",
    ),
    Remedy(
        "socket left behind",
        NETWORK + "libp2p_network.py",
        {"                await _part(host)\n": "                pass\n"},
        T_PEERS + "starting_and_stopping_leaves_no_thread_and_no_socket_behind",
    ),
    Remedy(
        "shared port",
        HARDENING,
        {"    listen_exclusively()\n    notice": "    notice"},
        T_PEERS + "a_second_node_on_the_port_is_refused_and_told_which",
    ),
    Remedy(
        "payloads kept: equivocation",
        GOSSIP,
        _off("_check_equivocation"),
        T_DOORS + "payloads_are_not_kept_after_they_have_been_passed_on",
    ),
    Remedy(
        "payloads kept: deliveries",
        GOSSIP,
        {"self.recent_message_deliveries.clear()": "pass"},
        T_DOORS + "payloads_are_not_kept_after_they_have_been_passed_on",
    ),
    Remedy(
        "invented topics",
        GOSSIP,
        {"if prune_msg.topicID in self.mesh:": "if True:"},
        T_DOORS + "control_messages_about_invented_topics_leave_no_trace",
    ),
    Remedy(
        "early graft",
        GOSSIP,
        {"if graft_msg.topicID in self.mesh:": "if True:"},
        T_DOORS + "a_graft_of_a_topic_that_is_not_joined_yet_is_not_answered",
    ),
    Remedy("prune that dials", GOSSIP, _off("_do_px"), T_DOORS + "a_prune_makes_the_node_dial_nobody"),
    Remedy(
        "id asked for often",
        GOSSIP,
        _off("handle_iwant"),
        T_DOORS + "one_message_asked_for_a_thousand_times_is_sent_once",
    ),
    Remedy(
        "address records sent",
        GOSSIP,
        {'-> bool:\n        rpc.ClearField("senderRecord")\n        size': "-> bool:\n        size"},
        T_DOORS + "a_send_queue_is_bounded_in_bytes_and_empties_again",
    ),
    Remedy(
        "address records believed",
        GOSSIP,
        _off("stream_handler"),
        T_DOORS + "address_records_in_frames_are_neither_sent_nor_believed",
    ),
    Remedy(
        "inbound slots",
        HARDENING,
        {"swarm._do_handle_inbound_connection = handle": "pass"},
        T_HARD + "a_peer_that_connects_again_and_again_is_never_locked_out",
    ),
    Remedy(
        "circuit breaker",
        HARDENING,
        {"enable_circuit_breaker=False": "enable_circuit_breaker=True"}
        | {"enable_rate_limiting=False": "enable_rate_limiting=True"},
        T_HARD + "a_peer_at_its_limit_of_connections_locks_out_nobody_else",
    ),
    Remedy(
        "window ignored",
        HARDENING,
        {"    yamux.Yamux._read_data_body = read_bounded_data_body\n": ""},
        T_HARD + "a_peer_that_ignores_the_window_is_cut_off_before_it_fills_the_memory",
    ),
    Remedy(
        "window opened by tiny reads",
        HARDENING,
        {"yamux.MAX_WINDOW_SIZE = WINDOW_SIZE_BYTES_MAX": "pass"},
        T_HARD + "a_few_tiny_reads_do_not_open_a_window_for_megabytes",
    ),
    Remedy(
        "strangers remembered",
        HARDENING,
        {"for peer in absent & absent_before:": "for peer in frozenset[Any]():"},
        T_HARD + "the_library_forgets_peers_that_left",
    ),
    Remedy(
        "logs cut off",
        HARDENING,
        {"    notice_dead_links()\n    give_logs_back()\n": "    notice_dead_links()\n"},
        T_HARD + "what_libp2p_logs_comes_to_our_handlers_and_the_root_logger_keeps_its_own",
    ),
    Remedy(
        "guest mode",
        NETWORK + "trio_thread.py",
        {
            "        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)\n"
            "        self._thread.start()\n": (
                "        self._thread = threading.Thread(target=lambda: None)\n"
                "        self._thread.start()\n"
                "        trio.lowlevel.start_guest_run(\n"
                "            self._main,\n"
                "            run_sync_soon_threadsafe=self._loop.call_soon_threadsafe,\n"
                "            done_callback=lambda result: self._finish(getattr(result, 'error', None)),\n"
                "        )\n"
            )
        },
        "test_trio_thread.py::test_a_busy_asyncio_loop_does_not_hold_up_the_trio_side",
    ),
    Remedy(
        "uselessness forgotten",
        NETWORK + "ledger.py",
        {"account.useless += messages\n": "account.useless = messages\n"},
        "test_waste.py::test_useless_messages_never_fade_and_useful_ones_make_up_for_them",
    ),
    Remedy("copies not counted", NETWORK + "ledger.py", {"if excess > ": "if False and excess > "}, T_WASTE),
    Remedy(
        "old sequence numbers",
        NETWORK + "waste.py",
        {"return number <= mark.reached": "return False"},
        T_WASTE,
    ),
    Remedy(
        "unregistered authors",
        "citrate_node/runtime/opened.py",
        {"return Worth.USELESS  #": "return Worth.USEFUL  #"},
        T_WASTE,
    ),
    Remedy(
        "excused for ever",
        "citrate_node/runtime/opened.py",
        {"self._excused[message_id] = None": "pass"} | {"if not excusable or message_id": "if message_id"},
        T_WASTE,
    ),
    Remedy(
        "blamed too early",
        "citrate_node/runtime/opened.py",
        {"return Worth.LATE  #": "return Worth.USELESS  #"},
        "test_waste.py::test_a_node_that_lags_for_ever_is_not_cut_off",
    ),
]


def main() -> int:
    words = [word for word in sys.argv[1:] if word != "--green"]
    granted = "--green" in sys.argv[1:]
    chosen = [remedy for remedy in REMEDIES if not words or any(word in remedy.name for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "source"
        copy.mkdir()
        for name in ("citrate_node", "tests"):
            ignored = shutil.ignore_patterns("__pycache__", "node_modules", "go_modules", "assets")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        _prepare(copy)
        bad = [remedy.name for remedy in chosen if not holds(copy, remedy, granted)]
    print(f"{len(chosen) - len(bad)} of {len(chosen)} tests fail without their remedy", flush=True)
    return 1 if bad else 0


def _prepare(copy: Path) -> None:
    """Everything but our own package, which each run imports afresh from the copy."""
    sys.dont_write_bytecode = True  # a file that was changed back within a second would be taken for the same
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    for name in PRELOADED:
        importlib.import_module(name)
    assert not any(name.split(".")[0] == "citrate_node" for name in sys.modules)


def holds(copy: Path, remedy: Remedy, granted: bool) -> bool:
    """Whether the test is green as it is, and red without the remedy."""
    file = copy / remedy.file
    source = without = file.read_text()
    for text, instead in remedy.taken_out.items():
        if without.count(text) != 1:
            times = without.count(text)
            print(f"CHANGED  {remedy.name}: {text!r} stands {times} times in {remedy.file}", flush=True)
            return False
        without = without.replace(text, instead)
    before = "green (granted)" if granted else run(remedy.test)
    file.write_text(without)
    after = run(remedy.test)
    file.write_text(source)
    good = before.startswith("green") and after in ("red", "hung")
    print(f"{'ok' if good else 'BAD':<8} {remedy.name}: {before} with it, {after} without", flush=True)
    return good


def run(test: str) -> str:
    """green, red, or hung: a node that died answers nobody."""
    process = multiprocessing.get_context("fork").Process(target=_run_here, args=(test,))
    process.start()
    process.join(SECONDS_MAX)
    if process.exitcode is None:
        process.kill()
        process.join()
        return "hung"
    return {0: "green", 1: "red"}.get(process.exitcode, f"not run (exit code {process.exitcode})")


def _run_here(test: str) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    options = ["-x", "-q", "-p", "no:cacheprovider", "--timeout", str(SECONDS_MAX // 2)]
    os._exit(int(pytest.main([*options, f"tests/network/{test}"])))


if __name__ == "__main__":
    sys.exit(main())
