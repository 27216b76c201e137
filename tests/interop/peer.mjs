// A peer of a Citrate network in JavaScript, written from docs/protocol.md alone. It verifies and relays gossip,
// fetches blobs, asks for messages and records. One JSON object a line: commands in, events out.
//
//   node peer.mjs '{"networkId": "<hex>", "peers": ["/ip4/…/p2p/…"]}'
//
// Commands: {"do": "fetch", "peer", "digest", "size"}, {"do": "messages", "peer", "checkpoint", "have"},
// {"do": "record", "peer", "hash"}, {"do": "peers", "peer"}, {"do": "mesh"}. It ends with its input.

import { createInterface } from 'node:readline'
import { createLibp2p } from 'libp2p'
import { encode } from 'cborg'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { multiaddr } from '@multiformats/multiaddr'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import * as citrate from './protocol.mjs'

const { hex, unhex, join } = citrate
const options = JSON.parse(process.argv[2])
const networkId = unhex(options.networkId)
const say = event => process.stdout.write(JSON.stringify(event, (_, value) => {
  if (value instanceof Uint8Array) return hex(value)
  return typeof value === 'bigint' ? value.toString() : value
}) + '\n')

const u64 = value => { const out = Buffer.alloc(8); out.writeBigUInt64BE(BigInt(value)); return out }
const u32 = value => { const out = Buffer.alloc(4); out.writeUInt32BE(value); return out }

const network = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    pubsub: gossipsub({
      allowPublishToZeroTopicPeers: true,
      globalSignaturePolicy: 'StrictSign',
      msgIdFn: message => join(message.from.toMultihash().bytes, u64(message.sequenceNumber))
    })
  }
})

// Gossip: what never changes about a message is checked before it is passed on. The validator's answers are
// gossipsub's own words: 'accept', 'ignore', 'reject'.
const pubsub = network.services.pubsub
for (const kind of Object.keys(citrate.KINDS).map(Number)) {
  const topic = citrate.topicOf(networkId, kind)
  pubsub.topicValidators.set(topic, (forwarder, message) => {
    const about = { event: 'message', topic, forwarder: forwarder.toString(), origin: message.from?.toString() }
    try {
      const opened = citrate.openEnvelope(message.data, networkId)
      if (opened.kind !== kind) throw new Error('on another kind\'s topic')
      say({ ...about, kind, id: opened.id, body: opened.body })
      return 'accept'
    } catch (error) {
      say({ ...about, error: error.message })
      return 'reject'
    }
  })
  pubsub.subscribe(topic)
}

/** Everything that a peer writes in answer to `request`, until it closes. */
async function exchange (peer, protocol, request) {
  const connection = network.getConnections().find(one => one.remotePeer.toString() === peer)
  if (connection === undefined) throw new Error(`not connected to ${peer}`)
  const stream = await connection.newStream(protocol)
  const parts = []
  stream.send(request)
  const read = (async () => { for await (const part of stream) parts.push(part.subarray()) })()
  await stream.close()
  await read
  return join(...parts)
}

async function ask (peer, question) {
  const payload = encode(question)
  const answer = Buffer.from(await exchange(peer, '/citrate/request/1.0.0', join(u32(payload.length), payload)))
  if (answer[0] !== 0) throw new Error(`status ${answer[0]}`)
  const length = answer.readUInt32BE(1)
  if (answer.length !== 5 + length) throw new Error(`${answer.length - 5} bytes, announced are ${length}`)
  return citrate.decodeCanonical(new Uint8Array(answer.subarray(5)), 4194304)
}

const COMMANDS = {
  async fetch ({ peer, digest, size, offset = 0 }) {
    const request = join(unhex(digest), u64(size), u64(offset))
    const answer = await exchange(peer, '/citrate/blob/1.0.0', request)
    if (answer[0] !== 0) return { status: answer[0] }
    const data = answer.slice(1)
    const right = offset === 0 && data.length === size && hex(citrate.contentDigest(data)) === digest
    return { status: 0, size: data.length, right }
  },
  async messages ({ peer, checkpoint, have = [] }) {
    const ids = have.map(unhex)
    const { envelopes } = await ask(peer, { ask: 'messages', network_id: networkId, checkpoint, have: ids })
    const opened = envelopes.map(envelope => citrate.openEnvelope(envelope, networkId))
    return { messages: opened.map(({ kind, id, body }) => ({ kind, id, body })) }
  },
  async record ({ peer, hash }) {
    const { record } = await ask(peer, { ask: 'record', network_id: networkId, record_hash: unhex(hash) })
    if (record.length === 0) return { found: false }
    return { found: true, right: hex(citrate.contentDigest(record)) === hash, record: citrate.decodeRecord(record) }
  },
  async vote ({ record, round, signature, chainId, contract }) {
    const digest = citrate.voteDigest(chainId, unhex(contract), citrate.decodeRecord(unhex(record)), round)
    return { account: citrate.accountOf(digest, unhex(signature)) }
  },
  async validators ({ validators }) {
    const seats = validators.map(seat => ({
      node_key: unhex(seat.node_key), account: unhex(seat.account), stake: seat.stake
    }))
    return { hash: citrate.validatorSetHash(seats) }
  },
  async network ({ chainId, genesisBlockHash, contract, genesisRecordHash, preset }) {
    return {
      id: citrate.networkIdOf({
        chainId,
        genesisBlockHash: unhex(genesisBlockHash),
        contract: unhex(contract),
        genesisRecordHash: unhex(genesisRecordHash),
        preset
      })
    }
  },
  async publish ({ kind, envelope }) {
    await pubsub.publish(citrate.topicOf(networkId, kind), unhex(envelope))
    return {}
  },
  async peers ({ peer }) {
    const own = network.getMultiaddrs().map(String).join('\n')
    const answer = await exchange(peer, '/citrate/peers/1.0.0', new TextEncoder().encode(own))
    return { addresses: new TextDecoder().decode(answer).split('\n').filter(line => line !== '') }
  },
  async mesh () {
    return Object.fromEntries(pubsub.getTopics().map(topic => [topic, pubsub.getMeshPeers(topic).length]))
  }
}

for (const address of options.peers) await network.dial(multiaddr(address))
say({ event: 'ready', peerId: network.peerId.toString(), addresses: network.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  try {
    say({ event: 'answer', ...await COMMANDS[command.do](command) })
  } catch (error) {
    say({ event: 'answer', error: error.message })
  }
}
await network.stop()
