// What the compiler made of the kernels: registers, spills, shared memory and hash of the machine code by commit.

import { chosenPlaces, commitLink, commitsOf, controls, date, element, guarded, load, machineField, number, panels, plural, short, table, twoLines } from "./page.js";
import { axis, chart, colourOf, tooltip } from "./chart.js";

const FIGURES = { registers: "registers a thread", spill_bytes: "spills, bytes a thread", shared_bytes: "static shared memory, bytes a block" };
const LINES = 8; // kernels in a chart

guarded(async () => {
  const index = await load("index.json");
  const codes = new Map(await Promise.all(index.places.map(async (place) => [place.id, await load(`code/${place.id}.json`)])));
  const fields = (chosen) => {
    const names = chosenPlaces(index, chosen).flatMap((place) => Object.keys(codes.get(place.id).kernels));
    const targets = [...new Set(names.map(targetOf))].sort();
    return [
      machineField(index),
      { name: "target", label: "target", options: [["", "all"], ...targets.map((name) => [name, name])] },
      { name: "kernel", label: "kernels whose name holds", suggestions: [], value: "", placeholder: "all" },
      { name: "figure", label: "chart", options: Object.entries(FIGURES) },
    ];
  };
  await controls(fields, async (chosen) => [
    await panels(chosenPlaces(index, chosen), async (place) => {
      const commits = await commitsOf(place);
      const code = codes.get(place.id);
      if (!code.recorded.length) return [element("p", { class: "faint" }, `No fingerprint was recorded here: ${plural(place.commits, "commit")} measured.`)];
      const fits = ([name]) => (!chosen.target || name.startsWith(`${chosen.target}/`)) && name.toLowerCase().includes(chosen.kernel.toLowerCase());
      const kernels = Object.entries(code.kernels).filter(fits).sort(([a], [b]) => byTarget(a, b));
      const said = `Recorded at ${code.recorded.length} of ${place.commits} commits. "Since" is the first recorded commit with this code.`;
      return [element("p", { class: "faint" }, said), ...figures(commits, code, kernels, chosen.figure), overview(commits, code, kernels), ...changes(commits, code, kernels)];
    }),
  ]);
});

function figures(commits, code, kernels, figure) {
  const column = code.figures.indexOf(figure);
  const known = kernels.filter(([, steps]) => steps.some(([, row]) => row && row[column] !== null));
  if (!known.length) return [element("p", { class: "faint" }, `No ${FIGURES[figure]} recorded for these kernels.`)];
  const most = [...known].sort(([, a], [, b]) => b.length - a.length).slice(0, LINES);
  const note = known.length > LINES ? [element("p", { class: "faint" }, `The ${LINES} of ${known.length} kernels that changed most often.`)] : [];
  return [chart((ink) => option(commits, code, most, column, FIGURES[figure], ink)), ...note];
}

/** Rows at each recorded commit from the steps that were written. */
function rowsAt(steps, recorded) {
  let step = -1;
  return recorded.map((at) => {
    while (step + 1 < steps.length && steps[step + 1][0] <= at) step += 1;
    return step < 0 ? null : steps[step][1];
  });
}

function option(commits, code, kernels, column, label, ink) {
  const names = kernels.map(([name]) => name);
  const at = code.recorded;
  const series = kernels.map(([name, steps]) => ({
    type: "line",
    name,
    step: "end",
    color: colourOf(name, names),
    symbol: "circle",
    symbolSize: 6,
    data: rowsAt(steps, at).map((row) => row?.[column] ?? null),
  }));
  const told = (found) => {
    const place = at[found[0].dataIndex];
    const lines = found.map((one) => element("div", {}, element("span", { style: `color:${one.color}` }, "● "), `${one.seriesName}: ${one.value ?? "not there"}`));
    return [element("b", {}, `${short(commits.hash[place])}, ${date(commits.date[place])}`), element("div", {}, commits.subject[place]), ...lines];
  };
  return {
    textStyle: { color: ink.ink },
    grid: { left: 56, right: 40, top: 62, bottom: at.length > 1 ? 84 : 44 },
    legend: { top: 0, type: "scroll", textStyle: { color: ink.ink }, formatter: (name) => (name.length > 44 ? `${name.slice(0, 42)}…` : name) },
    xAxis: axis(ink, { type: "category", data: at.map((place) => `${short(commits.hash[place])}\n${date(commits.date[place])}`) }),
    yAxis: axis(ink, { type: "value", min: 0, name: label, nameTextStyle: { color: ink.faint, align: "left", padding: [0, 0, 0, -40] } }),
    dataZoom: at.length > 1 ? [{ type: "inside" }, { type: "slider", height: 22, bottom: 8, labelFormatter: "" }] : [],
    tooltip: tooltip(ink, "axis", told),
    series,
  };
}

const targetOf = (name) => name.split("/")[0];

/** Kernels of the newest architecture first, those of the CPU last. */
function byTarget(a, b) {
  return targetOf(b).localeCompare(targetOf(a), "en", { numeric: true }) || a.localeCompare(b);
}

const figureText = (value, name = "") => (value !== null ? String(value) : targetOf(name) === "cpu" ? "n/a" : "unknown");
const hashText = (hash) => element("code", { class: "hash", title: hash ?? "" }, hash ? hash.slice(0, 10) : "unknown");

function overview(commits, code, kernels) {
  const rows = kernels.map(([name, steps]) => {
    const [at, row] = steps.at(-1);
    const kernel = element("code", {}, name);
    if (row === null) return [kernel, { text: "removed", kind: "faint" }, "", "", "", commitLink(commits.hash[at])];
    return [kernel, ...row.slice(0, 3).map((value) => number(figureText(value, name))), hashText(row[3]), commitLink(commits.hash[at])];
  });
  return table(["kernel", number("registers"), number("spills, bytes"), number("static shared, bytes"), "machine code", "since"], rows);
}

function changes(commits, code, kernels) {
  const found = kernels.flatMap(([name, steps]) => steps.map(([at, row], number) => ({ name, at, row, before: steps[number - 1]?.[1] ?? null })));
  const later = found.filter((one) => one.at > code.recorded[0]);
  if (!later.length) return [element("p", { class: "faint" }, "No kernel changed between recorded commits.")];
  later.sort((a, b) => b.at - a.at);
  const rows = later.slice(0, 60).map(({ name, at, row, before }) => [twoLines(commitLink(commits.hash[at]), commits.subject[at]), element("code", {}, name), changeText(code, before, row)]);
  return [element("h3", {}, "Changes"), table(["commit", "kernel", "change"], rows)];
}

function changeText(code, before, row) {
  if (row === null) return "removed";
  if (before === null) return "added";
  const parts = code.figures.flatMap((name, i) => (before[i] === row[i] ? [] : [`${name} ${figureText(before[i])} → ${figureText(row[i])}`]));
  return parts.join(", ") || "other machine code, same figures";
}
