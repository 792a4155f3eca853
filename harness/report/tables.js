// Sortable, searchable tables, a page at a time: thousands of rows stay fast. All text is set as text, never as HTML.
const PAGE = 50, PRINTED = 200;
const data = JSON.parse(document.getElementById("data").textContent);
window.report = data;

const element = (tag, about = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};
const said = (cell) => (Array.isArray(cell) ? cell[1] : cell);
const weight = (cell) => (Array.isArray(cell) ? cell[0] : cell === "" || cell === "–" ? null : cell);
const order = new Intl.Collator("en", { numeric: true }).compare;

function compareBy(column, sign) {
  return (a, b) => {
    const [x, y] = [weight(a[column]), weight(b[column])];
    if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last, both ways
    return sign * (typeof x === "number" && typeof y === "number" ? x - y : order(String(x), String(y)));
  };
}

function draw(place) {
  const table = data.tables[place.dataset.table];
  if (!table.rows.length) {
    place.append(element("p", { class: "empty" }, place.dataset.nothing));
    return;
  }
  if (table.common.length)
    place.append(element("p", { class: "empty" }, "In all rows: " + table.common.map(([name, value]) => `${name} ${value}`).join(", ") + "."));
  if (table.absent.length)
    place.append(element("p", { class: "empty" }, "Not there: " + table.absent.map(([why, names]) => `${names.join(", ")} (${why})`).join("; ") + "."));
  const state = { rows: table.rows, from: 0, size: PAGE, column: -1, sign: 1 };
  const details = table.details && new Map(table.rows.map((row, index) => [row, index]));
  const heads = table.columns.map((column, index) => {
    const button = element("button", { type: "button" }, column.name);
    button.addEventListener("click", () => {
      state.sign = state.column === index ? -state.sign : 1;
      state.column = index;
      state.from = 0;
      show();
    });
    return element("th", { scope: "col", "aria-sort": "none", class: column.number ? "number" : "" }, button);
  });
  const body = element("tbody");
  const head = element("tr", {}, ...(details ? [element("td")] : []), ...heads);
  const grid = element("table", { class: "data" }, element("thead", {}, head), body);
  const scroll = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": place.dataset.title }, grid);
  const search = element("input", { type: "search", placeholder: "Find in rows", "aria-label": `Find in ${place.dataset.title}` });
  const back = element("button", { type: "button" }, "Previous");
  const on = element("button", { type: "button" }, "Next");
  const count = element("span", { "aria-live": "polite" });
  const tools = element("div", { class: "tools" }, search, count, back, on);
  search.hidden = table.rows.length <= 8;
  back.addEventListener("click", () => move(-PAGE));
  on.addEventListener("click", () => move(PAGE));
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    state.rows = table.rows.filter((row) => {
      const text = row.map(said).join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    state.from = 0;
    show();
  });
  const move = (by) => {
    state.from = Math.max(0, state.from + by);
    show();
  };

  function show() {
    const sorted = state.column < 0 ? state.rows : [...state.rows].sort(compareBy(state.column, state.sign));
    const shown = sorted.slice(state.from, state.from + state.size);
    heads.forEach((head, index) =>
      head.setAttribute("aria-sort", index !== state.column ? "none" : state.sign > 0 ? "ascending" : "descending"));
    body.replaceChildren(...shown.map((row) => line(table, row, details)));
    const [total, all] = [sorted.length, table.rows.length];
    const of = total < all ? `${total.toLocaleString("en")} of ${all.toLocaleString("en")} rows` : `${all.toLocaleString("en")} rows`;
    const range = total > shown.length ? `${state.from + 1} to ${state.from + shown.length} of ` : "";
    count.textContent = range + of;
    back.hidden = on.hidden = total <= state.size;
    back.disabled = state.from === 0;
    on.disabled = state.from + state.size >= total;
  }

  place.append(tools, scroll);
  addEventListener("beforeprint", () => { state.size = PRINTED; show(); });
  addEventListener("afterprint", () => { state.size = PAGE; show(); });
  show();
}

function line(table, row, details) {
  const cells = row.map((cell, index) => {
    const why = Array.isArray(cell) && cell[2];
    const made = element("td", { class: (table.columns[index].number ? "number" : "") + (why ? " null" : "") }, said(cell));
    if (why || said(cell).length > 40) made.title = why || said(cell);
    return made;
  });
  const made = element("tr", {}, ...cells);
  if (!details) return made;
  const open = element("button", { type: "button", class: "open", "aria-expanded": "false", "aria-label": "Provenance" }, "+");
  open.addEventListener("click", () => {
    const isOpen = open.getAttribute("aria-expanded") === "true";
    open.setAttribute("aria-expanded", String(!isOpen));
    open.textContent = isOpen ? "+" : "−";
    if (isOpen) made.nextSibling.remove();
    else made.after(element("tr", {}, element("td", { class: "wide", colspan: row.length + 1 }, provenance(table.details, details.get(row)))));
  });
  made.prepend(element("td", {}, open));
  return made;
}

function provenance({ words, sections, rows }, index) {
  return element("div", { class: "sections" }, ...rows[index].map((section) => {
    const [title, ...flat] = sections[section];
    const list = element("dl", { class: "facts" });
    for (let at = 0; at < flat.length; at += 2) {
      const value = words[flat[at + 1]];
      const isNull = value === "null" || value.startsWith("null: ");
      list.append(element("dt", {}, words[flat[at]]), element("dd", isNull ? { class: "null" } : {}, value));
    }
    return element("div", {}, element("h4", {}, words[title]), list);
  }));
}

for (const place of document.querySelectorAll("[data-table]")) draw(place);
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details:not([open])")) Object.assign(folded, { open: true }).dataset.printed = "";
});
addEventListener("afterprint", () => {
  for (const folded of document.querySelectorAll("details[data-printed]")) folded.open = false;
});
