// Reads a CID through one trustless gateway with Helia's verified-fetch, and writes the bytes to stdout.
//   node_modules/node/bin/node fetch.mjs GATEWAY_URL CID
import { createVerifiedFetch } from '@helia/verified-fetch'
import { withHTTP } from '@helia/http'
import { createHeliaLight } from 'helia'

const [gateway, cid] = process.argv.slice(2)
const helia = withHTTP(createHeliaLight(), {
  recursiveGateways: [gateway],
  delegatedRouters: [gateway], // an empty list makes Helia search for ever; this one answers 404
  allowInsecure: true,
  allowLocal: true
})
const fetch = await createVerifiedFetch(await helia)
const response = await fetch(`ipfs://${cid}`, { signal: AbortSignal.timeout(20_000) })
if (!response.ok) {
  console.error(`status ${response.status}`)
  process.exit(3)
}
process.stdout.write(new Uint8Array(await response.arrayBuffer()), () => process.exit(0))
