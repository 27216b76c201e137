"""What the Ethereum libraries do to the interpreter stays undone."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from pathlib import Path
from citrate_node.chain.rpc import Rpc
from citrate_node.chain.wallet import WalletFolder
import tempfile
Rpc("http://127.0.0.1:1")
WalletFolder(Path(tempfile.mkdtemp())).add("a", "password", bytes(31) + b"\\1", scrypt_rounds=2)
print("py_ecc" in sys.modules, sys.getrecursionlimit())
try:
    json.loads("[" * 100_000)
except RecursionError:
    print("refused")
"""


def test_importing_web3_and_eth_account_leaves_the_recursion_limit() -> None:
    """Else nested JSON from a stranger would crash a node instead of being refused."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.split(), done.returncode) == (["True", "1000", "refused"], 0)
