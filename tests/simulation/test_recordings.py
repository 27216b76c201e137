"""simulations/recordings: real devnets, computed again to the same bytes; a flipped byte is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from citrate_node.errors import CitrateError, ConfigError
from citrate_node.protocol.checkpoint import CheckpointRecord, decode_record
from citrate_node.recording import Recording
from citrate_node.replay import ReplayDifference, recorded_genesis, replay
from citrate_node.simulation.recorded_loss import loss_of
from citrate_node.simulation.what_if import changed_preset, what_if

FOLDER = Path(__file__).resolve().parents[2] / "simulations" / "recordings"
NAMES = ("composition", "ordinary", "withheld")
SIZE_BYTES_MAX = 2 << 20
FILES = sorted(
    str(p.relative_to(FOLDER))
    for p in FOLDER.glob("*/**/*")
    if p.suffix in (".cbor", ".safetensors", ".delta")
)


def records(name: str) -> list[CheckpointRecord]:
    recording = Recording(FOLDER / name)
    return [decode_record(recording.checkpoint(n).record) for n in recording.checkpoint_numbers()]


@pytest.mark.parametrize("name", NAMES)
def test_a_real_network_comes_out_the_same_again(name: str) -> None:
    replayed = list(replay(Recording(FOLDER / name)))
    assert len(replayed) >= 2
    assert all(each.on_chain for each in replayed)
    assert [each.record_hash for each in replayed] == [record.hash for record in records(name)]


def test_each_recording_shows_what_it_is_for() -> None:
    assert {p.name for p in FOLDER.iterdir() if p.is_dir()} == set(NAMES)
    last = records("ordinary")[-1]
    assert (len(last.signals), len(last.evaluations)) == (3, 6)
    assert sum(len(record.withheld) for record in records("withheld")) == 1
    composed = records("composition")
    assert sum(len(record.compositions) for record in composed) == 1
    assert any(record.promoted and record.accuracy_ppm > 0 for record in composed)


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_is_small(name: str) -> None:
    assert sum(p.stat().st_size for p in (FOLDER / name).rglob("*") if p.is_file()) < SIZE_BYTES_MAX


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte_is_reported_with_what_differed(file: str, tmp_path: Path) -> None:
    """In every file of every recording; at a place that depends on the file's name."""
    name = file.split("/")[0]
    folder = tmp_path / name
    shutil.copytree(FOLDER / name, folder)
    path = tmp_path / file
    data = bytearray(path.read_bytes())
    place = sum(file.encode()) * 7919 % len(data)
    data[place] ^= 1 << place % 8
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    with pytest.raises((ReplayDifference, ConfigError)) as caught:
        list(replay(Recording(folder)))
    said = str(caught.value)
    if path.suffix == ".delta":
        assert "the delta of mentor" in said
        assert path.stem in said
    elif path.parent.name == "parents":
        assert "a parent was" in said
        assert path.stem in said
    elif path.suffix == ".safetensors":
        assert "genesis weights" in said
    elif path.parent.name == "checkpoints":
        assert f"checkpoint {int(path.stem)}" in said or path.name in said


@pytest.mark.parametrize("chained", [False, True])
def test_a_real_network_is_asked_what_if(chained: bool) -> None:
    """Two evaluations of a delta are asked for, where every delta of two nodes has one: nothing may enter."""
    recording = Recording(FOLDER / "composition")
    preset = changed_preset(recording.network().preset, ["evaluations_min=2"], chained=chained)
    beside = list(what_if(recording, preset, chained=chained))
    assert len(beside) == len(records("composition"))
    assert any(was.outcome == "averaged" for each in beside for was, _ in each.nodes)
    for each in beside:
        assert {other.outcome for _, other in each.nodes} <= {"unmeasured", "absent"}
        assert not each.other.record.promoted
        assert each.other_step == 0


@pytest.mark.slow
def test_losses_of_a_devnet_are_measured_on_the_embedded_text() -> None:
    recording = Recording(FOLDER / "composition")
    genesis = recorded_genesis(recording)
    loss = loss_of(recording.folder, genesis.preset, genesis.weights)
    assert not isinstance(loss, str)
    before = loss(genesis.weights)
    steps = list(what_if(recording, genesis.preset, chained=False))
    after = loss(next(s for s in steps if s.recorded.record.promoted).recorded.state.weights)
    assert set(before) == {"all", "worst", "general"}
    assert after["all"] < before["all"]


def test_a_recording_that_lacks_a_file_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "ordinary"
    shutil.copytree(FOLDER / "ordinary", folder)
    path = sorted((folder / "deltas").iterdir())[0]
    path.unlink()
    with pytest.raises(CitrateError, match=f"the recording lacks .*{path.name}"):
        list(replay(Recording(folder)))
