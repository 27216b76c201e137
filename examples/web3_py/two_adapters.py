"""Create two adapters, compose them 70/30, and read back what the chain holds. Plain web3.py alone.

    python two_adapters.py RPC_URL KEY_FILE [SECONDS_TO_WAIT]

Prints one JSON object per step. SECONDS_TO_WAIT: how long to look for the composition's first version, which
the network's nodes add at a checkpoint.
"""

import base64
import hashlib
import json
import struct
import sys
import time
from pathlib import Path

from web3 import Web3
from web3.middleware import SignAndSendRawMiddlewareBuilder

CONTRACT = "0x0000000000000000000000000000000000000103"
ARTIFACT = Path(__file__).parents[2] / "citrate_node/chain/artifacts/AdapterFactory.json"
MODULE = "model.layers.0.self_attn.q_proj"
WIDTH = 128  # of that module in the embedded base model


def adapter_file(base_model_id: bytes, step: int) -> bytes:
    """A LoRA adapter of rank 1 in the network's spelling of safetensors: sorted names, compact header padded
    to 8 bytes, float32 values that are multiples of 2^-24 (a zero is never minus zero)."""
    factors = {"lora_A": [1, WIDTH], "lora_B": [WIDTH, 1]}
    header = {
        "__metadata__": {
            "alpha": "2",
            "base_model_id": base_model_id.hex(),
            "format": "pt",
            "rank": "1",
            "targets": MODULE,
        }
    }
    size = 4 * WIDTH
    for place, (factor, shape) in enumerate(factors.items()):
        header[f"base_model.model.{MODULE}.{factor}.weight"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [place * size, (place + 1) * size],
        }
    text = json.dumps(header, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    values = [(i * step % 17) / 1024 for i in range(2 * WIDTH)]
    return struct.pack("<Q", len(text)) + text.encode() + struct.pack(f"<{len(values)}f", *values)


def cid_text(cid: bytes) -> str:
    """The binary CID of the contract as gateways and IPFS tools write it."""
    return "b" + base64.b32encode(cid).decode().lower().rstrip("=")


def show(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def main(rpc_url: str, key_file: str, wait_seconds: float) -> None:
    web3 = Web3(Web3.HTTPProvider(rpc_url))
    account = web3.eth.account.from_key(Path(key_file).read_text().strip())
    web3.middleware_onion.inject(SignAndSendRawMiddlewareBuilder.build(account), layer=0)
    factory = web3.eth.contract(
        Web3.to_checksum_address(CONTRACT), abi=json.loads(ARTIFACT.read_text())["abi"]
    )
    assert factory.functions.contractVersion().call() == 1, "no AdapterFactory that this example knows"

    def send(call):  # type: ignore[no-untyped-def]
        """Dry run first: a refusal then costs nothing and carries the contract's reason."""
        answer = call.call({"from": account.address})
        receipt = web3.eth.wait_for_transaction_receipt(call.transact({"from": account.address}))
        assert receipt["status"] == 1, receipt
        return answer, receipt

    base_model_id = factory.functions.baseModels(0, 1).call()[0][0]
    run = web3.eth.get_transaction_count(account.address)  # makes the names, and so the ids, new each time
    ids = []
    for name, step in ((f"first {run}", 3), (f"second {run}", 5)):
        data = adapter_file(base_model_id, step)
        adapter_id, receipt = send(factory.functions.createAdapter(base_model_id, name, data, 1))
        ids.append(adapter_id)
        show(step="created", adapterId="0x" + adapter_id.hex(), name=name, gasUsed=receipt["gasUsed"],
             sha256=hashlib.sha256(data).hexdigest())  # fmt: skip

    composed, receipt = send(factory.functions.composeAdapters(*ids, 70, 30))
    show(step="composed", adapterId="0x" + composed.hex(), gasUsed=receipt["gasUsed"])

    for adapter_id in ids:
        for version in factory.functions.history(adapter_id, 0, 10).call():
            cid = factory.functions.cid(adapter_id, version[0]).call()
            show(step="version", adapterId="0x" + adapter_id.hex(), version=version[0],
                 weightsHash=version[2].hex(), cid=cid_text(cid))  # fmt: skip

    parent_a, parent_b, _, _, weight_a, weight_b = factory.functions.lineage(composed).call()
    show(step="lineage", parents=["0x" + parent_a.hex(), "0x" + parent_b.hex()], weights=[weight_a, weight_b])

    deadline = time.monotonic() + wait_seconds
    while not (versions := factory.functions.versionCount(composed).call()) and time.monotonic() < deadline:
        time.sleep(1)
    cid = cid_text(factory.functions.cid(composed, 1).call()) if versions else None
    show(step="composition", adapterId="0x" + composed.hex(), versions=versions, cid=cid)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage: {sys.argv[0]} RPC_URL KEY_FILE [SECONDS_TO_WAIT]")
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) == 4 else 0)
