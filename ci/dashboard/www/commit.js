// One commit: what moved with it, and every point measured at it beside the commit before.

import { address, asked, change, chosenPlaces, commitsOf, controls, date, element, guarded, load, machineField, number, optionsOf, panels, plural, pointCell, pointsOf, position, sentences, table, twoLines } from "./page.js";

guarded(async () => {
  const [index, overview] = await Promise.all([load("index.json"), load("overview.json")]);
  const fields = () => [
    { name: "hash", label: "commit (beginning of its hash)", suggestions: [], value: asked("hash") ?? "", placeholder: "newest" },
    machineField(index),
    { name: "op", label: "op", options: [["", "all"], ...optionsOf(index.series.map((one) => one.op))] },
    { name: "order", label: "order", options: [["", "by size"], ["change", "largest change first"]] },
  ];
  await controls(fields, async (chosen) => [
    await panels(chosenPlaces(index, chosen), async (place) => {
      const commits = await commitsOf(place);
      const at = position(commits, chosen.hash);
      if (at === -1) return [element("p", { class: "faint" }, `${chosen.hash}: no commit that was measured here begins so.`)];
      const alerts = overview.alerts.filter((one) => one.place === place.id && one.commits.includes(commits.hash[at]));
      return [...head(index, commits, at), ...links(place, commits, at), ...moved(alerts), ...(await points(index, place, commits, at, chosen))];
    }),
  ]);
});

function head(index, commits, at) {
  const hash = commits.hash[at];
  const name = element("code", {}, hash);
  const linked = index.commit_address ? element("a", { href: `${index.commit_address}${hash}` }, name) : name;
  return [element("p", {}, linked), element("p", {}, `${date(commits.date[at])} ${commits.subject[at] || "(its message is not known here)"}`)];
}

function links(place, commits, at) {
  const hash = commits.hash[at];
  const before = at ? commits.hash[at - 1] : "";
  const beside = [["Heat map", address("grid", { machine: place.label, commit: hash, base: before })], ["Roofline", address("roofline", { machine: place.label, commit: hash })]];
  for (const [name, other] of [["Commit before", before], ["Commit after", commits.hash[at + 1]]]) {
    if (other) beside.push([name, address("commit", { hash: other, machine: place.label })]);
  }
  return [element("p", {}, ...beside.flatMap(([name, href], i) => [i ? " · " : "", element("a", { href }, name)]))];
}

function moved(alerts) {
  if (!alerts.length) return [element("p", { class: "faint" }, "No change point at this commit.")];
  return alerts.map((one) => element("div", {}, element("p", {}, element("span", { class: `badge ${one.verdict}` }, one.verdict), one.commits.length > 1 ? ` possibly here, ${one.status}` : ` ${one.status}`), ...sentences(one)));
}

async function points(index, place, commits, at, { op, order }) {
  const now = pointsOf(await load(`at/${place.id}/${commits.hash[at]}.json`));
  const before = at ? pointsOf(await load(`at/${place.id}/${commits.hash[at - 1]}.json`)) : new Map();
  const found = [];
  const counts = new Map();
  index.series.filter((one) => one.place === place.id).forEach((series, number_) => {
    if (op && series.op !== op) return;
    const [point, base] = [now.get(number_), before.get(number_)];
    const state = point?.state ?? (point ? "measured" : "not measured");
    counts.set(state, (counts.get(state) ?? 0) + 1);
    const ratio = point?.value && base?.value ? point.value / base.value : null;
    const where = { machine: place.label, s_kv: series.s_kv, variant: series.variant };
    const page = series.unit === "x" ? address("speedup", where) : address("history", { ...where, op: series.op });
    const link = element("a", { href: page }, `${series.s_kv ? `s_kv ${series.s_kv}, ` : ""}${series.variant}`);
    const what = [series.op, series.implementation].filter(Boolean).join(series.unit === "x" ? " over " : ", ");
    const size = ratio === null ? -1 : Math.abs(Math.log(ratio));
    found.push({ size, row: [twoLines(link, what), pointCell(point, series.unit), number(ratio === null ? "" : change(ratio))] });
  });
  if (order === "change") found.sort((a, b) => b.size - a.size);
  const said = [...counts].map(([state, count]) => `${count} ${state}`).join(", ");
  return [
    element("p", { class: "faint" }, `${plural(found.length, "point")}: ${said}.`),
    table(["point", number("value and 99 % interval"), number("to the commit before")], found.map((one) => one.row)),
  ];
}
