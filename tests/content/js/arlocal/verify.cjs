// Says whether the JavaScript library `arweave` accepts a transaction (JSON on stdin), signature and id.
const Arweave = require('arweave/node')
const library = (Arweave.default ?? Arweave)
let text = ''
process.stdin.on('data', part => { text += part })
process.stdin.on('end', async () => {
  const client = library.init({ host: '127.0.0.1', port: 1, protocol: 'http' })
  const transaction = client.transactions.fromRaw(JSON.parse(text))
  console.log(await client.transactions.verify(transaction))
})
