// A history as a chart: values with intervals over commits, change points, and a strip for points without a value.

import { address, change, commitLink, date, element, fate, number, pointCell, pointText, short, table, tick, twoLines } from "./page.js";
import { axis, chart, tooltip } from "./chart.js";

const WINDOW = 300; // commits shown at first
const LISTED = 30; // change points in words

/**
 * The parts of a panel.
 *
 * `lines` are {name, colour, points (by position), changes}; `unit` is that of their values. `label` names the quantity.
 */
export function tracks(commits, lines, unit, label) {
  if (!lines.some((line) => line.points.size)) return [element("p", { class: "faint" }, "Nothing was measured here.")];
  const clicked = (found) => {
    if (found.value) location.href = address("commit", { hash: commits.hash[found.value[0]] });
  };
  return [chart((ink) => option(commits, lines, unit, label, ink), clicked), newest(commits, lines, unit), ...moved(commits, lines), ...silent(lines)];
}

function option(commits, lines, unit, label, ink) {
  const values = lines.flatMap((line) => [...line.points.values()].map((point) => point.value)).filter((value) => value > 0);
  const least = values.reduce((a, b) => Math.min(a, b), Infinity);
  const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const strip = lines.some((line) => [...line.points.values()].some((point) => point.state));
  const count = commits.hash.length;
  const bottom = count > 1 ? 62 : 28;
  const across = { type: "category", data: commits.hash.map((_, at) => at), boundaryGap: true };
  const named = (at) => `${short(commits.hash[at])}\n${date(commits.date[at])}`;
  const x = axis(ink, { ...across, gridIndex: 0, axisLabel: { show: !strip, formatter: named } });
  const y = axis(ink, {
    type: most / least > 5 ? "log" : "value",
    logBase: unit === "s" ? 10 : 2,
    scale: true,
    name: label,
    nameTextStyle: { color: ink.faint, align: "left", padding: [0, 0, 0, -46] },
    axisLabel: { formatter: (value) => tick(value, unit === label ? "ratio" : unit) },
  });
  const sides = { left: 62, right: 40, outerBoundsMode: "none" }; // labels do not push one grid away from the other
  const grids = [{ ...sides, top: 56, bottom: bottom + (strip ? 66 : 18) }];
  const xs = [x];
  const ys = [y];
  if (strip) {
    grids.push({ ...sides, height: 34, bottom: bottom + 26 });
    xs.push(axis(ink, { ...across, gridIndex: 1, axisLabel: { formatter: named } }));
    ys.push(axis(ink, { type: "category", data: ["failed", "n/a"], gridIndex: 1, axisTick: { show: false } }));
  }
  const ranges = new Set(); // of change points that several lines share: shaded once
  const start = Math.max(0, count - WINDOW);
  const zoom = { xAxisIndex: xs.map((_, i) => i), startValue: start, endValue: count - 1 };
  return {
    textStyle: { color: ink.ink },
    grid: grids,
    xAxis: xs,
    yAxis: ys,
    legend: { top: 0, type: "scroll", textStyle: { color: ink.ink }, pageTextStyle: { color: ink.ink }, data: lines.map((line) => line.name) },
    dataZoom: count > 1 ? [{ type: "inside", ...zoom }, { type: "slider", height: 22, bottom: 8, labelFormatter: "", ...zoom }] : [],
    tooltip: tooltip(ink, "axis", (found) => told(commits, lines, unit, Number(found[0].axisValue))),
    series: [
      ...lines.flatMap((line) => [whiskers(line), drawn(line)]),
      ...lines.map((line) => steps(line, ranges, ink)),
      ...(strip ? lines.map((line) => without(line, ink)) : []),
    ],
  };
}

function drawn(line) {
  const data = [...line.points].filter(([, point]) => !point.state).sort(([a], [b]) => a - b).map(([at, point]) => [at, point.value]);
  return { type: "line", name: line.name, data, color: line.colour, symbol: "circle", symbolSize: 6, showSymbol: data.length < 500, lineStyle: { width: 1.5 } };
}

function whiskers(line) {
  const data = [...line.points].filter(([, point]) => point.low && point.high).map(([at, point]) => [at, point.low, point.high]);
  return {
    type: "custom",
    name: line.name,
    data,
    silent: true,
    clip: true,
    color: line.colour,
    encode: { x: 0, y: [1, 2] },
    renderItem(_, api) {
      const [x, low] = api.coord([api.value(0), api.value(1)]);
      const high = api.coord([api.value(0), api.value(2)])[1];
      const style = { stroke: line.colour, lineWidth: 1.5, opacity: 0.55, fill: null };
      const bar = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style });
      return { type: "group", children: [bar(x, low, x, high), bar(x - 3, low, x + 3, low), bar(x - 3, high, x + 3, high)] };
    },
  };
}

const kindOf = (step) => (step.cause === "environment" ? "faint" : step.verdict === "improved" ? "good" : "bad");

function steps(line, ranges, ink) {
  const data = line.changes
    .filter((step) => line.points.get(step.index)?.value)
    .map((step) => ({ value: [step.index, line.points.get(step.index).value], itemStyle: { color: ink[kindOf(step)], borderColor: ink.background, borderWidth: 1 } }));
  const areas = line.changes
    .filter((step) => step.latest > step.earliest && firstOf(ranges, `${step.earliest} ${step.latest} ${kindOf(step)}`))
    .map((step) => [{ xAxis: step.earliest, itemStyle: { color: ink[kindOf(step)], opacity: 0.12 } }, { xAxis: step.latest }]);
  return { type: "scatter", name: `${line.name} change points`, data, symbol: "diamond", symbolSize: 15, z: 5, markArea: { silent: true, data: areas } };
}

function firstOf(known, key) {
  const first = !known.has(key);
  known.add(key);
  return first;
}

function without(line, ink) {
  const data = [...line.points]
    .filter(([, point]) => point.state)
    .map(([at, point]) => ({ value: [at, point.state], itemStyle: { color: point.state === "failed" ? ink.bad : ink.faint } }));
  return { type: "scatter", name: line.name, xAxisIndex: 1, yAxisIndex: 1, data, symbol: "rect", symbolSize: [5, 10], color: line.colour };
}

function told(commits, lines, unit, at) {
  const parts = [element("b", {}, `${short(commits.hash[at])}, ${date(commits.date[at])}`), element("div", {}, commits.subject[at])];
  for (const line of lines) {
    const mark = element("span", { style: `color:${line.colour}` }, "● ");
    parts.push(element("div", {}, mark, `${line.name}: ${pointText(line.points.get(at), unit)}`));
    for (const step of line.changes.filter((one) => one.index === at)) parts.push(element("div", {}, `◆ ${stepText(step)}`));
  }
  return parts;
}

const lost = { failed: "fails since", missing: "nothing to measure since" };
const stepText = (step) => `${lost[step.verdict] ?? `time ${change(step.ratio)} (${change(step.low)} to ${change(step.high)})`}, ${fate(step)}`;

function newest(commits, lines, unit) {
  const rows = lines.map((line) => {
    const at = [...line.points.keys()].reduce((a, b) => Math.max(a, b), -1);
    return [line.name, at < 0 ? "" : commitLink(commits.hash[at]), pointCell(line.points.get(at), unit)];
  });
  return table(["newest", "commit", number("value and 99 % interval")], rows);
}

function moved(commits, lines) {
  const found = new Map(); // lines that moved by the same are said once
  for (const line of lines) {
    for (const step of line.changes) {
      const key = `${step.index} ${stepText(step)}`;
      found.set(key, { step, names: [...(found.get(key)?.names ?? []), line.name] });
    }
  }
  const rows = [...found.values()].sort((a, b) => b.step.index - a.step.index);
  if (!rows.length) return [element("p", { class: "faint" }, "No change point.")];
  const cells = rows.slice(0, LISTED).map(({ step, names }) => [
    twoLines(commitLink(commits.hash[step.index]), commits.subject[step.index]),
    names.join(", "),
    { text: stepText(step), kind: { bad: "regressed", good: "improved", faint: "faint" }[kindOf(step)] },
  ]);
  const more = rows.length > LISTED ? [element("p", { class: "faint" }, `${rows.length - LISTED} older ones are in the chart alone.`)] : [];
  return [element("h3", {}, "Change points"), table(["commit", "series", "change"], cells), ...more];
}

function silent(lines) {
  const counts = new Map();
  for (const line of lines) {
    for (const point of line.points.values()) {
      if (!point.state) continue;
      const text = `${line.name} ${point.state}${point.reason ? `: ${point.reason}` : ""}`;
      counts.set(text, (counts.get(text) ?? 0) + 1);
    }
  }
  if (!counts.size) return [];
  const items = [...counts].slice(0, 12).map(([text, count]) => element("li", {}, `${text} (${count} ${count === 1 ? "commit" : "commits"})`));
  return [element("h3", {}, "Points without a value"), element("ul", { class: "faint" }, ...items)];
}
