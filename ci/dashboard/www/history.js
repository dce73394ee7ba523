// Latency and TFLOPS over commits, by op, s_kv, topk and implementation.

import { chosenPlaces, commitsOf, controls, guarded, load, machineField, optionsOf, panels, pointsOf } from "./page.js";
import { colourOf } from "./chart.js";
import { tracks } from "./tracks.js";

const QUANTITIES = {
  latency: { text: "latency", unit: "s" },
  tflops: { text: "TFLOPS", unit: "TFLOPS" },
  share: { text: "share of the GPU's peak at the measured clock", unit: "%" },
};

guarded(async () => {
  const index = await load("index.json");
  const all = index.series.filter((one) => one.unit !== "x");
  const machines = (chosen) => new Set(chosenPlaces(index, chosen).map((place) => place.id));
  const fields = (chosen) => {
    const here = all.filter((one) => machines(chosen).has(one.place));
    const found = [machineField(index), { name: "op", label: "op", options: optionsOf(here.map((one) => one.op)), value: here.some((one) => one.op === "sparse_fwd") ? "sparse_fwd" : undefined }];
    const op = here.some((one) => one.op === chosen.op) ? chosen.op : found[1].value ?? here[0]?.op;
    const ofOp = here.filter((one) => one.op === op);
    if (ofOp.some((one) => one.s_kv)) found.push({ name: "s_kv", label: "s_kv", options: optionsOf(ofOp.map((one) => one.s_kv)), value: Math.max(...ofOp.map((one) => one.s_kv)) });
    const variants = optionsOf(ofOp.map((one) => one.variant));
    found.push({ name: "variant", label: "topk or head sizes", options: variants, value: variants.at(-1)?.[0] });
    found.push({ name: "implementation", label: "implementation", options: [["", "all"], ...optionsOf(ofOp.map((one) => one.implementation).filter(Boolean))] });
    const units = ofOp[0]?.unit === "ratio" ? [["ratio", "sparse seconds over dense seconds"]] : Object.entries(QUANTITIES).map(([name, one]) => [name, one.text]);
    return [...found, { name: "quantity", label: "quantity", options: units }];
  };
  await controls(fields, async (chosen) => [
    await panels(chosenPlaces(index, chosen), async (place) => {
      const fits = (one) => one.place === place.id && one.op === chosen.op && one.variant === chosen.variant && (one.s_kv === null || one.s_kv === Number(chosen.s_kv));
      const series = all.filter((one) => fits(one) && (!chosen.implementation || one.implementation === chosen.implementation));
      const commits = await commitsOf(place);
      const lines = await Promise.all(series.map((one) => lineOf(one, series, all, place, chosen.quantity)));
      const { unit, text } = QUANTITIES[chosen.quantity] ?? { unit: "ratio", text: "sparse over dense" };
      return tracks(commits, lines, unit, text);
    }),
  ]);
});

async function lineOf(one, beside, all, place, quantity) {
  const content = await load(`series/${one.id}.json`);
  const versions = new Set(beside.map((other) => other.version)).size;
  const name = `${one.implementation || one.benchmark}${versions > 1 ? ` (${one.version})` : ""}`;
  const points = new Map([...pointsOf(content)].map(([at, point]) => [at, converted(point, one, place.peak, quantity)]));
  return { name, colour: colourOf(one.implementation, all.map((other) => other.implementation)), points, changes: content.changes };
}

/** A point in another quantity: what is better when large has its interval's ends the other way round. */
function converted(point, series, peak, quantity) {
  if (point.state || quantity === "latency" || quantity === "ratio") return point;
  const needs = quantity === "tflops" ? series.flops : series.flops && peak && point.cycles;
  if (!needs) return { state: "n/a", reason: quantity === "tflops" ? "FLOPs were not recorded" : "no peak or no clock is known" };
  const most = quantity === "tflops" ? 1e12 : (peak.flops_per_cycle * point.cycles) / point.value;
  const rate = (seconds) => (seconds ? series.flops / seconds / most : null);
  return { value: rate(point.value), low: rate(point.high), high: rate(point.low), cycles: point.cycles };
}
