// The CIDs that npm's ipfs-unixfs-importer gives. Rows [input, leaf_size_bytes, links_max, size_bytes] as JSON
// on stdin, one list; the CIDs as JSON on stdout. It made "recorded" in tests/vectors/content_ids.json:
//   python -c "import json; print(json.dumps([r[:4] for r in json.load(open('tests/vectors/content_ids.json'))['recorded']]))" \\
//     | node tests/content/js/importer/record.mjs
import { createHash } from 'node:crypto'
import { importer } from 'ipfs-unixfs-importer'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced } from 'ipfs-unixfs-importer/layout'
import { BlackHoleBlockstore } from 'blockstore-core'

function bytes (input, size) { // as the vectors' file says
  if (input === 'zeros') return Buffer.alloc(size)
  const parts = []
  for (let i = 0; i * 32 < size; i++) {
    const counter = Buffer.alloc(8)
    counter.writeBigUInt64BE(BigInt(i))
    parts.push(createHash('sha256').update('content').update(counter).digest())
  }
  return Buffer.concat(parts).subarray(0, size)
}

let text = ''
for await (const part of process.stdin) text += part
const cids = []
for (const [input, leaf, width, size] of JSON.parse(text)) {
  const options = {
    cidVersion: 1,
    rawLeaves: true,
    reduceSingleLeafToSelf: true,
    chunker: fixedSize({ chunkSize: leaf }),
    layout: balanced({ maxChildrenPerNode: width })
  }
  let root
  for await (const entry of importer([{ content: [bytes(input, size)] }], new BlackHoleBlockstore(), options)) root = entry.cid
  cids.push(root.toString())
}
console.log(JSON.stringify(cids))
