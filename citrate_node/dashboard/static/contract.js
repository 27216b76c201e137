// Reads the contract through the devnet's own gate (/rpc), with or without a wallet. ethers encodes and decodes.

import { Interface } from "./vendor/ethers-6.17.0.min.js";

const BATCH = 40;
const PRUNED = /BlockOutOfRange/; // anvil forgets a block's state while it makes the next: asked again, it answers

export const CALLDATA_BYTES_MAX = 96 * 1024;
export const ACCURACY_UNKNOWN = -(2n ** 63n);

// What the contract, or the chain, said no to. `advice` says what to do, where we know.
export class Refusal extends Error {
  constructor(name, text, advice = "") {
    super(text);
    this.refusal = name;
    this.advice = advice;
  }
}

const ADVICE = {
  UnknownAdapter: "Look for its id under Adapters.",
  UnknownBaseModel: "Choose a base model that is registered.",
  NotYetCertified: "A composition waits for its first checkpoint; try again when it has a version.",
  AdapterExists: "This account made the very same call before. Look the adapter up, or change the name.",
  SelfComposition: "Choose two different adapters.",
  WeightsMustSumTo100: "The two shares must sum to 100.",
  BaseModelsDiffer: "Only adapters of one base model can be composed.",
  DepthLimit: "Compose adapters that are themselves made of fewer others.",
  RankOutOfRange: "The contract takes ranks from 1 to 64.",
  TextLength: "A name has 1 to 64 bytes.",
  WeightsTooLarge: "Store the weights and give their CID.",
  NotWeightsNorCid: "Give the file of an adapter, or a CID.",
};

let abi = null;
let address = null;

export async function load(contractAddress) {
  if (!abi) abi = new Interface(await (await fetch("/api/abi")).json());
  address = contractAddress;
}

export const isLoaded = () => abi !== null && address !== null;
export const contractAddress = () => address;
export const encode = (name, args) => abi.encodeFunctionData(name, args);

export async function rpc(method, ...params) {
  const [answer] = await batch([{ method, params }]);
  return answer;
}

// Answers in order; the first error is thrown.
async function batch(requests) {
  const found = [];
  for (let start = 0; start < requests.length; start += BATCH) {
    const part = requests.slice(start, start + BATCH);
    const answers = await post(part.map((request, i) => ({ jsonrpc: "2.0", id: i, ...request })));
    for (let i = 0; i < part.length; i++) {
      let answer = answers.find((each) => each.id === i);
      for (let again = 0; again < 3 && answer?.error && PRUNED.test(answer.error.message); again++) {
        [answer] = await post([{ jsonrpc: "2.0", id: i, ...part[i] }]);
      }
      if (!answer) throw new Refusal("NoAnswer", "the chain gave no answer");
      if (answer.error) throw refusal(answer.error);
      found.push(answer.result);
    }
  }
  return found;
}

async function post(body) {
  let response;
  try {
    response = await fetch("/rpc", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
  } catch {
    throw new Refusal("Unreachable", "the devnet does not answer", "Start it again with `citrate devnet up`.");
  }
  if (!response.ok) throw new Refusal("Unreachable", `the devnet answered with status ${response.status}`);
  const answers = await response.json();
  return Array.isArray(answers) ? answers : [answers];
}

// One view; a single result comes bare, several as ethers' Result.
export async function read(name, ...args) {
  const [value] = await readMany([[name, ...args]]);
  return value;
}

// Many views in few requests: [[name, ...args], …]
export async function readMany(calls) {
  const requests = calls.map(([name, ...args]) => ({
    method: "eth_call",
    params: [{ to: address, data: encode(name, args) }, "latest"],
  }));
  const answers = await batch(requests);
  return answers.map((data, i) => {
    const result = abi.decodeFunctionResult(calls[i][0], data);
    return result.length === 1 ? result[0] : result;
  });
}

// Events of the contract in a receipt: [{ name, args }, …]
export function eventsOf(receipt) {
  return receipt.logs
    .filter((log) => log.address.toLowerCase() === address.toLowerCase())
    .map((log) => abi.parseLog(log))
    .filter(Boolean);
}

export function refusal(error) {
  const data = [error.data, error.data?.data, error.data?.originalError?.data].find(
    (each) => typeof each === "string" && each.startsWith("0x") && each.length >= 10,
  );
  const parsed = data && parse(data);
  if (!parsed) return new Refusal("RpcError", `the chain refused: ${error.message ?? "no reason given"}`);
  const values = parsed.fragment.inputs.map((input, i) => `${input.name || i} = ${parsed.args[i]}`).join(", ");
  return new Refusal(parsed.name, `the contract refuses: ${parsed.name}(${values})`, ADVICE[parsed.name] ?? "");
}

function parse(data) {
  try {
    return abi.parseError(data);
  } catch {
    return null; // malformed revert data is like none
  }
}
