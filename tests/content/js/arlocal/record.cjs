// Writes tests/vectors/arweave.json: data roots and proofs of the JavaScript library `arweave`, and its deep hash.
//   cd tests/content/js/arlocal && npm install && node record.cjs > ../../../vectors/arweave.json
const { createHash } = require('node:crypto')
const merkle = require('arweave/node/lib/merkle')
const deepHash = require('arweave/node/lib/deepHash').default

function stream (size) { // as tests/content/store_samples.py
  return createHash('shake256', { outputLength: size }).update('content').digest()
}

async function main () {
  const K = 1024
  const sizes = [1, 1000, 256 * K - 1, 256 * K, 256 * K + 1, 287 * K, 288 * K, 512 * K, 700 * K + 3, 1024 * K, 1400 * K]
  const roots = []
  for (const size of sizes) {
    const tree = await merkle.generateTransactionChunks(stream(size))
    const paths = createHash('sha256')
    for (const proof of tree.proofs) paths.update(proof.proof)
    const bounds = tree.chunks.map(chunk => [chunk.minByteRange, chunk.maxByteRange])
    roots.push([size, Buffer.from(tree.data_root).toString('hex'), paths.digest('hex'), bounds])
  }
  const text = word => Buffer.from(word)
  const deep = await deepHash([text('2'), text(''), [[text('name'), text('value')], []], text('x'.repeat(300))])
  const about = 'npm arweave 1.x (of arlocal 1.1.66): size, data root, sha256 of all proofs, bounds of the chunks of shake_256("content"); deep hash of ["2", "", [["name", "value"], []], 300 times "x"]. Made by tests/content/js/arlocal/record.cjs.'
  console.log(JSON.stringify({ about, roots, deep_hash: Buffer.from(deep).toString('hex') }, null, 1))
}
main()
