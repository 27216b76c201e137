// Builds what is seen. Every text goes in as a text node, so that a stranger's name stays a name: nothing in
// this page makes markup from text (the content security policy forbids it too).

// el("p", { class: "note", onclick: f }, "text", otherElement, …): null and false are left out.
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function show(container, ...children) {
  container.replaceChildren(...children.flat().filter(Boolean));
}

// A table with a caption for screen readers. columns: texts, or [text, "number"] for figures.
export function table(caption, columns, rows) {
  const numeric = columns.map((column) => Array.isArray(column));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", {},
      el("caption", { class: "hidden" }, caption),
      el("thead", {}, el("tr", {}, columns.map((column, i) =>
        el("th", { scope: "col", class: numeric[i] && "number" }, numeric[i] ? column[0] : column)))),
      el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell, i) =>
        el("td", { class: numeric[i] && "number" }, cell)))))));
}

// Names and values: [["name", value], …]
export function facts(entries) {
  return el("dl", {}, entries.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

// A hash or id: short to the eye, whole in the title, and copied when pressed.
export function hash(text, digits = 12) {
  const whole = String(text);
  const short = `${whole.slice(0, digits)}…`;
  const button = el("button", { type: "button", class: "hash", title: `${whole} (press to copy)`, "data-whole": whole }, short);
  button.addEventListener("click", async () => {
    const copied = await navigator.clipboard.writeText(whole).then(() => true, () => false);
    button.textContent = copied ? "copied" : whole; // no clipboard: then it can be marked
    if (copied) setTimeout(() => (button.textContent = short), 1200);
  });
  return button;
}

// The same inside of a link, which goes somewhere when pressed.
export function shortened(text, digits = 12) {
  return el("code", { title: String(text) }, `${String(text).slice(0, digits)}…`);
}

export function problem(text) {
  return el("p", { class: "problem", role: "alert" }, text);
}

export const percent = (ppm) =>
  ppm === null || ppm === undefined ? "not measured" : `${ppm < 0 ? "−" : "+"}${(Math.abs(Number(ppm)) / 10000).toFixed(2)} %`;
export const share = (ppm) => `${(Number(ppm) / 10000).toFixed(0)} %`;
export const count = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en-US"));

export function bytes(value) {
  const size = Number(value);
  if (!size) return "size not said";
  return size < 10240 ? `${count(size)} bytes` : size < 2 ** 21 ? `${(size / 1024).toFixed(0)} KiB` : `${(size / 2 ** 20).toFixed(1)} MiB`;
}

// An amount of the chain's coin, 18 decimals, to a millionth; rounded up where it is a bound.
export function coins(wei, up = false) {
  const millionths = up ? (wei + 10n ** 12n - 1n) / 10n ** 12n : wei / 10n ** 12n;
  const rest = (millionths % 1000000n).toString().padStart(6, "0").replace(/0+$/, "");
  return `${millionths / 1000000n}${rest ? "." + rest : ""} coins`;
}
