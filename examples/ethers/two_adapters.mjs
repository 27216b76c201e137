// Create two adapters, compose them 70/30, and read back what the chain holds. Plain ethers, nothing of ours.
//
//     node two_adapters.mjs RPC_URL KEY_FILE [SECONDS_TO_WAIT]
//
// Prints one JSON object per step. SECONDS_TO_WAIT: how long to look for the composition's first version, which
// the network's nodes add at a checkpoint.

import { readFileSync } from "node:fs";
import { Contract, JsonRpcProvider, NonceManager, Wallet, getBytes, sha256 } from "ethers";
import { adapterFile, cidText } from "./adapter_file.mjs";

const CONTRACT = "0x0000000000000000000000000000000000000103";
const ARTIFACT = new URL("../../citrate_node/chain/artifacts/AdapterFactory.json", import.meta.url);

const [rpcUrl, keyFile, waitSeconds = "0"] = process.argv.slice(2);
if (!keyFile) {
  console.error("usage: node two_adapters.mjs RPC_URL KEY_FILE [SECONDS_TO_WAIT]");
  process.exit(2);
}
const show = (facts) => console.log(JSON.stringify(facts));

const provider = new JsonRpcProvider(rpcUrl, undefined, { pollingInterval: 500 });
const wallet = new Wallet("0x" + readFileSync(keyFile, "utf8").trim().replace(/^0x/, ""), provider);
const signer = new NonceManager(wallet);
const factory = new Contract(CONTRACT, JSON.parse(readFileSync(ARTIFACT, "utf8")).abi, signer);
if ((await factory.contractVersion()) !== 1n) throw new Error("no AdapterFactory that this example knows");

// Dry run first: a refusal then costs nothing and carries the contract's reason.
async function send(name, ...values) {
  const answer = await factory[name].staticCall(...values);
  const receipt = await (await factory[name](...values)).wait();
  return [answer, Number(receipt.gasUsed)];
}

const [base] = await factory.baseModels(0, 1);
const run = await provider.getTransactionCount(wallet.address); // makes the names, and so the ids, new each time
const ids = [];
for (const [name, step] of [[`first ${run}`, 3], [`second ${run}`, 5]]) {
  const data = adapterFile(base.id, step);
  const [adapterId, gasUsed] = await send("createAdapter", base.id, name, data, 1);
  ids.push(adapterId);
  show({ step: "created", adapterId, name, gasUsed, sha256: sha256(data).slice(2) });
}

const [composed, gasUsed] = await send("composeAdapters", ...ids, 70, 30);
show({ step: "composed", adapterId: composed, gasUsed });

for (const adapterId of ids) {
  for (const row of await factory.history(adapterId, 0, 10)) {
    const cid = cidText(getBytes(await factory.cid(adapterId, row.version)));
    show({ step: "version", adapterId, version: Number(row.version), weightsHash: row.weightsHash.slice(2), cid });
  }
}

const lineage = await factory.lineage(composed);
show({
  step: "lineage",
  parents: [lineage.parentA, lineage.parentB],
  weights: [Number(lineage.weightA), Number(lineage.weightB)],
});

const deadline = Date.now() + 1000 * Number(waitSeconds);
let versions = await factory.versionCount(composed);
while (versions === 0n && Date.now() < deadline) {
  await new Promise((resolve) => setTimeout(resolve, 1000));
  versions = await factory.versionCount(composed);
}
const cid = versions ? cidText(getBytes(await factory.cid(composed, 1))) : null;
show({ step: "composition", adapterId: composed, versions: Number(versions), cid });
provider.destroy();
