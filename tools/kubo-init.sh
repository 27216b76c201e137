#!/bin/sh
# Run by the Kubo image before its daemon starts: no strangers, bytes on the disk before they are promised,
# and every block hashed when it is read. Used by docker-compose.yml only.
set -e
ipfs bootstrap rm --all
ipfs config --bool Datastore.HashOnRead true
sed -i 's/"sync": false/"sync": true/' "$IPFS_PATH/config"
