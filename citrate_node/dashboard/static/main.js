// Which part of the page is shown, and the line to the devnet.

import { adapterPage, adaptersPage } from "./adapters.js";
import { composePage } from "./compose.js";
import { isLoaded, load } from "./contract.js";
import { createPage } from "./create.js";
import { emptyState, fold, footer, networkPage } from "./network.js";
import { el, show } from "./ui.js";
import { showError } from "./transaction.js";
import { onDevnet, start as startWallet } from "./wallet.js";

const PAGES = { adapters: adaptersPage, adapter: adapterPage, create: createPage, compose: composePage };
const main = document.getElementById("main");
const state = emptyState();
let shown = 0;

const route = () => {
  const [name, ...rest] = location.hash.slice(1).split("/");
  return [name in PAGES ? name : "network", rest];
};

// Draws into an element of its own, so that a slow page does not overwrite the one chosen after it.
async function draw() {
  const [name, rest] = route();
  for (const link of document.querySelectorAll("header nav a")) {
    const here = link.hash === `#${name}` || (name === "adapter" && link.hash === "#adapters");
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const number = ++shown;
  const place = el("div", {});
  if (name === "network") {
    networkPage(place, state);
  } else if (!isLoaded()) {
    show(place, el("p", { role: "status" }, "The chain is starting …"));
  } else {
    try {
      await PAGES[name](place, rest);
    } catch (error) {
      showError(place, error);
    }
  }
  if (number === shown) show(main, place);
}

async function take(fact) {
  const before = state.devnet?.contract;
  fold(state, fact);
  if (state.devnet && (fact.type === "state" || fact.type === "devnet")) {
    await load(state.devnet.contract);
    onDevnet(state.devnet);
    footer(document.getElementById("facts"), state.devnet);
    if (before !== state.devnet.contract && route()[0] !== "network") draw();
  }
  if (route()[0] === "network") drawSoon();
  if (fact.type === "checkpoint" && ["adapter", "adapters"].includes(route()[0])) draw(); // it may have a new version
}

// Facts come in bursts; the page is drawn once for all of them, and tables stay scrolled to where they were.
let waiting = null;
function drawSoon() {
  waiting ??= setTimeout(async () => {
    waiting = null;
    if (route()[0] !== "network") return;
    const scrolled = [...main.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
    await draw();
    main.querySelectorAll(".scroll").forEach((box, i) => (box.scrollLeft = scrolled[i] ?? 0));
  }, 250);
}

const events = new EventSource("/api/events");
events.addEventListener("message", (event) => {
  state.live = true;
  take(JSON.parse(event.data));
});
events.addEventListener("error", () => {
  state.live = false;
  drawSoon();
});

window.addEventListener("hashchange", async () => {
  await draw();
  main.focus();
});
startWallet(document.getElementById("wallet"));
draw();
