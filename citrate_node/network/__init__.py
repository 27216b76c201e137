"""Gossip, requests and blobs between nodes: bytes in, bytes out, over libp2p.

One private trio thread per node runs py-libp2p behind an asyncio facade (`libp2p_network.Libp2pNetwork`).
This room knows topics and content, never message types. It is the only room with trio, and importing
`libp2p_network` takes 0.6 s: import it where a node starts, not where a command line is parsed.

`identity` and `settings` are light; `libp2p_network` is the door; the rest is behind it.
"""
