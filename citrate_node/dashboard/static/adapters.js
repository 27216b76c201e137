// The registry: adapters by pages, newest first, and one adapter with its versions and lineage.

import { rowCid } from "./cid.js";
import { ACCURACY_UNKNOWN, read, readMany } from "./contract.js";
import { lineageTree } from "./lineage.js";
import { bytes, count, el, facts, hash, percent, show, table } from "./ui.js";

const PAGE = 20;
const VERSIONS_PAGE = 50;
const OPEN = 2n ** 64n - 1n;

// The newest adapters: [{ id, row }, …], from place `skip` backwards.
export async function newest(skip, limit) {
  const total = Number(await read("adapterCount"));
  const end = Math.max(0, total - skip);
  const start = Math.max(0, end - limit);
  const ids = end > start ? [...(await read("adapters", start, end - start))].reverse() : [];
  const rows = await readMany(ids.map((id) => ["adapter", id]));
  return { total, entries: ids.map((id, i) => ({ id, row: rows[i] })) };
}

export async function adaptersPage(place, [pageText = "0"]) {
  const page = Math.max(0, parseInt(pageText, 10) || 0);
  const { total, entries } = await newest(page * PAGE, PAGE);
  const pages = Math.max(1, Math.ceil(total / PAGE));
  show(place,
    el("h1", {}, "Adapters"),
    el("p", { class: "note" }, `${count(total)} on this chain, newest first`),
    entries.length === 0 && el("p", {}, "None here."),
    entries.length > 0 && table("Adapters", ["Name", "Id", ["Rank"], ["Depth"], ["Versions"], "Mentorship", "Owner"],
      entries.map(({ id, row }) => [
        el("a", { href: `#adapter/${id}` }, row.name || "composition"),
        hash(id), String(row.rank), String(row.depth),
        row.versionCount ? String(row.versionCount) : "waits for a checkpoint",
        mentorship(row), hash(row.owner)])),
    el("nav", { class: "pages", "aria-label": "Pages of adapters" },
      page > 0 && el("a", { href: `#adapters/${page - 1}`, rel: "prev" }, "newer"),
      ` page ${page + 1} of ${pages} `,
      page + 1 < pages && el("a", { href: `#adapters/${page + 1}`, rel: "next" }, "older")));
}

export async function adapterPage(place, [id, pageText = "0"]) {
  const page = Math.max(0, parseInt(pageText, 10) || 0);
  const row = await read("adapter", id);
  const versions = Number(row.versionCount);
  const end = Math.max(0, versions - page * VERSIONS_PAGE);
  const start = Math.max(0, end - VERSIONS_PAGE);
  const history = end > start ? [...(await read("history", id, start, end - start))].reverse() : [];
  show(place,
    el("h1", {}, row.name || "Composition"),
    facts([
      ["Id", el("code", {}, id)],
      ["Base model", hash(row.baseModelId, 18)],
      ["Rank", String(row.rank)],
      ["Creator", el("code", {}, row.creator)],
      ["Owner", row.owner === row.creator ? "its creator" : el("code", {}, row.owner)],
      ["Mentorship", mentorship(row)],
    ]),
    el("p", {}, el("a", { class: "button", href: `#compose/${id}` }, "Compose it with another")),
    el("h2", {}, "Lineage"), await lineageTree(id),
    el("h2", {}, "Versions"),
    versions === 0 && el("p", { role: "status" }, "None yet: the nodes compute it, and a checkpoint certifies it."),
    versions > 0 && table("Versions, newest first",
      [["Version"], ["Accuracy"], ["Checkpoint"], ["Size"], "CID", "Creator", ["Block"]],
      history.map((version) => [
        String(version.version),
        version.accuracy === ACCURACY_UNKNOWN ? "not certified" : percent(version.accuracy),
        version.checkpoint ? String(version.checkpoint) : "–",
        bytes(version.sizeBytes), hash(rowCid(version), 20), hash(version.creator), count(version.blockNumber)])),
    versions > VERSIONS_PAGE && el("nav", { class: "pages", "aria-label": "Pages of versions" },
      page > 0 && el("a", { href: `#adapter/${id}/${page - 1}` }, "newer"), " ",
      start > 0 && el("a", { href: `#adapter/${id}/${page + 1}` }, "older")));
}

function mentorship(row) {
  if (row.mentorshipUntil === OPEN) return "open";
  return row.mentorshipUntil === 0n ? "–" : `closed after checkpoint ${row.mentorshipUntil}`;
}
