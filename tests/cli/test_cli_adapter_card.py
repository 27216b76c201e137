"""`citrate adapter card`, `lineage`, and what `verify` says of a card."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest
from wallet_chain import adapter
from wallet_user import Pair, User, peft_folder, saved

from citrate_node.cli import adapter as adapter_commands
from citrate_node.content.block_store import BlockStore
from citrate_node.errors import ConfigError
from citrate_node.protocol.composition import compose
from citrate_node.runtime.adapters_weights import WeightsMismatch
from citrate_node.training.export import weights_facts
from citrate_node.training.provenance import (
    BaseFacts,
    DataFacts,
    EvaluationFacts,
    Provenance,
    TrainingFacts,
    read_provenance,
    signed,
    write_provenance,
)
from citrate_node.training.settings import ALL_LINEAR

SIGNING = ("--wallet", "alice")


def trained(folder: Path, seed: int = 21) -> Path:
    """A folder as `citrate train` leaves it: weights, settings, and the training half of the provenance."""
    weights = adapter(seed)
    data = weights.encode()
    peft_folder(folder, weights)
    (folder / "adapter_model.safetensors").write_bytes(data)
    base = BaseFacts("embedded", weights.config.base_model_id.hex(), "psf-2.0")
    training = TrainingFacts("local", data=(DataFacts("cd" * 32, examples=40),), seed="1", steps=8)
    evaluation = EvaluationFacts({"loss_general_nats": 1.5}, passed=True)
    write_provenance(
        folder,
        Provenance(
            base=base,
            weights=weights_facts(weights.config, data),
            training=training,
            evaluations=(evaluation,),
        ),
    )
    return folder


def card(user: User, *args: object, fails: bool = False) -> dict[str, object] | BaseException:
    keys = ("--keystore", user.chain.wallets, "--password-file", user.chain.password_file)
    rest = ("--dir", user.chain.devnet.folder, "--json")
    result = user.run(adapter_commands.app, "card", *args, *keys, *rest)
    if fails:
        assert result.exit_code != 0
        assert result.exception is not None
        return result.exception
    assert result.exception is None, repr(result.exception)
    facts: dict[str, object] = json.loads(result.stdout)
    return facts


@pytest.fixture(scope="module")
def published(user: User, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A trained folder, created on chain, with a card that alice signed."""
    folder = trained(tmp_path_factory.mktemp("published") / "adapter")
    made = user.one("create", folder, "--name", "letters")
    said = ("--intended-use", "Letters.", "--limitations", "English only.", "--data", "my letters")
    facts = card(user, folder, "--adapter", made["adapter_id"], *said, *SIGNING)
    assert isinstance(facts, dict)
    assert Path(str(facts["kept"])).is_file()
    return folder, made["adapter_id"]


def test_a_signed_card_holds_training_words_and_chain_and_is_true(
    user: User, published: tuple[Path, str]
) -> None:
    folder, adapter_id = published
    full = read_provenance(folder)
    assert full is not None
    assert full.chain is not None
    assert full.training is not None
    assert (full.chain.adapter_id, full.chain.version, full.chain.name) == (adapter_id, 1, "letters")
    assert full.training.data[0] == DataFacts("cd" * 32, "my letters", examples=40)
    assert (full.intended_use, full.limitations) == ("Letters.", "English only.")
    assert full.creator == full.chain.creator
    report = user.one("verify", folder, adapter_id, "--complete")
    assert (report["same"], report["card_missing"], report["card_signed_by"]) == (True, [], full.creator)
    readme = (folder / "README.md").read_text()
    assert "# letters" in readme
    assert "English only." in readme


def test_pull_brings_the_signed_card_of_the_creator(
    user: User, published: tuple[Path, str], tmp_path: Path
) -> None:
    folder, adapter_id = published
    pulled = user.one("pull", adapter_id, "--out", tmp_path / "pulled")
    full = read_provenance(folder)
    assert full is not None
    assert pulled["signed_by"] == full.creator
    for name in ("provenance.json", "README.md"):
        assert (tmp_path / "pulled" / name).read_bytes() == (folder / name).read_bytes()
    shown = user.run(adapter_commands.app, "card", adapter_id, "--dir", user.chain.devnet.folder)
    assert shown.stdout == (folder / "README.md").read_text()


def test_without_an_authors_word_the_card_says_what_the_chain_knows(
    user: User, pair: Pair, tmp_path: Path
) -> None:
    small, _ = pair
    pulled = user.one("pull", small["adapter_id"], "--out", tmp_path / "pulled")
    assert pulled["signed_by"] is None
    full = read_provenance(tmp_path / "pulled")
    assert full is not None
    assert (full.training, full.evaluations, full.signature) == (None, (), None)
    report = user.one("verify", tmp_path / "pulled", small["adapter_id"])
    assert report["same"] is True
    assert {"training", "intended_use", "signature"} <= set(report["card_missing"])
    error = user.fails("verify", tmp_path / "pulled", small["adapter_id"], "--complete")
    assert "card: intended_use is missing" in str(error)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("base", {"base_model_id": "ab" * 32}, "base.base_model_id is abab"),
        ("base", {"licence": "mit"}, "base.licence is mit"),
        ("weights", {"rank": 3}, "weights.rank is 3, in truth 2"),
        ("weights", {"sha256": "00" * 32}, "weights.sha256 is 0000"),
        ("chain", {"version": 2}, "chain.version is 2, in truth 1"),
        ("chain", {"accuracy_ppm": 99}, "chain.accuracy_ppm is 99, in truth absent"),
        ("chain", {"creator": "0x" + "11" * 20}, "chain.creator is 0x1111"),
        ("lineage", {"name": "other"}, "lineage.name is other, in truth letters"),
    ],
)
def test_a_false_field_is_named(
    user: User, published: tuple[Path, str], tmp_path: Path, field: str, value: dict[str, object], named: str
) -> None:
    _, adapter_id = published
    user.one("pull", adapter_id, "--out", tmp_path / "x")
    full = read_provenance(tmp_path / "x")
    assert full is not None
    forged = dataclasses.replace(full, **{field: dataclasses.replace(getattr(full, field), **value)})
    write_provenance(tmp_path / "x", forged)
    error = user.fails("verify", tmp_path / "x", adapter_id)
    assert isinstance(error, WeightsMismatch)
    assert f"card: {named}" in str(error)
    assert "card: signature: it is not of creator" in str(error)


def test_a_stranger_signs_in_vain_and_is_not_believed(
    user: User, published: tuple[Path, str], tmp_path: Path
) -> None:
    folder, adapter_id = published
    refused = card(user, folder, "--adapter", adapter_id, "--wallet", "poor", fails=True)
    assert isinstance(refused, ConfigError)
    assert "did not make this adapter" in str(refused)
    full = read_provenance(folder)
    assert full is not None
    kept = user.chain.devnet.folder / "content" / "provenance"
    other = signed(dataclasses.replace(full, intended_use="Trust me."), b"\x05" * 32)
    store = tmp_path / "store"
    BlockStore(store).put(adapter(21).encode())
    (store / "provenance").mkdir()
    name = next(path.name for path in kept.iterdir() if full.chain and full.chain.weights_hash in path.name)
    from citrate_node.training.provenance import to_json

    (store / "provenance" / name).write_text(to_json(other))
    pulled = user.one("pull", adapter_id, "--out", tmp_path / "pulled", "--store", store)
    assert pulled["signed_by"] is None


def test_what_an_author_wrote_below_the_card_stays(user: User, tmp_path: Path) -> None:
    folder = trained(tmp_path / "noted", seed=22)
    card(user, folder)
    with (folder / "README.md").open("a") as stream:
        stream.write("\n## How to use it\n\nGently.\n")
    made = user.one("create", folder, "--name", "noted")
    card(user, folder, "--adapter", made["adapter_id"], "--tag", "letters", *SIGNING)
    readme = (folder / "README.md").read_text()
    assert readme.endswith("\n## How to use it\n\nGently.\n")
    assert readme.count("\n---\n") == 1
    assert 'tags: ["lora", "citrate", "letters"]' in readme
    assert user.one("verify", folder, made["adapter_id"])["same"] is True
    (folder / "README.md").write_text(readme.replace("Rank", "rank").replace("psf-2.0", "mit"))
    error = user.fails("verify", folder, made["adapter_id"])
    assert "card: README.md line" in str(error)


def test_the_card_of_a_composition_shows_its_tree_down_to_the_base(
    user: User, pair: Pair, tmp_path: Path
) -> None:
    small, large = pair
    made = user.one("compose", small["adapter_id"], large["adapter_id"], "--weights", "60/40")
    waiting = user.ok("lineage", made["adapter_id"])[0]
    assert (waiting["version"], [each["name"] for each in waiting["parents"]]) == (None, ["small", "large"])
    weights = compose(adapter(1), adapter(2, 32, ALL_LINEAR), 60, 40).weights
    store = BlockStore(user.chain.devnet.node_folder(2) / "content")
    content = store.put(weights.encode())
    store.close()
    asyncio.run(user.chain.certify(bytes.fromhex(made["adapter_id"][2:]), content, 12_000))
    user.one("pull", made["adapter_id"], "--out", tmp_path / "composed")
    full = read_provenance(tmp_path / "composed")
    assert full is not None
    assert full.lineage is not None
    assert full.chain is not None
    assert (full.chain.accuracy_ppm, full.lineage.weights_hash) == (12_000, content.digest.hex())
    assert [(each.name, each.weight_percent, each.weights_hash) for each in full.lineage.parents] == [
        ("small", 60, small["weights_hash"]),
        ("large", 40, large["weights_hash"]),
    ]
    shown = user.run(adapter_commands.app, "lineage", made["adapter_id"], "--dir", user.chain.devnet.folder)
    lines = shown.stdout.splitlines()
    assert len(lines) == 5
    assert "60 % of small, version 1" in lines[1]
    assert lines[2].endswith(f"trained on base model {adapter(1).config.base_model_id.hex()}")


def test_a_folder_that_is_not_the_version_gets_no_card_of_it(
    user: User, published: tuple[Path, str], tmp_path: Path
) -> None:
    _, adapter_id = published
    folder = trained(tmp_path / "other", seed=23)
    before = (folder / "provenance.json").read_bytes()
    error = card(user, folder, "--adapter", adapter_id, *SIGNING, fails=True)
    assert isinstance(error, WeightsMismatch)
    assert (folder / "provenance.json").read_bytes() == before
    assert not (folder / "README.md").exists()


def test_another_tools_folder_gets_a_card(user: User, tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft", adapter(24))
    facts = card(user, folder, "--base-model", "embedded", "--intended-use", "Trials.")
    assert isinstance(facts, dict)
    full = read_provenance(folder)
    assert full is not None
    assert (full.base.name, full.weights.cid is not None, full.training) == ("embedded", True, None)
    error = card(user, folder, "--data", "mine", fails=True)
    assert isinstance(error, ConfigError)
    assert "the provenance records 0" in str(error)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("no-such-folder", "--intended-use", "x"), "no folder here"),
        (("no-such-folder",), "is no adapter id"),
        (("0x" + "ab" * 32,), "UnknownAdapter"),
    ],
)
def test_wrong_use_is_named(user: User, args: tuple[str, ...], said: str) -> None:
    error = card(user, *args, fails=True)
    assert said in str(error)


def test_a_weights_file_alone_is_pointed_to_its_folder(user: User, tmp_path: Path) -> None:
    error = card(user, saved(tmp_path, adapter(25)), fails=True)
    assert "give the PEFT folder" in str(error)
