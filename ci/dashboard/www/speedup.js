// Speedups of sparse attention over commits, and the s_kv from which it is faster than dense.

import { chosenPlaces, commitLink, commitsOf, controls, date, element, guarded, load, machineField, optionsOf, panels, pointsOf, short, table } from "./page.js";
import { axis, chart, colourOf, tooltip } from "./chart.js";
import { tracks } from "./tracks.js";

const NOTE = "Times of sparse_fwd by flash_dsa against other ways to attend; above 1x it is faster. Both times of a ratio were taken in turns, in one process. The indexer that chooses the topk and the projection GEMMs are not counted.";
const LEGEND = "Bars reach from the largest measured s_kv at which dense is faster to the smallest from which on sparse is, both beyond their 99 % intervals; an arrow leads away from the measured s_kv where all of them are on one side. Nothing is extrapolated.";

guarded(async () => {
  const index = await load("index.json");
  const all = index.series.filter((one) => one.unit === "x");
  const fields = (chosen) => {
    const places = new Set(chosenPlaces(index, chosen).map((place) => place.id));
    const here = all.filter((one) => places.has(one.place));
    const sizes = optionsOf(here.map((one) => one.s_kv));
    const variants = optionsOf(here.map((one) => one.variant));
    return [
      machineField(index),
      { name: "s_kv", label: "s_kv", options: sizes, value: sizes.at(-1)?.[0] },
      { name: "variant", label: "topk", options: variants, value: variants.at(-1)?.[0] },
      { name: "against", label: "against", options: [["", "all"], ...optionsOf(here.map((one) => one.implementation))] },
    ];
  };
  await controls(fields, async (chosen) => [
    element("p", { class: "faint" }, NOTE),
    await panels(chosenPlaces(index, chosen), async (place) => {
      const commits = await commitsOf(place);
      const fits = (one) => one.place === place.id && one.variant === chosen.variant && one.s_kv === Number(chosen.s_kv);
      const series = all.filter((one) => fits(one) && (!chosen.against || one.implementation === chosen.against));
      const names = all.map((one) => one.implementation);
      const lines = await Promise.all(series.map(async (one) => {
        const content = await load(`series/${one.id}.json`);
        return { name: `over ${one.implementation}`, colour: colourOf(one.implementation, names), points: pointsOf(content), changes: content.changes };
      }));
      const families = (await load(`crossovers/${place.id}.json`)).filter((one) => `topk ${one.topk}` === chosen.variant);
      return [...tracks(commits, lines, "x", "speedup"), ...crossovers(commits, families)];
    }),
  ]);
});

function crossovers(commits, families) {
  const known = families.filter((one) => one.brackets.some(Boolean));
  if (!known.length) return [];
  const heads = known.map((one) => one.head_dims);
  const rows = known.map((one) => {
    const at = one.brackets.findLastIndex(Boolean);
    return [`dense ${one.head_dims}`, commitLink(commits.hash[at]), bracketText(one.brackets[at], one.s_kv)];
  });
  return [
    element("h3", {}, "Crossover: the s_kv from which sparse is faster than dense"),
    element("p", { class: "faint" }, LEGEND),
    chart((ink) => crossoverOption(commits, known, heads, ink)),
    table(["newest", "commit", "crossover s_kv"], rows),
  ];
}

function bracketText(bracket, measured) {
  if (!bracket) return "not measured";
  const [above, upto] = bracket;
  if (above === null && upto === null) return "neither is faster: the intervals hold 1";
  if (above === null && upto > measured[0]) return `at most ${upto}; at smaller ones neither is faster`;
  if (upto === null && above < measured.at(-1)) return `above ${above}; at larger ones neither is faster`;
  if (above === null) return `sparse is faster at every measured s_kv, from ${measured[0]} on`;
  if (upto === null) return `sparse is faster at no measured s_kv, up to ${measured.at(-1)}`;
  return `above ${above}, at most ${upto}`;
}

function crossoverOption(commits, families, heads, ink) {
  const sizes = [...new Set(families.flatMap((one) => one.s_kv))].sort((a, b) => a - b);
  const count = commits.hash.length;
  const zoom = { startValue: Math.max(0, count - 300), endValue: count - 1 };
  const told = (found) => {
    const at = Number(found[0].axisValue);
    const lines = families.map((one) => element("div", {}, `dense ${one.head_dims}: ${bracketText(one.brackets[at], one.s_kv)}`));
    return [element("b", {}, `${short(commits.hash[at])}, ${date(commits.date[at])}`), element("div", {}, commits.subject[at]), ...lines];
  };
  return {
    textStyle: { color: ink.ink },
    grid: { left: 62, right: 40, top: 58, bottom: count > 1 ? 84 : 44 },
    legend: { top: 0, type: "scroll", textStyle: { color: ink.ink }, data: families.map((one) => `dense ${one.head_dims}`) },
    xAxis: axis(ink, { type: "category", data: commits.hash.map((_, at) => at), axisLabel: { formatter: (at) => `${short(commits.hash[at])}\n${date(commits.date[at])}` } }),
    yAxis: axis(ink, { type: "log", logBase: 2, name: "s_kv", min: sizes[0] / 2, max: sizes.at(-1) * 2, axisLabel: { formatter: (value) => (sizes.includes(value) ? String(value) : "") } }),
    dataZoom: count > 1 ? [{ type: "inside", ...zoom }, { type: "slider", height: 22, bottom: 8, labelFormatter: "", ...zoom }] : [],
    tooltip: tooltip(ink, "axis", told),
    series: families.map((one, place) => ({
      type: "custom",
      name: `dense ${one.head_dims}`,
      color: colourOf(`dense ${one.head_dims}`, heads.map((name) => `dense ${name}`)),
      encode: { x: 0, y: [1, 2] },
      data: one.brackets.flatMap((bracket, at) => (bracket ? [[at, bracket[0] ?? one.s_kv[0], bracket[1] ?? one.s_kv.at(-1), beyond(bracket, one.s_kv)]] : [])),
      renderItem: (_, api) => bar(api, (place - (families.length - 1) / 2) * 0.25),
    })),
  };
}

/** -1 where sparse is faster at all that was measured, 1 where dense is, else 0. */
function beyond([above, upto], measured) {
  if (above === null && upto === measured[0]) return -1;
  return upto === null && above === measured.at(-1) ? 1 : 0;
}

/** A bar between two measured s_kv, or an arrow that points away from the only end that was measured. */
function bar(api, shift) {
  const width = Math.max(3, Math.min(14, api.size([1, 0])[0] * 0.2));
  const [middle, low] = api.coord([api.value(0), api.value(1)]);
  const high = api.coord([api.value(0), api.value(2)])[1];
  const x = middle + shift * Math.min(90, api.size([1, 0])[0]);
  const style = { fill: api.visual("color") };
  const way = api.value(3);
  if (way === 0) return { type: "rect", shape: { x: x - width / 2, y: high, width, height: low - high }, style };
  const end = way < 0 ? low : high;
  const points = [[x - width / 2, end], [x + width / 2, end], [x, end - way * 14]];
  return { type: "polygon", shape: { points }, style };
}
