"""node.toml and presets: an unknown or impossible key is named, nothing is guessed."""

import re
from pathlib import Path

import pytest

from citrate_node.config import load_node_config, load_preset, read_toml
from citrate_node.errors import ConfigError

GOOD = """
[node]
name = "node-1"
preset = "devnet"
[chain]
rpc_url = "http://127.0.0.1:8545"
adapter_id = "0x{adapter}"
[training]
data = "embedded:0/4"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text.replace("{adapter}", "ab" * 32))
    return path


def test_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    config = load_node_config(write(tmp_path, GOOD))
    assert (config.folder, config.node_seed_file, config.account_password_file, config.recording) == (
        tmp_path,
        tmp_path / "keys/node.seed",
        None,
        None,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[chain]", "[chain]\nurl = 'x'"), "unknown key chain.url"),
        (("[training]", "[trainig]"), r"unknown table \[trainig\]"),
        (('name = "node-1"', ""), "node.name is missing"),
        (('name = "node-1"', "name = 4"), "node.name must be a str"),
        (('data = "embedded:0/4"', "steps = 0"), "training.steps must lie between 1 and"),
        (('data = "embedded:0/4"', "learning_rate = -1.0"), "training.learning_rate must lie between"),
        (('"http://127.0.0.1:8545"', '"127.0.0.1:8545"'), "chain.rpc_url must be an http"),
        (("0x{adapter}", "0x12"), "chain.adapter_id must be 0x and 64 hex digits"),
        (("[chain]", "[network]\npeers = ['/ip4/127.0.0.1/tcp/1']\n[chain]"), "network.peers must be"),
        (("[chain]", "[content]\nread_stores = [7]\n[chain]"), "content.read_stores must be folders"),
        (("[chain]", "[content]\ngateways = ['ipfs.io']\n[chain]"), "content.gateways must be http"),
        (("[chain]", "[content]\nipfs_url = '/ip4/127.0.0.1'\n[chain]"), "content.ipfs_url must be the http"),
        (("[chain]", "[content]\nversions_kept = 1\n[chain]"), "content.versions_kept must be 0"),
        (("[chain]", "[chain"), "is not TOML"),
        (("[training]", "[[training]]"), r"training must be a table, \[training\]"),
    ],
)
def test_what_cannot_be_right_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_node_config(write(tmp_path, GOOD.replace(*change)))


def test_a_preset_in_the_folder_of_the_file_is_found_from_anywhere(tmp_path: Path) -> None:
    """With and without a slash: relative paths start at the file, names do not."""
    for written, meant in (("mine.toml", tmp_path / "mine.toml"), ("./a/b.toml", tmp_path / "a/b.toml")):
        config = load_node_config(write(tmp_path, re.sub('preset = ".*"', f'preset = "{written}"', GOOD)))
        assert config.preset == str(meant)
    assert load_node_config(write(tmp_path, GOOD)).preset in ("devnet", "minimal")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load_node_config(tmp_path / "node.toml")


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="choose one of devnet, large, minimal"):
        load_preset("mainnet")


def test_a_preset_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "citrate_node" / "presets" / "minimal.toml"
    path = tmp_path / "mine.toml"
    path.write_text(source.read_text().replace('name = "minimal"', 'name = "mine"'))
    assert load_preset(str(path)).name == "mine"
    assert load_preset(str(path)).digest() != load_preset("minimal").digest()


def test_a_number_with_a_sign_of_its_own_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_toml(path)
