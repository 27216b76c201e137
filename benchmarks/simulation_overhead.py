"""Overhead per node and round: this simulator, Flower's simulation engine, a plain loop; one tiny task.

    python benchmarks/simulation_overhead.py --flower-python PATH [--nodes 100,1000] [--rounds 3]

All train 24 float32 values in microseconds, so what is measured is the engine. Five figures:

averaging   the rounds engine (simulation/rounds.py) doing what Flower's does in a round: every node
            trains, its delta is quantized with error feedback and averaged in integers; all losses are taken
mentorship  the same engine with signed signals, evaluations, scores, reputations and the protocol's own
            transition; at most 100 nodes are drawn as mentors
protocol    the message engine (simulation/cluster.py): a state machine per node, gossip, a committee of 100,
            certificates, virtual time; a round is a checkpoint that every node reaches
flower      FedAvg over all nodes by flwr[simulation], in an environment of its own (PATH is its Python)
plain_loop  the same values added and averaged in numpy: what no engine can be below
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

FLOWER = r"""
import json, logging, os, resource, sys, time
os.environ["RAY_DEDUP_LOGS"] = "0"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
import numpy as np
import flwr
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
logging.getLogger("flwr").setLevel(logging.ERROR)
nodes, rounds = int(sys.argv[1]), int(sys.argv[2])
ticks = []
class Client(NumPyClient):
    def fit(self, parameters, config):
        return [parameters[0] + np.float32(0.01)], 64, {}
class Strategy(FedAvg):
    def configure_fit(self, *args, **kwargs):
        ticks.append(time.perf_counter())
        return super().configure_fit(*args, **kwargs)
    def aggregate_fit(self, *args, **kwargs):
        out = super().aggregate_fit(*args, **kwargs)
        ticks.append(time.perf_counter())
        return out
def server(context):
    start = ndarrays_to_parameters([np.zeros(24, dtype=np.float32)])
    strategy = Strategy(fraction_fit=1.0, fraction_evaluate=0.0, min_fit_clients=nodes,
                        min_available_clients=nodes, initial_parameters=start)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))
run_simulation(ServerApp(server_fn=server), ClientApp(client_fn=lambda context: Client().to_client()),
               num_supernodes=nodes,
               backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
spent = [b - a for a, b in zip(ticks[::2], ticks[1::2])]
print("RESULT " + json.dumps({"version": flwr.__version__, "rounds_s": spent,
      "driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
"""


def protocol(nodes: int, rounds: int) -> dict[str, object]:
    """Wall time of checkpoints after the first, as Flower's rounds are timed without its start."""
    from citrate_node.config import load_preset
    from citrate_node.simulation.cluster import Cluster, ClusterOptions

    world = Cluster(ClusterOptions(load_preset("large"), nodes=nodes, seed=1))
    spent = []
    for number in range(1, rounds + 1):
        began = time.perf_counter()
        world.run_until(number, within_ms=number * 120_000)
        spent.append(time.perf_counter() - began)
    return {"rounds_s": spent, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def rounds(nodes: int, rounds: int, sharing: str) -> dict[str, object]:
    """Wall time of each checkpoint of the rounds engine, in this process."""
    from dataclasses import replace

    from citrate_node.config import load_preset
    from citrate_node.simulation.round_options import RoundsOptions
    from citrate_node.simulation.rounds import Here, Rounds

    preset = replace(load_preset("minimal"), mentors_per_checkpoint=min(nodes, 100), committee_size=64)
    options = RoundsOptions(preset, nodes, rounds, seed=1, sharing=sharing)
    engine = Rounds(options, Here(options.shard()))
    spent = []
    began = time.perf_counter()
    for _ in engine.checkpoints():
        spent.append(time.perf_counter() - began)
        began = time.perf_counter()
    return {"rounds_s": spent, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def averaging(nodes: int, rounds_: int) -> dict[str, object]:
    return rounds(nodes, rounds_, "equal")


def mentorship(nodes: int, rounds_: int) -> dict[str, object]:
    return rounds(nodes, rounds_, "mentorship")


def plain(nodes: int, rounds: int) -> dict[str, object]:
    """The same task and average without anything around it: what no engine can be below."""
    import numpy as np

    values = np.zeros(24, dtype=np.float32)
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        trained = [values + np.float32(0.01) for _ in range(nodes)]
        values = np.mean(trained, axis=0, dtype=np.float32)
        spent.append(time.perf_counter() - began)
    return {"rounds_s": spent, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


MEASURED = {
    "averaging": averaging,
    "mentorship": mentorship,
    "protocol": protocol,
    "plain_loop": plain,
}


def run(command: list[str]) -> dict[str, object]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    result: dict[str, object] = json.loads(line.removeprefix("RESULT "))
    spent = result["rounds_s"]
    assert isinstance(spent, list)
    result["rounds_s"] = [round(seconds, 6) for seconds in spent]
    result["best_round_s"] = min(spent)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flower-python")
    parser.add_argument("--nodes", default="100,1000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=tuple(MEASURED))
    arguments = parser.parse_args()
    sizes = [int(part) for part in arguments.nodes.split(",")]
    if arguments.one:
        measured = MEASURED[arguments.one](sizes[0], arguments.rounds)
        print("RESULT " + json.dumps(measured))
        return
    rows = []
    for nodes in sizes:
        own = [sys.executable, __file__, "--nodes", str(nodes), "--rounds", str(arguments.rounds), "--one"]
        row: dict[str, object] = {"nodes": nodes}
        results = {name: run([*own, name]) for name in MEASURED}
        if arguments.flower_python:
            results["flower"] = run(
                [arguments.flower_python, "-c", FLOWER, str(nodes), str(arguments.rounds)]
            )
        milliseconds = {}
        for name, result in results.items():
            best = result.pop("best_round_s")
            assert isinstance(best, float)
            milliseconds[name] = result["ms_per_node_round"] = round(best * 1000 / nodes, 5)
            row[name] = result
        if "flower" in milliseconds:
            for name in ("averaging", "mentorship", "protocol"):
                row[f"flower_to_{name}"] = round(milliseconds["flower"] / milliseconds[name], 2)
        row["averaging_to_plain_loop"] = round(milliseconds["averaging"] / milliseconds["plain_loop"], 1)
        rows.append(row)
        print(json.dumps(row), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": arguments.rounds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
