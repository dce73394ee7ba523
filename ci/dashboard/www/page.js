// What all pages share: files, the address, elements made of text, numbers with their units.

const files = new Map();

/** The JSON file of a path below data/, fetched once. */
export function load(path) {
  if (!files.has(path)) {
    files.set(path, fetch(`data/${path}`).then((answer) => {
      if (!answer.ok) throw new Error(`${path}: the server answered ${answer.status}`);
      return answer.json();
    }));
  }
  return files.get(path);
}

/** Whether a commit was measured at a place; `at` files exist for those alone. */
export async function commitsOf(place) {
  const commits = await load(`commits/${place.id}.json`);
  commits.places ??= new Map(commits.hash.map((hash, at) => [hash, at]));
  return commits;
}

/** An element; text is text, never markup. Attributes that begin with `on` are listeners. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A table of rows of cells; a cell is text, an element, or {text, number, kind}. */
export function table(columns, rows) {
  const cell = (tag, content) => {
    if (content === null || typeof content !== "object" || content instanceof Node) return element(tag, {}, content ?? "");
    const kinds = [content.number ? "number" : "", content.kind ?? ""].join(" ").trim();
    return element(tag, { class: kinds || null, title: content.title }, content.text);
  };
  const head = element("tr", {}, ...columns.map((name) => cell("th", name)));
  const body = rows.map((row) => element("tr", {}, ...row.map((content) => cell("td", content))));
  return element("div", { class: "table" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

/** A cell of two lines. */
export const twoLines = (first, second) => element("div", {}, first, element("small", {}, second));

export const number = (text, kind) => ({ text, number: true, kind });

/** What the address asks for. */
export function asked(name) {
  return new URLSearchParams(location.search).get(name);
}

/** An address of one of our pages that asks for something. */
export function address(page, values) {
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== ""));
  return `${page}.html${query.size ? `?${query}` : ""}`;
}

/** Puts choices into the address, so that it can be passed on. */
function remember(values) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(values)) query.set(name, value);
  history.replaceState(null, "", `?${query}`);
}

/**
 * Controls that choose: draws when one of them changes.
 *
 * `fields` is called with what is chosen so far and gives, in order, {name, label, options: [[value, text]], value} for a
 * list, or {name, label, suggestions, value} for a text. What the address asks for is chosen if it is on the list.
 */
export function controls(fields, draw) {
  const form = document.getElementById("controls");
  const chosen = Object.fromEntries(new URLSearchParams(location.search));
  let latest = 0;
  form.addEventListener("submit", (event) => event.preventDefault());
  const update = async () => {
    const focus = document.activeElement?.name;
    form.replaceChildren();
    for (const field of fields(chosen)) {
      const values = field.options?.map(([value]) => String(value));
      if (values && !values.includes(chosen[field.name])) chosen[field.name] = String(field.value ?? values[0] ?? "");
      chosen[field.name] ??= field.value ?? "";
      form.append(control(field, chosen, update));
    }
    if (focus) form.elements[focus]?.focus();
    remember(Object.fromEntries([...form.elements].filter((one) => one.name).map((one) => [one.name, one.value])));
    const turn = (latest += 1);
    const content = await draw(chosen);
    if (turn === latest) show(content);
  };
  return update();
}

function control(field, chosen, update) {
  const changed = (event) => {
    chosen[field.name] = event.target.value.trim();
    guarded(update);
  };
  if (field.options) {
    const options = field.options.map(([value, text]) => element("option", { value, selected: String(value) === chosen[field.name] }, text));
    return element("label", {}, field.label, element("select", { name: field.name, onchange: changed }, ...options));
  }
  const list = element("datalist", { id: `${field.name}-list` }, ...field.suggestions.map(([value, text]) => element("option", { value }, text)));
  const input = element("input", { name: field.name, value: chosen[field.name], list: list.id, placeholder: field.placeholder, size: 16, onchange: changed });
  return element("label", {}, field.label, input, list);
}

let shown = [];

/** Shows elements, and then draws the charts that wait in them. */
export function show(elements) {
  for (const one of shown) one.dispatchEvent(new Event("gone"));
  shown = elements.flatMap((one) => [...one.querySelectorAll(".chart")]);
  document.getElementById("content").replaceChildren(...elements);
  for (const one of shown) one.dispatchEvent(new Event("shown"));
  document.body.dataset.ready = "yes";
}

/** Runs a page; what goes wrong is said on it. */
export async function guarded(main) {
  try {
    await main();
  } catch (error) {
    console.error(error);
    show([element("p", { class: "error" }, `This page cannot be shown: ${error.message}`)]);
  }
}

/** A panel for each place that is chosen, beside each other. */
export async function panels(places, content) {
  const made = await Promise.all(places.map(async (place) => {
    const parts = await content(place);
    const device = place.device && place.device !== place.label ? ` (${place.device})` : "";
    return element("section", { class: "panel" }, element("h2", {}, `${place.label}${device}`), ...parts);
  }));
  return element("div", { class: "panels" }, ...made);
}

export const machineField = (index) => ({
  name: "machine",
  label: "machine",
  options: [["", "all"], ...index.places.map((place) => [place.label, place.label])],
});

export const chosenPlaces = (index, chosen) => index.places.filter((place) => !chosen.machine || place.label === chosen.machine);

/** Options of a list from values, each once, in order. */
export function optionsOf(values, text = String) {
  const known = [...new Set(values)].filter((value) => value !== null && value !== undefined);
  known.sort((a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })));
  return known.map((value) => [value, text(value)]);
}

/** The position of the commit that a text means: a beginning of its hash, or nothing for the newest. */
export function position(commits, text) {
  if (!text || text === "newest") return commits.hash.length - 1;
  return commits.hash.findIndex((hash) => hash.startsWith(text));
}

/** The newest commits of all places, to choose from. */
export async function suggestions(places, count = 40) {
  const found = new Map();
  for (const place of places) {
    const commits = await commitsOf(place);
    for (let at = Math.max(0, commits.hash.length - count); at < commits.hash.length; at++) found.set(commits.hash[at], commits.date[at]);
  }
  const newest = [...found].sort((a, b) => b[1] - a[1]).slice(0, count);
  return newest.map(([hash, when]) => [short(hash), date(when)]);
}

/** Points of a file by their position: {value, low, high, cycles}, or {state, reason} where there is no value. */
export function pointsOf(columns) {
  const found = new Map();
  columns.at.forEach((at, i) => found.set(at, { value: columns.value[i], low: columns.low[i], high: columns.high[i], cycles: columns.cycles[i] ?? null }));
  for (const [state, list] of [["n/a", columns.na], ["failed", columns.failed]]) {
    for (const at of list) found.set(at, { state, reason: columns.reasons[columns.reason[at]] ?? "" });
  }
  return found;
}

export const short = (hash) => hash.slice(0, 10);
export const date = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10);
export const commitLink = (hash) => element("a", { href: address("commit", { hash }) }, element("code", {}, short(hash)));

/** How a value in a unit is written: by what it is multiplied, and what stands behind it. */
function scaleOf(value, unit) {
  if (unit === "s") return value >= 1 ? [1, " s"] : value >= 1e-3 ? [1e3, " ms"] : [1e6, " µs"];
  return { "%": [100, " %"], x: [1, "x"], ratio: [1, ""] }[unit] ?? [1, ` ${unit}`];
}

/** A value with its unit: seconds as s, ms or µs, a share as %, others as they are. */
export function withUnit(value, unit, digits = 4) {
  if (!Number.isFinite(value)) return "unknown";
  const [scale, name] = scaleOf(value, unit);
  return (value * scale).toLocaleString("en-US", { minimumSignificantDigits: digits, maximumSignificantDigits: digits }) + name;
}

/** A value beside an axis: without the zeros that say how exact it is. */
export function tick(value, unit) {
  const [scale, name] = scaleOf(value, unit);
  return (value * scale).toLocaleString("en-US", { maximumSignificantDigits: 4 }) + name;
}

/** A point and its interval, or what there is in its place and why. */
function said(point, unit) {
  if (!point) return ["not measured", ""];
  if (point.state) return [point.state, point.reason];
  const ends = point.low === null || point.high === null ? "interval unknown" : `${withUnit(point.low, unit)} to ${withUnit(point.high, unit)}`;
  return [withUnit(point.value, unit), ends];
}

/** A point in a line. */
export function pointText(point, unit) {
  const [first, second] = said(point, unit);
  if (!second) return first;
  return point.state ? `${first}: ${second}` : `${first} (${second})`;
}

/** A point in a cell of a table. */
export const pointCell = (point, unit) => number(twoLines(...said(point, unit)), point?.state === "failed" ? "failed" : point?.state ? "faint" : "");

/** A ratio as a change with its sign, such as +1.2 %. */
export function change(ratio, digits = 1) {
  const size = Math.abs((ratio - 1) * 100).toFixed(digits);
  return `${Number(size) === 0 ? "" : ratio > 1 ? "+" : "−"}${size} %`;
}

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

const CAUSES = { code: "the code", environment: "the machine", unknown: "cause unknown" };

/** Who moved it, and what became of it: an improvement that stands needs no word for that. */
export function fate({ cause, verdict, status }) {
  const words = verdict === "improved" ? { open: "", fixed: "undone" } : {};
  return [CAUSES[cause], words[status] ?? status].filter(Boolean).join(", ");
}

const SAID = 3; // sentences of an alert that are shown at once

/** The sentences of an alert; what stands between backticks is a name. */
export function sentences(alert) {
  const item = (text) => element("li", {}, ...text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part)));
  const first = element("ul", {}, ...alert.sentences.slice(0, SAID).map(item));
  const rest = alert.sentences.slice(SAID);
  if (!rest.length) return [first];
  return [first, element("details", {}, element("summary", {}, `${rest.length} more`), element("ul", {}, ...rest.map(item)))];
}
