// A quantity over s_kv and topk at a commit, or how it changed between two.

import { change, chosenPlaces, commitLink, commitsOf, controls, element, guarded, load, machineField, optionsOf, panels, pointsOf, pointText, position, suggestions, withUnit } from "./page.js";
import { axis, chart, tooltip } from "./chart.js";

const narrow = matchMedia("(max-width: 600px)");

guarded(async () => {
  const index = await load("index.json");
  const all = index.series.filter((one) => one.s_kv !== null);
  const nearby = await suggestions(index.places);
  const fields = (chosen) => {
    const places = new Set(chosenPlaces(index, chosen).map((place) => place.id));
    const here = all.filter((one) => places.has(one.place));
    const ops = optionsOf(here.map((one) => one.op));
    const op = here.some((one) => one.op === chosen.op) ? chosen.op : here.some((one) => one.op === "sparse_fwd") ? "sparse_fwd" : ops[0]?.[0];
    const ofOp = here.filter((one) => one.op === op);
    const quantities = ofOp[0]?.unit === "s" ? [["", "latency"], ["tflops", "TFLOPS"]] : [["", op]];
    return [
      machineField(index),
      { name: "op", label: "op", options: ops, value: op },
      { name: "implementation", label: op === "speedup" ? "against" : "implementation", options: optionsOf(ofOp.map((one) => one.implementation)), value: ofOp.some((one) => one.implementation === "flash_dsa") ? "flash_dsa" : undefined },
      { name: "quantity", label: "quantity", options: quantities },
      { name: "commit", label: "commit (beginning of its hash)", suggestions: nearby, value: "", placeholder: "newest" },
      { name: "base", label: "compared with (empty: nothing)", suggestions: nearby, value: "", placeholder: "nothing" },
    ];
  };
  await controls(fields, async (chosen) => [
    await panels(chosenPlaces(index, chosen), async (place) => {
      const commits = await commitsOf(place);
      const at = position(commits, chosen.commit);
      const base = chosen.base ? position(commits, chosen.base) : null;
      for (const [text, found] of [[chosen.commit, at], [chosen.base, base]]) {
        if (found === -1) return [element("p", { class: "faint" }, `${text}: no commit that was measured here begins so.`)];
      }
      const cells = await cellsOf(index, place, commits, at, chosen);
      const before = base === null ? null : await cellsOf(index, place, commits, base, chosen);
      const says = [!before && chosen.quantity === "tflops" ? "TFLOPS at " : "At ", commitLink(commits.hash[at]), ` ${commits.subject[at]}`];
      if (before) says.push(", compared with ", commitLink(commits.hash[base]), ` ${commits.subject[base]}`);
      if (!cells.length) return [element("p", { class: "faint" }, "Nothing was measured here.")];
      return [element("p", {}, ...says), chart((ink) => option(cells, before, ink), null, "tall")];
    }),
  ]);
});

/** The points of a commit by s_kv and variant: {x, y, point, unit}. */
async function cellsOf(index, place, commits, at, chosen) {
  const mine = index.series.filter((one) => one.place === place.id);
  const points = pointsOf(await load(`at/${place.id}/${commits.hash[at]}.json`));
  const fits = (one) => one.op === chosen.op && one.implementation === chosen.implementation && one.s_kv !== null;
  const cells = new Map();
  mine.forEach((one, number) => {
    if (!fits(one)) return;
    const point = points.get(number);
    const key = `${one.s_kv} ${one.variant}`;
    if (point || !cells.has(key)) cells.set(key, { x: one.s_kv, y: one.variant, ...converted(point, one, chosen.quantity) });
  });
  return [...cells.values()];
}

function converted(point, series, quantity) {
  if (quantity !== "tflops" || !point || point.state) return { point, unit: series.unit };
  if (!series.flops) return { point: { state: "n/a", reason: "FLOPs were not recorded" }, unit: "TFLOPS" };
  const rate = (seconds) => (seconds ? series.flops / seconds / 1e12 : null);
  return { point: { value: rate(point.value), low: rate(point.high), high: rate(point.low) }, unit: "TFLOPS" };
}

function option(cells, before, ink) {
  const xs = optionsOf(cells.map((cell) => cell.x)).map(([value]) => value);
  const ys = optionsOf(cells.map((cell) => cell.y)).map(([value]) => value);
  const other = new Map((before ?? []).map((cell) => [`${cell.x} ${cell.y}`, cell.point]));
  const known = [];
  const without = [];
  for (const cell of cells) {
    const base = other.get(`${cell.x} ${cell.y}`);
    const value = !cell.point?.value ? null : before === null ? cell.point.value : base?.value ? cell.point.value / base.value : null;
    const place = [xs.indexOf(cell.x), ys.indexOf(cell.y)];
    if (value === null) {
      const missing = stateOf(cell.point) ?? `base ${stateOf(base)}`;
      without.push({ value: [...place, 0], cell, base, missing, label: { color: missing.endsWith("failed") ? ink.bad : ink.faint } });
    } else {
      known.push({ value: [...place, before === null ? Math.log(value) : Math.log(value) * 100], shown: value, cell, base });
    }
  }
  const logs = known.map((one) => one.value[2]);
  const reach = Math.max(1, ...logs.map(Math.abs));
  const [least, most] = before === null ? [Math.min(...logs), Math.max(...logs)] : [-reach, reach];
  const faster = cells[0].unit === "s" || cells[0].unit === "ratio" ? ["#1b7837", "#f7f7f7", "#b2182b"] : ["#b2182b", "#f7f7f7", "#1b7837"];
  return {
    textStyle: { color: ink.ink },
    grid: { left: 74, right: 10, top: 14, bottom: 46 },
    xAxis: axis(ink, { type: "category", data: xs, name: "s_kv", nameLocation: "middle", nameGap: 28, splitArea: { show: false }, axisLabel: { hideOverlap: false, interval: 0, fontSize: 10 } }),
    yAxis: axis(ink, { type: "category", data: ys, axisLabel: { fontSize: 11, formatter: (name) => name.replace(", ", "\n") } }),
    visualMap: { show: false, seriesIndex: 0, min: least, max: most > least ? most : least + 1e-9, inRange: { color: before === null ? ["#fde7c3", "#e8a33d", "#9c4a00"] : faster } },
    tooltip: tooltip(ink, "item", (found) => told(found.data, before)),
    series: [
      { type: "heatmap", data: known, itemStyle: { borderColor: ink.background, borderWidth: 2 }, label: { show: true, fontSize: 11, ...labels(before, least, most) } },
      { type: "heatmap", data: without, itemStyle: { borderColor: ink.background, borderWidth: 2, color: ink.raised }, label: { show: true, fontSize: 11, formatter: (found) => found.data.missing } },
    ],
  };
}

/** Text that can be read on its cell: white where the scale is dark. */
function labels(before, least, most) {
  const dark = (value) => (before === null ? (value - least) / (most - least || 1) > 0.75 : Math.abs(value) > 0.75 * most);
  return {
    color: "#1f2328",
    lineHeight: 13,
    rich: { light: { color: "#ffffff", fontSize: 11, lineHeight: 13 } },
    formatter: ({ data }) => {
      const text = before === null ? withUnit(data.shown, data.cell.unit === "TFLOPS" ? "ratio" : data.cell.unit, 3) : change(data.shown);
      const lines = narrow.matches ? text.split(" ") : [text]; // the unit below, where cells are no wider than numbers
      return lines.map((line) => (dark(data.value[2]) ? `{light|${line}}` : line)).join("\n");
    },
  };
}

function stateOf(point) {
  return point ? point.state ?? null : "not measured";
}

function told(data, before) {
  const { cell, base } = data;
  const lines = [element("b", {}, `s_kv ${cell.x}, ${cell.y}`), element("div", {}, pointText(cell.point, cell.unit))];
  if (before !== null) {
    lines.push(element("div", {}, `before: ${pointText(base, cell.unit)}`));
    if (data.shown) lines.push(element("div", {}, `${change(data.shown, 2)}; ${apart(cell.point, base) ? "the intervals do not touch" : "the intervals overlap"}`));
  }
  return lines;
}

const apart = (a, b) => a.low > b.high || a.high < b.low;
