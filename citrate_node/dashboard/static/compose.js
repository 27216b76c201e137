// Composes two adapters by a slider: the exact weighted sum, which the nodes compute and certify.

import { newest } from "./adapters.js";
import { read } from "./contract.js";
import { field } from "./create.js";
import { lineageTree, nameOf } from "./lineage.js";
import { offer, showError } from "./transaction.js";
import { el, facts, show } from "./ui.js";

const OFFERED = 100;

export async function composePage(place, [first = ""]) {
  const { entries } = await newest(0, OFFERED);
  const choices = entries.filter(({ row }) => row.versionCount > 0n);
  const list = el("datalist", { id: "known" }, choices.map(({ id, row }) => el("option", { value: id }, row.name || "composition")));
  const box = (name, value) => el("input", { name, list: "known", value, required: true, autocomplete: "off", spellcheck: "false", pattern: "0x[0-9a-fA-F]{64}", placeholder: "0x… choose or paste an id" });
  const names = { a: el("output", { class: "named" }), b: el("output", { class: "named" }) };
  const boxes = { a: box("a", first), b: box("b", "") };
  const slider = el("input", { name: "share", type: "range", min: 1, max: 99, value: 50 });
  const shares = el("output", { class: "shares" });
  const result = el("div", { class: "result" });
  const form = el("form", { "aria-labelledby": "title" }, list,
    field("First adapter", boxes.a), names.a, field("Second adapter", boxes.b), names.b,
    field("Share of the first, in per cent", slider), shares,
    el("button", { type: "submit", class: "main" }, "Try it"));
  const drawShares = () => {
    const a = Number(slider.value);
    slider.setAttribute("aria-valuetext", `${a} per cent of the first, ${100 - a} of the second`);
    shares.textContent = `${a} % of the first, ${100 - a} % of the second`;
  };
  const name = async (side) => {
    names[side].textContent = "";
    if (!boxes[side].value || !boxes[side].checkValidity()) return;
    names[side].textContent = await nameOf(boxes[side].value).catch((error) => error.message);
  };
  drawShares();
  name("a");
  form.addEventListener("input", () => {
    show(result);
    drawShares();
  });
  for (const side of ["a", "b"]) boxes[side].addEventListener("change", () => name(side));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    try {
      const a = BigInt(slider.value);
      offer(result, "composeAdapters", [boxes.a.value, boxes.b.value, a, 100n - a], composed);
    } catch (error) {
      showError(result, error);
    }
  });
  show(place,
    el("h1", { id: "title" }, "Compose two adapters"),
    el("p", { class: "note" }, "The nodes compute the exact weighted sum of their latest versions, and certify it in the next checkpoint that has the weights of both."),
    form, result);
}

async function composed(events) {
  const { args } = events.find((event) => event.name === "AdapterComposed");
  const versions = await read("versionCount", args.adapterId);
  return el("div", {},
    facts([
      ["Adapter", el("a", { href: `#adapter/${args.adapterId}`, class: "id" }, args.adapterId)],
      ["Version", versions ? String(versions) : "none yet: version 1 comes with a checkpoint"],
      ["Rank", String(args.rank)],
    ]),
    el("h2", {}, "Lineage"), await lineageTree(args.adapterId));
}
