// The tree of compositions above an adapter, as nested lists.

import { read, readMany } from "./contract.js";
import { el, hash } from "./ui.js";

const NODES_MAX = 64;
const NONE = "0x" + "00".repeat(32);

export async function lineageTree(id) {
  return el("ul", { class: "tree", "aria-label": "Lineage" }, await ancestor(id, null, null, new Set()));
}

// An adapter that stands in the tree twice is opened once.
async function ancestor(id, version, weight, opened) {
  const [row, from] = await readMany([["adapter", id], ["lineage", id]]);
  const line = el("span", { class: "ancestor" },
    weight !== null && el("strong", {}, `${weight} % `),
    el("a", { href: `#adapter/${id}` }, row.name || "composition"),
    " ", hash(id), version !== null && ` version ${version}`, ` rank ${row.rank}`);
  if (from.parentA === NONE) return el("li", {}, line);
  if (opened.has(id) || opened.size >= NODES_MAX) return el("li", {}, line, " (its parents are not shown again)");
  opened.add(id);
  const parents = el("ul", {});
  for (const side of ["A", "B"]) {
    parents.append(await ancestor(from[`parent${side}`], from[`version${side}`], Number(from[`weight${side}`]), opened));
  }
  return el("li", {}, line, parents);
}

// The name of an adapter, for the eye; throws a Refusal where there is none.
export async function nameOf(id) {
  const row = await read("adapter", id);
  return row.name || "composition";
}
