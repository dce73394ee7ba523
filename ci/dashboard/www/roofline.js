// How much of what the GPU can do at its measured clock the implementations reach.

import { chosenPlaces, commitLink, commitsOf, controls, element, guarded, load, machineField, number, optionsOf, panels, plural, pointsOf, position, suggestions, table, tick, twoLines, withUnit } from "./page.js";
import { axis, chart, colourOf, tooltip } from "./chart.js";

const NOTE = "A point's clock is its SM cycles over its seconds; the roof is drawn at the median of these clocks, a share is taken at the point's own. Bytes are the compulsory ones: inputs read once, outputs written once.";

guarded(async () => {
  const index = await load("index.json");
  const all = index.series.filter((one) => one.unit === "s" && one.s_kv !== null);
  const nearby = await suggestions(index.places);
  const fields = () => [
    machineField(index),
    { name: "op", label: "op", options: [["", "all"], ...optionsOf(all.map((one) => one.op))] },
    { name: "implementation", label: "implementation", options: [["", "all"], ...optionsOf(all.map((one) => one.implementation))] },
    { name: "commit", label: "commit (beginning of its hash)", suggestions: nearby, value: "", placeholder: "newest" },
  ];
  await controls(fields, async (chosen) => [
    element("p", { class: "faint" }, NOTE),
    await panels(chosenPlaces(index, chosen), async (place) => {
      const commits = await commitsOf(place);
      const at = position(commits, chosen.commit);
      if (at === -1) return [element("p", { class: "faint" }, `${chosen.commit}: no commit that was measured here begins so.`)];
      const head = element("p", {}, "At ", commitLink(commits.hash[at]), ` ${commits.subject[at]}`);
      const { found, without } = await pointsAt(index, place, commits.hash[at], chosen);
      return [head, ...roofline(place, found, without, all.map((one) => one.implementation))];
    }),
  ]);
});

async function pointsAt(index, place, hash, chosen) {
  const columns = pointsOf(await load(`at/${place.id}/${hash}.json`));
  const found = [];
  let without = 0;
  index.series.filter((one) => one.place === place.id).forEach((series, at) => {
    if (series.unit !== "s" || series.s_kv === null) return;
    if ((chosen.op && series.op !== chosen.op) || (chosen.implementation && series.implementation !== chosen.implementation)) return;
    const point = columns.get(at);
    if (!point?.value || !series.flops || !series.bytes) {
      without += 1;
      return;
    }
    found.push({ series, seconds: point.value, clock: point.cycles ? point.cycles / point.value : null, intensity: series.flops / series.bytes, rate: series.flops / point.value });
  });
  return { found, without };
}

function roofline(place, found, without, names) {
  const lacking = without ? [element("p", { class: "faint" }, `${plural(without, "point is", "points are")} not here: no value at this commit, or FLOPs that were not recorded.`)] : [];
  if (!found.length) return [element("p", { class: "faint" }, "No point with a value and recorded FLOPs."), ...lacking];
  const clocks = found.map((one) => one.clock).filter(Boolean).sort((a, b) => a - b);
  const clock = clocks[clocks.length >> 1];
  const peak = place.peak && clock ? { flops: place.peak.flops_per_cycle * clock, bytes: place.peak.bytes_per_second } : null;
  const roof = peak ? `Peak at ${withUnit(clock / 1e6, "MHz")}: ${withUnit(peak.flops / 1e12, "TFLOPS")}. Of ${place.peak.source}.` : "No peak is known for this device, or its clock was not measured: rates alone are shown.";
  return [element("p", {}, roof), chart((ink) => option(found, peak, names, ink)), ...lacking, shares(place, found)];
}

function shareOf(place, one) {
  if (!place.peak || !one.clock) return null;
  return one.rate / Math.min(place.peak.flops_per_cycle * one.clock, one.intensity * place.peak.bytes_per_second);
}

function shares(place, found) {
  const rows = found.map((one) => {
    const share = shareOf(place, one);
    const { op, s_kv, variant, implementation } = one.series;
    const said = share === null ? "unknown" : share > 1 ? `${withUnit(share, "%", 3)}, impossible` : withUnit(share, "%", 3);
    return [twoLines(`s_kv ${s_kv}, ${variant}`, `${op}, ${implementation}`), number(withUnit(one.rate / 1e12, "TFLOPS", 3)), number(one.clock ? withUnit(one.clock / 1e6, "MHz") : "unknown"), number(said, share > 1 ? "failed" : "")];
  });
  return table(["point", number("rate"), number("clock"), number("share of the roofline")], rows);
}

function option(found, peak, names, ink) {
  const implementations = [...new Set(found.map((one) => one.series.implementation))];
  const ends = [Math.min(...found.map((one) => one.intensity)) / 2, Math.max(...found.map((one) => one.intensity)) * 2];
  const shapes = { sparse_fwd: "circle", dense_fwd: "triangle" };
  const series = implementations.map((name) => ({
    type: "scatter",
    name,
    color: colourOf(name, names),
    symbolSize: 9,
    data: found.filter((one) => one.series.implementation === name).map((one) => ({ value: [one.intensity, one.rate / 1e12], symbol: shapes[one.series.op] ?? "rect", one })),
  }));
  if (peak) {
    const ridge = peak.flops / peak.bytes;
    const at = [ends[0], ...(ridge > ends[0] && ridge < ends[1] ? [ridge] : []), ends[1]];
    series.push({ type: "line", name: "roof", color: ink.faint, symbol: "none", data: at.map((x) => [x, Math.min(peak.flops, x * peak.bytes) / 1e12]) });
  }
  const told = ({ data }) => {
    const { series: { op, s_kv, variant, implementation }, rate, intensity, clock } = data.one;
    return [element("b", {}, `${implementation}: ${op}, s_kv ${s_kv}, ${variant}`), element("div", {}, withUnit(rate / 1e12, "TFLOPS")), element("div", {}, withUnit(intensity, "FLOP a byte")), element("div", {}, clock ? withUnit(clock / 1e6, "MHz") : "clock unknown")];
  };
  return {
    textStyle: { color: ink.ink },
    grid: { left: 56, right: 16, top: 58, bottom: 44 },
    legend: { top: 0, type: "scroll", textStyle: { color: ink.ink } },
    xAxis: axis(ink, { type: "log", logBase: 2, name: "FLOP a byte (circles sparse, triangles dense)", nameLocation: "middle", nameGap: 26, min: ends[0], max: ends[1], axisLabel: { formatter: (value) => tick(value, "ratio"), showMinLabel: false, showMaxLabel: false } }),
    yAxis: axis(ink, { type: "log", logBase: 2, name: "TFLOPS", axisLabel: { formatter: (value) => tick(value, "ratio") } }),
    tooltip: tooltip(ink, "item", (hit) => (hit.data.one ? told(hit) : [element("div", {}, "roof")])),
    series,
  };
}
