// The reader's wallet, by EIP-1193: found by EIP-6963 or as window.ethereum, connected, put on this chain.

import { rpc } from "./contract.js";
import { coins, el, show } from "./ui.js";

const UNKNOWN_CHAIN = 4902;
const DECLINED = 4001;
const found = new Map();
const state = { entry: null, account: null, chainId: null, problem: "" };
let devnet = null;
let container = null;

export const account = () => state.account;
const rightChain = () => devnet !== null && state.chainId !== null && Number(state.chainId) === devnet.chain_id;

export function start(element) {
  container = element;
  window.addEventListener("eip6963:announceProvider", ({ detail }) => {
    const { info, provider } = detail ?? {};
    if (typeof info?.uuid !== "string" || typeof info.name !== "string" || typeof provider?.request !== "function") return;
    found.set(info.uuid, { name: info.name, icon: icon(info.icon), provider });
    draw();
  });
  window.dispatchEvent(new Event("eip6963:requestProvider"));
  // wallets announce themselves at once; one that does not know how is window.ethereum
  setTimeout(() => {
    if (found.size === 0 && typeof window.ethereum?.request === "function") {
      found.set("window.ethereum", { name: "Browser wallet", icon: null, provider: window.ethereum });
    }
    draw();
  }, 200);
  draw();
}

export function onDevnet(facts) {
  devnet = facts;
  draw();
}

const icon = (text) => (typeof text === "string" && /^data:image\/(png|svg\+xml|webp|jpeg|gif)[;,]/.test(text) ? text : null);

async function connect(entry) {
  state.problem = "";
  try {
    const [first] = await entry.provider.request({ method: "eth_requestAccounts" });
    state.entry = entry;
    state.account = first ?? null;
    state.chainId = await entry.provider.request({ method: "eth_chainId" });
    entry.provider.on?.("accountsChanged", ([next]) => change({ account: next ?? null }));
    entry.provider.on?.("chainChanged", (chainId) => change({ chainId }));
  } catch (error) {
    state.problem = walletProblem(error);
  }
  draw();
  window.dispatchEvent(new Event("citrate:wallet"));
}

function change(next) {
  Object.assign(state, next);
  draw();
  window.dispatchEvent(new Event("citrate:wallet"));
}

export async function useChain() {
  const chainId = "0x" + devnet.chain_id.toString(16);
  const { provider } = state.entry;
  state.problem = "";
  try {
    try {
      await provider.request({ method: "wallet_switchEthereumChain", params: [{ chainId }] });
    } catch (error) {
      if (error.code !== UNKNOWN_CHAIN && error.data?.originalError?.code !== UNKNOWN_CHAIN) throw error;
      await provider.request({ method: "wallet_addEthereumChain", params: [chainToAdd(chainId)] });
    }
    state.chainId = await provider.request({ method: "eth_chainId" });
  } catch (error) {
    state.problem = walletProblem(error);
  }
  draw();
  window.dispatchEvent(new Event("citrate:wallet"));
}

const chainToAdd = (chainId) => ({
  chainId,
  chainName: `Citrate devnet ${devnet.chain_id}`,
  rpcUrls: [devnet.rpc_url],
  nativeCurrency: { name: "Devnet coin, worth nothing", symbol: "DEV", decimals: 18 },
});

// Sends a transaction with the wallet and returns its hash. Throws an Error for people.
export async function send(transaction) {
  await requireReady();
  try {
    return await state.entry.provider.request({ method: "eth_sendTransaction", params: [transaction] });
  } catch (error) {
    throw new Error(walletProblem(error));
  }
}

// Throws unless a wallet is connected and on this very chain: another devnet may have the same number.
export async function requireReady() {
  if (!state.account) throw new Error("Connect a wallet first: the button is at the top of the page.");
  state.chainId = await state.entry.provider.request({ method: "eth_chainId" });
  if (!rightChain()) throw new Error(`The wallet is on another chain: press “Use chain ${devnet?.chain_id}” at the top.`);
  const block = ["0x0", false];
  const [ours, theirs] = await Promise.all([
    rpc("eth_getBlockByNumber", ...block),
    state.entry.provider.request({ method: "eth_getBlockByNumber", params: block }).catch(() => null),
  ]);
  if (theirs && theirs.hash !== ours.hash) {
    throw new Error(
      `The wallet knows another network with chain id ${devnet.chain_id}: ` +
        `in the wallet, set the RPC URL of that network to ${devnet.rpc_url}.`,
    );
  }
}

function walletProblem(error) {
  if (error?.code === DECLINED) return "You declined it in the wallet; nothing was sent.";
  return `The wallet says: ${error?.message ?? error}`;
}

async function draw() {
  if (!container) return;
  const parts = state.account ? connectedParts() : chooseParts();
  if (state.problem) parts.push(el("p", { class: "problem", role: "alert" }, state.problem));
  show(container, parts);
  if (!state.account || !devnet) return;
  const place = container.querySelector("#balance");
  try {
    const balance = BigInt(await rpc("eth_getBalance", state.account, "latest"));
    place.textContent = coins(balance);
    if (balance === 0n) {
      place.after(el("p", { class: "note" }, "No coins for gas yet: ", el("code", {}, `citrate wallet fund ${state.account}`)));
    }
  } catch {
    place.textContent = "";
  }
}

function chooseParts() {
  if (found.size === 0) return [el("p", { class: "note" }, "No wallet found in this browser")];
  return [...found.values()].map((entry) =>
    el("button", { type: "button", onclick: () => connect(entry) },
      entry.icon && el("img", { src: entry.icon, alt: "", width: 18, height: 18 }),
      `Connect ${entry.name.slice(0, 40)}`));
}

function connectedParts() {
  return [
    el("span", { class: "account", title: state.account },
      el("span", { class: "hidden" }, "Connected account "),
      el("code", {}, `${state.account.slice(0, 8)}…${state.account.slice(-4)}`), " ", el("span", { id: "balance" })),
    devnet && !rightChain() && el("button", { type: "button", onclick: useChain }, `Use chain ${devnet.chain_id}`),
  ].filter(Boolean);
}
