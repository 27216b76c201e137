// Create two adapters, compose them 70/30, and read back what the chain holds. Plain viem, nothing of ours.
//
//     node two_adapters.mjs RPC_URL KEY_FILE [SECONDS_TO_WAIT]
//
// Prints one JSON object per step. SECONDS_TO_WAIT: how long to look for the composition's first version, which
// the network's nodes add at a checkpoint.

import { readFileSync } from "node:fs";
import { createPublicClient, createWalletClient, defineChain, hexToBytes, http, sha256, toHex } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { adapterFile, cidText } from "./adapter_file.mjs";

const CONTRACT = "0x0000000000000000000000000000000000000103";
const ARTIFACT = new URL("../../citrate_node/chain/artifacts/AdapterFactory.json", import.meta.url);

const [rpcUrl, keyFile, waitSeconds = "0"] = process.argv.slice(2);
if (!keyFile) {
  console.error("usage: node two_adapters.mjs RPC_URL KEY_FILE [SECONDS_TO_WAIT]");
  process.exit(2);
}
const show = (facts) => console.log(JSON.stringify(facts));

const transport = http(rpcUrl);
const chain = defineChain({
  id: await createPublicClient({ transport }).getChainId(),
  name: "Citrate devnet",
  nativeCurrency: { name: "coin", symbol: "coin", decimals: 18 },
  rpcUrls: { default: { http: [rpcUrl] } },
});
const account = privateKeyToAccount("0x" + readFileSync(keyFile, "utf8").trim().replace(/^0x/, ""));
const client = createPublicClient({ chain, transport, pollingInterval: 500 });
const wallet = createWalletClient({ account, chain, transport });
const contract = { address: CONTRACT, abi: JSON.parse(readFileSync(ARTIFACT, "utf8")).abi };
const read = (functionName, ...args) => client.readContract({ ...contract, functionName, args });
if ((await read("contractVersion")) !== 1n) throw new Error("no AdapterFactory that this example knows");

// Dry run first: a refusal then costs nothing and carries the contract's reason.
async function send(functionName, ...args) {
  const { request, result } = await client.simulateContract({ ...contract, account, functionName, args });
  const receipt = await client.waitForTransactionReceipt({ hash: await wallet.writeContract(request) });
  if (receipt.status !== "success") throw new Error(`${functionName} failed in ${receipt.transactionHash}`);
  return [result, Number(receipt.gasUsed)];
}

const [base] = await read("baseModels", 0n, 1n);
// makes the names, and so the ids, new each time
const run = await client.getTransactionCount({ address: account.address });
const ids = [];
for (const [name, step] of [[`first ${run}`, 3], [`second ${run}`, 5]]) {
  const data = adapterFile(base.id, step);
  const [adapterId, gasUsed] = await send("createAdapter", base.id, name, toHex(data), 1n);
  ids.push(adapterId);
  show({ step: "created", adapterId, name, gasUsed, sha256: sha256(data).slice(2) });
}

const [composed, gasUsed] = await send("composeAdapters", ...ids, 70n, 30n);
show({ step: "composed", adapterId: composed, gasUsed });

for (const adapterId of ids) {
  for (const row of await read("history", adapterId, 0n, 10n)) {
    const cid = cidText(hexToBytes(await read("cid", adapterId, BigInt(row.version))));
    show({ step: "version", adapterId, version: row.version, weightsHash: row.weightsHash.slice(2), cid });
  }
}

const lineage = await read("lineage", composed);
show({
  step: "lineage",
  parents: [lineage.parentA, lineage.parentB],
  weights: [lineage.weightA, lineage.weightB],
});

const deadline = Date.now() + 1000 * Number(waitSeconds);
let versions = await read("versionCount", composed);
while (versions === 0n && Date.now() < deadline) {
  await new Promise((resolve) => setTimeout(resolve, 1000));
  versions = await read("versionCount", composed);
}
const cid = versions ? cidText(hexToBytes(await read("cid", composed, 1n))) : null;
show({ step: "composition", adapterId: composed, versions: Number(versions), cid });
