// Creates an adapter: from a file that fits into the transaction, or from the CID of weights stored elsewhere.

import { cidArgument, rowCid } from "./cid.js";
import { CALLDATA_BYTES_MAX, read } from "./contract.js";
import { offer, showError } from "./transaction.js";
import { bytes, el, facts, problem, show } from "./ui.js";

export async function createPage(place) {
  const bases = [...(await read("baseModels", 0, 50))];
  const form = {
    source: radios("source", "Weights", [["file", "a file of up to 96 KiB, sent in the transaction"], ["cid", "stored already: their CID"]]),
    file: field("File", el("input", { type: "file", accept: ".safetensors", name: "file" }),
      "adapter_model.safetensors as `citrate adapter pull` writes it"),
    cid: field("CID", el("input", { name: "cid", autocomplete: "off", spellcheck: "false", placeholder: "bafkrei…" }),
      "as `citrate content add` prints it"),
    size: field("Size in bytes", el("input", { name: "size", inputmode: "numeric", pattern: "[0-9]*" }), "recorded on chain; leave it out only if unknown"),
    name: field("Name", el("input", { name: "name", required: true, maxlength: 64, autocomplete: "off" }), "1 to 64 bytes; need not be unique"),
    base: field("Base model", el("select", { name: "base" }, bases.map(baseOption))),
    rank: field("Rank", el("input", { name: "rank", type: "number", min: 1, max: 64, value: 8, required: true })),
  };
  const judged = el("div", { "aria-live": "polite" });
  const result = el("div", { class: "result" });
  const made = { weights: null };
  const element = el("form", { "aria-labelledby": "title" },
    form.source, form.file, judged, form.cid, form.size, form.name, form.base, form.rank,
    el("button", { type: "submit", class: "main" }, "Try it"));
  const chosen = () => new FormData(element).get("source");
  const input = (name) => element.elements.namedItem(name);
  const arrange = () => {
    const isFile = chosen() === "file";
    form.file.hidden = !isFile;
    form.cid.hidden = form.size.hidden = isFile;
  };
  arrange();
  element.addEventListener("input", (event) => {
    show(result); // what was tried is not what stands here any more
    if (event.target.name === "source") arrange();
  });
  // so that the same file, changed meanwhile, can be chosen again
  input("file").addEventListener("click", () => (input("file").value = ""));
  input("file").addEventListener("change", async () => {
    made.weights = null;
    show(judged);
    const [file] = input("file").files;
    if (!file) return;
    const verdict = await judge(file);
    if (verdict.error) return show(judged, problem(`${verdict.error} — \`citrate adapter create\` reads other files of PEFT too`));
    input("rank").value = verdict.rank;
    input("base").value = verdict.base_model_id;
    const known = input("base").value === verdict.base_model_id || (await addBase(input("base"), verdict.base_model_id));
    show(judged,
      facts([["File", bytes(verdict.size_bytes)], ["Rank", String(verdict.rank)], ["Targets", verdict.targets.join(", ")], ["CID", el("code", {}, verdict.cid)]]),
      !known && problem(`Its base model ${verdict.base_model_id} is not registered on this chain.`),
      !verdict.fits_calldata && el("p", { class: "note" },
        `Too large for a transaction (limit ${bytes(CALLDATA_BYTES_MAX)}): store it first with `,
        el("code", {}, "citrate content add FILE --store DIR/node-1"), " (while that node is stopped); its CID is filled in below."));
    if (verdict.fits_calldata) {
      made.weights = new Uint8Array(await file.arrayBuffer());
    } else {
      input("cid").value = verdict.cid;
      input("size").value = verdict.size_bytes;
      element.querySelector('input[value="cid"]').checked = true;
      arrange();
    }
  });
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    try {
      if (chosen() === "file" && !made.weights) throw new Error("Choose the file of an adapter first.");
      const weights = chosen() === "file" ? made.weights : cidArgument(input("cid").value.trim(), Number(input("size").value || 0));
      const args = [input("base").value, input("name").value, weights, BigInt(input("rank").value || 0)];
      offer(result, "createAdapter", args, created);
    } catch (error) {
      showError(result, error);
    }
  });
  show(place,
    el("h1", { id: "title" }, "Create an adapter"),
    el("p", { class: "note" }, "Your account becomes its owner. It is tried first; nothing is sent before you press Send and confirm in the wallet."),
    element, result);
}

// One that is registered, but not among the first that the list shows.
async function addBase(select, id) {
  const base = await read("baseModel", id).catch(() => null);
  if (!base || base.id !== id) return false;
  select.append(baseOption(base));
  select.value = id;
  return true;
}

const baseOption = (base) => el("option", { value: base.id }, `${base.name} (${base.id.slice(0, 10)}…)`);

async function judge(file) {
  try {
    const response = await fetch("/api/adapter-file", { method: "POST", body: file });
    if (response.status === 413) return { error: `${file.name} is too large for this page` };
    return await response.json();
  } catch {
    return { error: "the devnet does not answer" };
  }
}

function created(events) {
  const { args } = events.find((event) => event.name === "AdapterCreated");
  const version = events.find((event) => event.name === "VersionAdded").args;
  return facts([
    ["Adapter", el("a", { href: `#adapter/${args.adapterId}`, class: "id" }, args.adapterId)],
    ["Version", String(version.version)],
    ["CID", el("code", {}, rowCid(version))],
  ]);
}

// A label, its control, and a hint that screen readers read with it.
export function field(label, control, hint = "") {
  const id = `field-${control.getAttribute("name")}`;
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return el("div", { class: "field" },
    el("label", { for: id }, label), control, hint && el("small", { id: `${id}-hint` }, hint));
}

function radios(name, legend, choices) {
  return el("fieldset", {}, el("legend", {}, legend),
    choices.map(([value, text], i) => el("label", {}, el("input", { type: "radio", name, value, checked: i === 0 }), ` ${text}`)));
}
