"""What the simulator costs per node and checkpoint as the network grows, and what a node sends and stores.

    python benchmarks/simulation_scale.py [--checkpoints 20] [--nodes 100,1000,10000] [--json FILE]

Each size is a process of its own, so that its peak memory is its own. The limit measured beside it is a plain
loop that trains as many nodes with the same task and does nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

PRESET = "large"


def measure(nodes: int, checkpoints: int, seed: int) -> dict[str, object]:
    """One size, in this process."""
    from citrate_node.config import load_preset
    from citrate_node.protocol.tensors import weights_to_float32
    from citrate_node.simulation.cluster import Cluster, ClusterOptions, synthetic_task

    options = ClusterOptions(load_preset(PRESET), nodes=nodes, seed=seed)
    task = synthetic_task(options)
    weights = task.initial_weights()
    manifest = weights.manifest.subset(task.factor)
    values = weights_to_float32(weights.select(manifest))
    began = time.process_time()
    for node in range(nodes):
        task.train_node(node, values, manifest)
    plain_ms = (time.process_time() - began) * 1000 / nodes

    began, wall = time.process_time(), time.perf_counter()
    world = Cluster(options)
    start_s = time.process_time() - began
    world.run_until(checkpoints, within_ms=checkpoints * 120_000)
    cpu_s = time.process_time() - began
    last = world.outcomes[max(world.outcomes)]
    return {
        "nodes": nodes,
        "checkpoints": checkpoints,
        "seed": seed,
        "history_hash": world.history_hash(),
        "cpu_s": round(cpu_s, 2),
        "wall_s": round(time.perf_counter() - wall, 2),
        "start_s": round(start_s, 2),
        "ms_per_node_checkpoint": round(cpu_s * 1000 / nodes / checkpoints, 4),
        "plain_loop_ms_per_node": round(plain_ms, 4),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "state_file_bytes": len(last.state_file),
        "record_bytes": len(last.record),
        "weights_bytes": len(last.weights),
        "load": world.load.row(),
    }


def state_costs(nodes: int) -> dict[str, object]:
    """What one state of a network of this size costs whoever computes or restores it, once."""
    from hashlib import sha256

    from citrate_node.config import load_preset
    from citrate_node.protocol.certificate import Validator
    from citrate_node.protocol.encoding import decode_fields
    from citrate_node.protocol.state import StateFile, genesis_state
    from citrate_node.simulation.cluster import ClusterOptions, synthetic_task

    preset = load_preset(PRESET)
    keys = [sha256(number.to_bytes(8, "big")).digest() for number in range(nodes)]
    validators = tuple(Validator(key, key[:20], 1) for key in keys)
    weights = synthetic_task(ClusterOptions(preset)).initial_weights()
    spent = {}

    def timed(name: str, what: object) -> None:
        began = time.process_time()
        what()  # type: ignore[operator]
        spent[name] = round((time.process_time() - began) * 1000, 1)

    state = genesis_state(preset, bytes(32), validators, bytes(32), weights, bytes(32))
    timed("draw_roles_ms", lambda: state.role_keys)
    timed("encode_state_ms", lambda: state.file_content)
    timed("decode_state_ms", lambda: decode_fields(StateFile, state.file, size_bytes_max=1 << 30))
    return {"nodes": nodes, "state_file_bytes": len(state.file), **spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", default="100,1000,10000")
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--states", default="", help="sizes of which only the state is measured")
    parser.add_argument("--one", action="store_true", help="measure one size and print JSON")
    arguments = parser.parse_args()
    sizes = [int(part) for part in arguments.nodes.split(",")]
    if arguments.one:
        print(json.dumps(measure(sizes[0], arguments.checkpoints, arguments.seed)))
        return
    rows = []
    for nodes in sizes:
        command = [sys.executable, __file__, "--one", "--nodes", str(nodes)]
        command += ["--checkpoints", str(arguments.checkpoints), "--seed", str(arguments.seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout)
        rows.append(row)
        print(
            f"{nodes:>6} nodes   {row['ms_per_node_checkpoint']:8.3f} ms per node-checkpoint   "
            f"{row['cpu_s']:7.1f} s   {row['peak_mib']:5} MiB   "
            f"{row['load']['published'] // arguments.checkpoints} messages each per checkpoint",
            flush=True,
        )
    states = [state_costs(int(part)) for part in arguments.states.split(",") if part]
    for state in states:
        print(json.dumps(state), flush=True)
    ratio = rows[-1]["ms_per_node_checkpoint"] / rows[0]["ms_per_node_checkpoint"]
    print(f"largest against smallest: {ratio:.3f} per node-checkpoint (flat is 1)")
    if arguments.json:
        result = {"preset": PRESET, "rows": rows, "states": states, "largest_to_smallest": round(ratio, 4)}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
