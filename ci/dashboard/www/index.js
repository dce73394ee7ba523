// What the newest commits are like on each machine, and what moved in their history.

import { address, change, chosenPlaces, commitLink, commitsOf, controls, date, element, fate, guarded, load, machineField, number, panels, plural, sentences, table } from "./page.js";

const SETTLED = ["fixed", "acknowledged"];
const LOST = ["failed", "missing"];
const SHOWN = 12; // alerts before the rest is folded away
const CARD = 12; // letters of a card's UUID

guarded(async () => {
  const [index, overview] = await Promise.all([load("index.json"), load("overview.json")]);
  const fields = () => [
    machineField(index),
    { name: "verdict", label: "what moved", options: [["", "all"], ["regressed", "slower"], ["improved", "faster"], ["lost", "without a value"]] },
    { name: "status", label: "status", options: [["", "all"], ["standing", "open or weak"], ["settled", "fixed or acknowledged"]] },
  ];
  await controls(fields, async (chosen) => [
    await panels(chosenPlaces(index, chosen), async (place) => {
      const state = overview.machines.find((one) => one.place === place.id);
      const commits = await commitsOf(place);
      const found = overview.alerts.filter((one) => one.place === place.id && wanted(one, chosen));
      return [...newest(state, place, commits), element("h3", {}, "What moved"), ...moved(found, state, index, place, commits), ...measuredIn(state.pieces)];
    }),
  ]);
});

function wanted(alert, chosen) {
  const kind = LOST.includes(alert.verdict) ? "lost" : alert.verdict;
  if (chosen.verdict && kind !== chosen.verdict) return false;
  return !chosen.status || SETTLED.includes(alert.status) === (chosen.status === "settled");
}

const badge = (word, kind = word) => element("span", { class: `badge ${kind}` }, word);

function newest(state, place, commits) {
  const { measured, na, failed, missing } = state.counts;
  const counts = `${plural(place.commits, "commit")}; at the newest ${measured} points measured, ${na} n/a, ${failed} failed, ${missing} missing`;
  const out = place.left_out ? ` ${place.left_out} series of benchmarks that never ran here are not shown.` : "";
  return [
    element("p", {}, badge(state.verdict), ` ${state.reason}`),
    element("p", {}, "Newest: ", commitLink(state.commit), ` ${commits.subject.at(-1)}`),
    element("p", { class: "faint" }, `${counts}.${out}`),
  ];
}

function moved(found, state, index, place, commits) {
  const short = state.alerts > state.alerts_shown ? [element("p", { class: "faint" }, `The newest ${state.alerts_shown} of ${state.alerts} alerts.`)] : [];
  if (!found.length) return [element("p", { class: "faint" }, state.alerts ? "Nothing that fits." : "Nothing.")];
  const told = found.map((one) => alert(one, index, place, commits));
  const rest = told.slice(SHOWN);
  const folded = rest.length ? [element("details", {}, element("summary", {}, `${rest.length} earlier`), ...rest)] : [];
  return [...short, ...told.slice(0, SHOWN), ...folded];
}

// A history is measured in pieces, and one commit, the bridge, in each of them: what differs there is the machine.
function measuredIn(pieces) {
  if (pieces.length < 2) return [];
  const { commit } = pieces[0];
  const cards = new Set(pieces.map((one) => one.card)).size;
  const said = `${plural(pieces.length, "piece")} on ${plural(cards, "card")}; each measured `;
  const rows = pieces.map((one, place) => [
    { text: date(one.date), kind: "whole" },
    { text: (one.card ?? "").slice(0, CARD), title: one.card },
    number(String(one.series)),
    number(place && one.ratio ? change(one.ratio[0], 2) : "", "whole"),
    number(place && one.ratio ? `${change(one.ratio[1])} to ${change(one.ratio[2])}` : "", "whole"),
  ]);
  return [
    element("h3", {}, "Measured in pieces"),
    element("p", {}, said, commitLink(commit), " again, and what it took is compared with the first."),
    table(["date", "card", number("series"), number("mean"), number("least to most")], rows),
  ];
}

const named = (series) => [series.op, series.s_kv && `s_kv ${series.s_kv}`, series.variant].filter(Boolean).join(", ");

function alert(one, index, place, commits) {
  const series = index.series.find((other) => other.id === one.series[0]);
  const where = { machine: place.label, op: series?.op, s_kv: series?.s_kv, variant: series?.variant };
  const near = one.commits.length > 1 ? ` or ${plural(one.commits.length - 1, "commit")} near it` : "";
  const settled = [element("span", { class: one.status }, fate(one))];
  if (one.fixed_by) settled.push(" by ", commitLink(one.fixed_by));
  if (one.acknowledged) settled.push(` by ${one.acknowledged.author}: ${one.acknowledged.reason} (${one.acknowledged.date})`);
  const linked = series ? [element("a", { href: address(series.unit === "x" ? "speedup" : "history", where) }, `History of ${named(series)}`)] : [];
  if (series && one.series.length > 1) linked.push(`, one of ${one.series.length} series`);
  return element(
    "div",
    { class: "alert", id: one.id },
    element("p", {}, badge(one.verdict, one.cause === "environment" ? "faint" : one.verdict), " since ", commitLink(one.commits[0]), near, ", measured before at ", commitLink(one.known_good), `: ${commits.subject[commits.places.get(one.commits[0])] ?? ""}`),
    ...sentences(one),
    element("p", { class: "faint" }, ...settled, ". ", ...linked),
  );
}
