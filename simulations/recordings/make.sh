#!/usr/bin/env bash
# Makes the recordings of this folder anew, with real devnets: after a change of the protocol or of its messages.
#     simulations/recordings/make.sh [ordinary] [withheld] [composition]      (all three where none is named)
# Takes about ten minutes on two idle cores. CITRATE: the command, `.venv/bin/citrate` where it is not set.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
citrate="$(realpath "${CITRATE:-$here/../../.venv/bin/citrate}")"
work="$(mktemp -d)"
cd "$work"

devnet() { # NAME NODES CHECKPOINTS: in the background, its facts in NAME.jsonl
    "$citrate" devnet up --dir "$1" --nodes "$2" --checkpoints "$3" --preset "$here/patient.toml" --page-port 0 \
        --json > "$1.jsonl" 2> "$1.err" &
    running=$!
    until grep -q '"type": "devnet"' "$1.jsonl"; do sleep 1; kill -0 "$running"; done
}

keep() { # NAME: what the devnet recorded, if it comes out the same again
    "$citrate" replay "$1"
    rm -rf "${here:?}/$1"
    cp -r "$1/recording" "$here/$1"
    chmod -R u=rwX,go=rX "$here/$1"
}

ordinary() {
    devnet ordinary 3 2
    wait "$running"
    keep ordinary
}

withheld() { # node 4 is killed when it has announced its delta, and kept down until that checkpoint is committed
    devnet withheld 4 2
    until grep '"announced"' withheld.jsonl | grep -q '"node": 4'; do
        sleep 0.1
        kill -0 "$running"
    done
    number="$(grep '"announced"' withheld.jsonl | sed -n '/"node": 4/s/.*"checkpoint": \([0-9]*\).*/\1/p' | head -1)"
    until grep -q "\"type\": \"checkpoint\", \"number\": $number" withheld.jsonl; do
        for process in $(pgrep -f -- "--config $work/withheld/node-4/node.toml"); do kill -9 "$process" || true; done
        sleep 1
        kill -0 "$running"
    done
    wait "$running"
    grep -q '"type": "checkpoint".*"withheld": 1' withheld.jsonl
    keep withheld
}

composition() { # two small adapters are composed 70/30; it goes on until the composition is certified, two checkpoints at least
    echo "recordings" > password.txt
    export CITRATE_PASSWORD_FILE="$work/password.txt" CITRATE_KEYSTORE="$work/wallets"
    "$citrate" wallet new alice
    for domain in web gui; do
        "$citrate" train --data "domain:$domain" --out "$domain" --rank 1 --steps 10 --threads 1
    done
    devnet composition 2 0
    "$citrate" wallet fund alice 10 --dir composition
    for domain in web gui; do
        "$citrate" adapter create "$domain" --name "$domain" --dir composition --yes --json > "$domain.json"
    done
    id_of() { sed -n 's/.*"adapter_id": "\([^"]*\)".*/\1/p' "$1"; }
    "$citrate" adapter compose "$(id_of web.json)" "$(id_of gui.json)" --weights 70/30 --dir composition --yes
    until [ -d composition/recording/parents ] && [ -e composition/recording/checkpoints/000002.cbor ]; do
        sleep 2
        kill -0 "$running"
    done
    "$citrate" devnet stop --dir composition
    wait "$running" || true
    keep composition
}

for name in "${@:-ordinary withheld composition}"; do
    for each in $name; do "$each"; done
done
rm -rf "$work"
