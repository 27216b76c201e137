// One transaction, in steps that a person sees: tried, priced, confirmed in the wallet, mined.

import { contractAddress, encode, eventsOf, refusal, rpc } from "./contract.js";
import { account, requireReady, send } from "./wallet.js";
import { coins, count, el, facts, problem, show } from "./ui.js";

const POLL_MS = 500;
const PATIENCE_MS = 120000;

// Tries a call and offers to send it. done(events, receipt) draws what came of it.
export async function offer(place, name, args, done) {
  show(place, el("p", { role: "status" }, "Trying it on the chain, nothing is sent …"));
  try {
    await requireReady();
    const transaction = { from: account(), to: contractAddress(), data: encode(name, args) };
    await rpc("eth_call", transaction, "latest"); // a refusal comes with its reason here, and costs nothing
    const [gas, block, balance] = await Promise.all([
      rpc("eth_estimateGas", transaction).then(BigInt),
      rpc("eth_getBlockByNumber", "latest", false),
      rpc("eth_getBalance", account(), "latest").then(BigInt),
    ]);
    const limit = (gas * 5n) / 4n;
    const cost = limit * (2n * BigInt(block.baseFeePerGas) + 10n ** 9n);
    if (balance < cost) {
      show(place, problem(`This account has ${coins(balance)}, and gas may cost ${coins(cost, true)}. ` +
        `Give it some: citrate wallet fund ${account()}`));
      return;
    }
    const button = el("button", { type: "button", class: "main" }, "Send with the wallet");
    button.addEventListener("click", () => {
      button.disabled = true;
      sendIt(place, { ...transaction, gas: "0x" + limit.toString(16) }, done);
    });
    show(place,
      el("p", { role: "status" }, "The contract would take it."),
      facts([["Gas estimate", count(gas)], ["Costs at most", coins(cost, true)], ["You have", coins(balance)]]),
      button);
    button.focus();
  } catch (error) {
    showError(place, error);
  }
}

async function sendIt(place, transaction, done) {
  try {
    show(place, el("p", { role: "status" }, "Waiting for the wallet …"));
    const name = await send(transaction);
    show(place, el("p", { role: "status" }, "Sent, waiting for a block …"), facts([["Transaction", el("code", {}, name)]]));
    const receipt = await mined(name);
    if (receipt.status !== "0x1") throw await reason(transaction);
    show(place,
      el("p", { role: "status", class: "good" }, "Done."),
      await done(eventsOf(receipt), receipt),
      facts([["Transaction", el("code", {}, receipt.transactionHash)], ["Block", count(receipt.blockNumber)], ["Gas used", count(receipt.gasUsed)]]));
    window.dispatchEvent(new Event("citrate:wallet"));
  } catch (error) {
    showError(place, error);
  }
}

async function mined(name) {
  const deadline = Date.now() + PATIENCE_MS;
  while (Date.now() < deadline) {
    const receipt = await rpc("eth_getTransactionReceipt", name).catch(() => null); // the chain may be restarting
    if (receipt) return receipt;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  throw new Error(`Transaction ${name} is in no block after ${PATIENCE_MS / 1000} s; it may still come: look again later.`);
}

// The contract changed its mind between the trial and the block: ask it why.
async function reason(transaction) {
  try {
    await rpc("eth_call", transaction, "latest");
  } catch (error) {
    return error;
  }
  return refusal({ message: "it was mined and reverted; tried again now, it would pass" });
}

export function showError(place, error) {
  show(place, problem([error.message, error.advice].filter(Boolean).join(" — ")));
}
