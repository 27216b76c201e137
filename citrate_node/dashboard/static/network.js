// The devnet as it goes: checkpoints, nodes, and what mentorship was worth. Drawn from the facts in /api/events.

import { count, el, facts, hash, percent, share, shortened, show, table } from "./ui.js";

const ROWS_MAX = 200;
const EVENTS_MAX = 50;
const WORDS = {
  listening: "connecting to its peers", starting: "loading the base model", ready: "ready", opened: "training",
  announced: "announced its delta", evaluated: "evaluated its peers' deltas", measured: "measured the average",
  proposed: "proposed the checkpoint", voted: "voted", certified: "has a quorum's votes",
  committed: "committed on chain", finalized: "finalized", caught_up: "caught up", withheld: "gave up on a delta",
  late: "trained too long", dropped: "dropped its training", died: "ended", stopped: "stopped", failed: "failed at something",
  rejected: "refused a message", chain: "waits for the chain", commit_refused: "was not the first to commit",
};

export function emptyState() {
  return { devnet: null, step: "", nodes: {}, checkpoints: [], events: [], summary: null, live: false };
}

// Folds one fact into the state, as dashboard/feed.py does.
export function fold(state, fact) {
  switch (fact.type) {
    case "state":
      Object.assign(state, fact);
      break;
    case "devnet":
      state.devnet = fact;
      state.step = "running";
      break;
    case "step":
      state.step = fact.text;
      break;
    case "node":
      state.nodes[fact.node] = fact;
      if (["died", "failed", "rejected", "withheld", "late", "dropped", "caught_up"].includes(fact.what)) {
        state.events = [...state.events, fact].slice(-EVENTS_MAX);
      }
      break;
    case "checkpoint":
      state.checkpoints = [...state.checkpoints, fact].slice(-ROWS_MAX);
      break;
    case "summary":
      state.summary = fact;
      state.step = "done";
  }
}

export function networkPage(place, state) {
  const newest = [...state.checkpoints].reverse();
  show(place,
    el("h1", {}, "Network"),
    el("p", { class: "note", role: "status" }, state.live ? state.step || "starting" : "the devnet does not answer: it has ended or is starting again"),
    state.summary && summary(state.summary),
    newest.length > 0 && latest(newest[0]),
    el("h2", {}, "Nodes"), nodes(state),
    el("h2", {}, "Checkpoints"),
    newest.length === 0 ? el("p", {}, "None yet.") : checkpoints(newest),
    state.events.length > 0 && el("h2", {}, "Told by nodes"),
    state.events.length > 0 && el("ul", { class: "log" }, [...state.events].reverse().map((fact) => el("li", {}, event(fact)))));
}

function latest(row) {
  return el("section", { class: "cards", "aria-label": "Latest checkpoint" },
    card("Checkpoint", count(row.number)), card("Accuracy", percent(row.accuracy_ppm)),
    card("Signals", count(row.signals)), card("Gas", count(row.gas_used)));
}

const card = (name, value) => el("div", { class: "card" }, el("span", {}, name), el("strong", {}, value));

function nodes(state) {
  const numbers = Object.keys(state.nodes).sort((a, b) => a - b);
  if (numbers.length === 0) return el("p", {}, "Not started yet.");
  const reputations = state.checkpoints.at(-1)?.reputations ?? {};
  return table("Nodes", ["Node", "State", ["Checkpoint"], "Reputation"], numbers.map((number) => {
    const fact = state.nodes[number];
    const ppm = reputations[`node-${number}`];
    return [`node ${number}`, WORDS[fact.what] ?? fact.what, count(fact.checkpoint), ppm === undefined ? "–" : el("span", {},
      el("meter", { min: 0, max: 1000000, value: ppm, "aria-label": `Reputation of node ${number}` }), ` ${share(ppm)}`)];
  }));
}

function checkpoints(rows) {
  return table("Checkpoints, newest first",
    [["Checkpoint"], ["Signals"], "Improvement of each delta", ["Accuracy"], "Weights", "Transaction", ["Gas"], ["Block"], "Reputations"],
    rows.map((row) => [
      count(row.number), count(row.signals), (row.scores_ppm ?? []).map(percent).join("  ") || "–",
      percent(row.accuracy_ppm), hash(row.weights_hash), hash(row.tx), count(row.gas_used), count(row.block),
      Object.entries(row.reputations ?? {}).map(([node, ppm]) => el("span", { class: "pair" }, `${node} ${share(ppm)}`))]));
}

function event(fact) {
  const more = ["state", "reason", "detail", "mentor", "target"].map((key) => fact[key]).filter(Boolean).join("  ");
  return `node ${fact.node} ${WORDS[fact.what] ?? fact.what}${more ? ": " + more : ""}`;
}

function summary(fact) {
  const names = { base: "base model", isolated: "training alone", mentored: "mentorship" };
  return el("section", {}, el("h2", {}, "What mentorship was worth"),
    table("Held-out loss in nats per byte, lower is better", ["", ["own mixture"], ["all domains"], ["worst domain"], ["general text"]],
      Object.entries(names).map(([key, name]) => [name, ...["own", "all", "worst", "general"].map((column) => fact.loss[key][column].toFixed(3))])),
    el("p", { class: "note" }, "Held-out loss in nats per byte, lower is better."));
}

// Where the chain is, for wallets that are set up by hand.
export function footer(place, devnet) {
  show(place, devnet && facts([
    ["RPC URL", el("code", {}, devnet.rpc_url)], ["Chain id", String(devnet.chain_id)],
    ["AdapterFactory", el("code", {}, devnet.contract)],
    ["Mentored adapter", el("a", { href: `#adapter/${devnet.adapter_id}` }, shortened(devnet.adapter_id))]]));
}
