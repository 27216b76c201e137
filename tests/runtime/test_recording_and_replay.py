"""A recording is computed again to the same bytes, or the first difference is named."""

import json
import shutil
from pathlib import Path

import pytest

from citrate_node.config import load_preset
from citrate_node.errors import ConfigError
from citrate_node.protocol.checkpoint import decode_record
from citrate_node.protocol.encoding import decode, encode
from citrate_node.recording import Recording, find_recording
from citrate_node.replay import ReplayDifference, replay
from citrate_node.simulation.cluster import ClusterOptions
from citrate_node.simulation.scenario import Scenario, run_scenario


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of four simulated nodes."""
    folder = tmp_path_factory.mktemp("run")
    options = ClusterOptions(load_preset("minimal"), nodes=4, seed=7)
    run_scenario(Scenario("test", "", 3, 120_000, options, (), ()), folder, lambda row: None)
    return folder


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded / "recording", tmp_path / "recording"))


def test_every_checkpoint_comes_out_the_same(recorded: Path) -> None:
    replayed = list(replay(find_recording(recorded)))
    history = [json.loads(line) for line in (recorded / "history.jsonl").read_text().splitlines()]
    assert [(r.number, r.record_hash.hex()) for r in replayed] == [
        (row["number"], row["record_hash"]) for row in history
    ]
    assert all(r.on_chain for r in replayed)


def flip_byte(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("place", [0, 40, -1])
def test_one_changed_byte_of_any_delta_is_found_and_named(copy: Path, place: int) -> None:
    for path in sorted((copy / "deltas").iterdir()):
        flip_byte(path, place)
        with pytest.raises(ReplayDifference, match=rf"checkpoint \d: the delta of mentor .* was {path.stem}"):
            list(replay(Recording(copy)))
        flip_byte(path, place)
    assert len(list(replay(Recording(copy)))) == 3


def test_a_changed_message_is_found(copy: Path) -> None:
    path = copy / "checkpoints" / "000002.cbor"
    raw = decode(path.read_bytes(), size_bytes_max=1 << 20)
    envelope = bytearray(raw["envelopes"][0])
    envelope[-1] ^= 1
    path.write_bytes(encode({**raw, "envelopes": [bytes(envelope), *raw["envelopes"][1:]]}))
    with pytest.raises(ReplayDifference, match=r"checkpoint 2: message 0: bad signature"):
        list(replay(Recording(copy)))


def test_a_missing_message_is_found(copy: Path) -> None:
    path = copy / "checkpoints" / "000001.cbor"
    raw = decode(path.read_bytes(), size_bytes_max=1 << 20)
    path.write_bytes(encode({**raw, "envelopes": raw["envelopes"][1:]}))
    with pytest.raises(ReplayDifference, match=r"checkpoint 1: .* is missing from the recording"):
        list(replay(Recording(copy)))


def test_a_changed_result_is_found_by_its_field(copy: Path) -> None:
    path = copy / "checkpoints" / "000001.cbor"
    raw = decode(path.read_bytes(), size_bytes_max=1 << 20)
    record = decode_record(raw["record"])
    fields = decode(raw["record"], size_bytes_max=1 << 20)
    forged = encode({**fields, "accuracy_ppm": record.accuracy_ppm + 1})
    path.write_bytes(encode({**raw, "record": forged}))
    with pytest.raises(ReplayDifference, match=r"checkpoint 1: accuracy_ppm was"):
        list(replay(Recording(copy)))


def test_a_chain_that_says_otherwise_is_found(copy: Path) -> None:
    lines = (copy / "chain.jsonl").read_text().splitlines()
    row = json.loads(lines[1])
    lines[1] = json.dumps({**row, "weights_hash": "00" * 32})
    (copy / "chain.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ReplayDifference, match=r"checkpoint 2: weights hash on chain is 0000"):
        list(replay(Recording(copy)))


def test_a_checkpoint_that_was_not_recorded_is_found(copy: Path) -> None:
    (copy / "checkpoints" / "000002.cbor").unlink()
    with pytest.raises(ReplayDifference, match="checkpoint 2 is missing"):
        list(replay(Recording(copy)))


def test_other_genesis_weights_are_found(copy: Path) -> None:
    flip_byte(copy / "genesis.safetensors", -1)
    with pytest.raises(ReplayDifference, match="genesis weights"):
        list(replay(Recording(copy)))


def test_a_folder_without_a_recording_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no recording in"):
        find_recording(tmp_path)
