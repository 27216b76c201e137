// The protocol's bytes, from docs/protocol.md alone: encoding, envelopes, votes, content digests, certificates.
// Pure; peer.mjs carries them over libp2p.

import { decode, encode } from 'cborg'
import { ed25519 } from '@noble/curves/ed25519.js'
import { secp256k1 } from '@noble/curves/secp256k1.js'
import { sha256 } from '@noble/hashes/sha2.js'
import { keccak_256 as keccak } from '@noble/hashes/sha3.js'

export const ENVELOPE_SIZE_BYTES_MAX = 65536
export const RECORD_SIZE_BYTES_MAX = 60000
const U64_MAX = 2n ** 64n - 1n

export const hex = bytes => Buffer.from(bytes).toString('hex')
export const unhex = text => new Uint8Array(Buffer.from(text.replace(/^0x/, ''), 'hex'))
export const join = (...parts) => new Uint8Array(Buffer.concat(parts))
const ascii = text => new TextEncoder().encode(text)
export const isEqual = (a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)) === 0

// section 1

/** The value of canonical CBOR; throws on anything that does not encode back to the same bytes. */
export function decodeCanonical (bytes, sizeMax) {
  if (bytes.length > sizeMax) throw new Error(`${bytes.length} bytes, limit ${sizeMax}`)
  const value = decode(bytes, {
    allowIndefinite: false, allowUndefined: false, allowInfinity: false, allowNaN: false,
    allowBigInt: true, strict: true, rejectDuplicateMapKeys: true
  })
  checkTypes(value, 0)
  if (!isEqual(encode(value), bytes)) throw new Error('not the canonical encoding')
  return value
}

function checkTypes (value, depth) {
  if (depth > 8) throw new Error('nested too deeply')
  if (value instanceof Uint8Array || typeof value === 'string' || typeof value === 'boolean') return
  if (typeof value === 'bigint') return
  if (typeof value === 'number') {
    if (!Number.isInteger(value)) throw new Error('no floats')
    return
  }
  if (Array.isArray(value)) return value.forEach(item => checkTypes(item, depth + 1))
  if (value === null || typeof value !== 'object') throw new Error('a type that is not used here')
  Object.values(value).forEach(item => checkTypes(item, depth + 1))
}

export const digest = (domain, data) => sha256(join(ascii(domain), new Uint8Array(1), data))

/** Content digest of what fits one block. */
export function contentDigest (data) {
  if (data.length > 1 << 20) throw new Error('only contents of one block are digested here')
  return sha256(data)
}

// section 3

const HASH = ['bytes', 32, 32]
const CHECKPOINT = ['integer', 0n, U64_MAX]
const COUNT = ['integer', 0n, 1099511627776n]
const PPM = ['integer', -(2n ** 63n) + 1n, 2n ** 63n - 1n]
const ROUND = ['integer', 0n, 4294967295n]
const COMMON = { network_id: HASH, author: HASH }

export const KINDS = {
  1: {
    domain: 'citrate/mentorship-signal/1',
    suffix: 'signals',
    fields: {
      ...COMMON, target_checkpoint: CHECKPOINT, adapter_id: HASH, base_model_id: HASH,
      parent_weights_hash: HASH, codec: ['text', 1, 64], manifest_hash: HASH, delta_hash: HASH,
      delta_size_bytes: ['integer', 1n, 17179869184n], examples: COUNT
    }
  },
  2: {
    domain: 'citrate/evaluation/1',
    suffix: 'evaluations',
    fields: {
      ...COMMON, checkpoint: CHECKPOINT, signal_id: HASH, improvement_ppm: PPM, held_out_examples: COUNT
    }
  },
  3: {
    domain: 'citrate/measurement/1',
    suffix: 'measurements',
    fields: {
      ...COMMON, checkpoint: CHECKPOINT, adapter_id: HASH, weights_hash: HASH, improvement_ppm: PPM,
      held_out_examples: COUNT, parent_improvement_ppm: PPM
    }
  },
  4: {
    domain: 'citrate/proposal/1',
    suffix: 'proposals',
    fields: { ...COMMON, checkpoint: CHECKPOINT, round: ROUND, record: ['bytes', 1, RECORD_SIZE_BYTES_MAX] }
  },
  5: {
    domain: 'citrate/vote/1',
    suffix: 'votes',
    fields: {
      ...COMMON, checkpoint: CHECKPOINT, round: ROUND, record_hash: HASH, account_signature: ['bytes', 65, 65]
    }
  }
}

function checkFields (body, fields) {
  for (const name of Object.keys(body)) if (!(name in fields)) throw new Error(`unknown field ${name}`)
  for (const [name, [type, least, most]] of Object.entries(fields)) {
    const value = body[name]
    const isRight = {
      bytes: () => value instanceof Uint8Array && value.length >= least && value.length <= most,
      text: () => typeof value === 'string' && [...value].length >= least && [...value].length <= most,
      integer: () => ['number', 'bigint'].includes(typeof value) && BigInt(value) >= least && BigInt(value) <= most
    }[type]
    if (!isRight()) throw new Error(`field ${name} is missing, of another type or past its limit`)
  }
}

export const topicOf = (networkId, kind) => `/citrate/${hex(networkId.slice(0, 8))}/${KINDS[kind].suffix}/1`

/** {kind, body, id} of an envelope that this network takes; throws where it is not one. */
export function openEnvelope (bytes, networkId) {
  const envelope = decodeCanonical(bytes, ENVELOPE_SIZE_BYTES_MAX)
  if (!Array.isArray(envelope) || envelope.length !== 3) throw new Error('an envelope has three parts')
  const [kind, bodyBytes, signature] = envelope
  const known = KINDS[kind]
  if (known === undefined) throw new Error(`unknown kind ${kind}`)
  if (!(bodyBytes instanceof Uint8Array) || !(signature instanceof Uint8Array) || signature.length !== 64) {
    throw new Error('body and signature are byte strings')
  }
  const body = decodeCanonical(bodyBytes, ENVELOPE_SIZE_BYTES_MAX)
  checkFields(body, known.fields)
  if (!isEqual(body.network_id, networkId)) throw new Error('another network')
  const signed = join(ascii(known.domain), new Uint8Array(1), bodyBytes)
  if (!ed25519.verify(signature, signed, body.author)) throw new Error('the signature is not the author\'s')
  return { kind, body, id: digest(known.domain, bodyBytes) }
}

// sections 2 and 8

/** The network id; hashes and the contract as bytes. */
export function networkIdOf ({ chainId, genesisBlockHash, contract, genesisRecordHash, preset }) {
  const presetDigest = digest('citrate/preset/1', encode(preset))
  const parts = [chainId, genesisBlockHash, contract, genesisRecordHash, presetDigest]
  return digest('citrate/network-id/1', encode(parts))
}

/** A checkpoint record, its lists checked. */
export function decodeRecord (bytes) {
  const record = decodeCanonical(bytes, RECORD_SIZE_BYTES_MAX)
  for (const name of ['signals', 'withheld', 'evaluations', 'measurements']) {
    record[name].slice(1).forEach((id, i) => {
      if (Buffer.compare(Buffer.from(record[name][i]), Buffer.from(id)) >= 0) throw new Error(`${name} do not ascend`)
    })
  }
  return record
}

// section 9

const word = value => unhex(BigInt.asUintN(256, BigInt(value)).toString(16).padStart(64, '0'))
const UPDATE_TYPE = 'CertifiedUpdate(bytes32 adapterId,bytes32 weightsHash,uint8 codec,uint64 sizeBytes,int64 accuracyPpm)'
const COMMITMENT_TYPE = 'CheckpointCommitment(uint64 number,uint32 round,bytes32 parentRecordHash,bytes32 recordHash,' +
  'bytes32 validatorSetHash,bytes32 nextValidatorSetHash,CertifiedUpdate[] updates)' + UPDATE_TYPE
const DOMAIN_TYPE = 'EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)'

const codecOf = size => BigInt(size) <= 1n << 20n ? 0x55 : 0x70

/** The 32 bytes that a vote for a record in a round signs. */
export function voteDigest (chainId, contract, record, round) {
  const updates = record.compositions.map(row => ({ ...row }))
  if (record.promoted) {
    updates.push({
      adapter_id: record.adapter_id,
      weights_hash: record.weights_hash,
      size_bytes: record.weights_size_bytes,
      accuracy_ppm: record.accuracy_ppm
    })
  }
  updates.sort((a, b) => Buffer.compare(Buffer.from(a.adapter_id), Buffer.from(b.adapter_id)))
  const recordHash = contentDigest(encode(record))
  return commitmentDigest(chainId, contract, { ...record, round, record_hash: recordHash, updates })
}

export function commitmentDigest (chainId, contract, commitment) {
  const hashes = commitment.updates.map(update => keccak(join(
    keccak(ascii(UPDATE_TYPE)), update.adapter_id, update.weights_hash,
    word(update.codec ?? codecOf(update.size_bytes)), word(update.size_bytes), word(update.accuracy_ppm)
  )))
  const struct = keccak(join(
    keccak(ascii(COMMITMENT_TYPE)), word(commitment.number), word(commitment.round),
    commitment.parent_record_hash, commitment.record_hash, commitment.validator_set_hash,
    commitment.next_validator_set_hash, keccak(join(...hashes))
  ))
  const domain = keccak(join(
    keccak(ascii(DOMAIN_TYPE)), keccak(ascii('Citrate AdapterFactory')), keccak(ascii('1')),
    word(chainId), new Uint8Array(12), contract
  ))
  return keccak(join(new Uint8Array([0x19, 0x01]), domain, struct))
}

/** The account that made a vote's second signature; throws on a high s or another v. */
export function accountOf (messageDigest, signature) {
  const v = signature[64]
  if (v !== 27 && v !== 28) throw new Error(`v is ${v}`)
  const parsed = secp256k1.Signature.fromBytes(signature.slice(0, 64)).addRecoveryBit(v - 27)
  if (parsed.hasHighS()) throw new Error('a high s')
  const key = parsed.recoverPublicKey(messageDigest)
  return keccak(key.toBytes(false).slice(1)).slice(12)
}

/** Of validators {node_key, account, stake}. */
export function validatorSetHash (validators) {
  const seats = [...validators].sort((a, b) => Buffer.compare(Buffer.from(a.account), Buffer.from(b.account)))
  const words = seats.map(seat => join(seat.account, word(seat.stake).slice(20)))
  return keccak(join(keccak(join(...words)), keccak(join(...seats.map(seat => seat.node_key)))))
}
