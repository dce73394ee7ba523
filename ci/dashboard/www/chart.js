// Charts: one place that knows the drawing library, with colours that follow the page's.

import { element } from "./page.js";

// Okabe and Ito's palette, which colour-blind readers can tell apart; a light blue takes the place of its black.
const PALETTE = ["#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00", "#0072B2", "#B8A200", "#8a8f98"];
const dark = matchMedia("(prefers-color-scheme: dark)");

/** A colour that an implementation keeps on every page. */
export function colourOf(name, names) {
  const known = ["flash_dsa", "naive", "flash_mla", "sdpa"];
  const others = [...new Set(names)].filter((one) => !known.includes(one)).sort();
  return PALETTE[[...known, ...others].indexOf(name) % PALETTE.length];
}

/** The page's colours. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["background", "raised", "ink", "faint", "line", "bad", "good", "doubt"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/**
 * An element that draws a chart when it is shown, and again when the colours change.
 *
 * `option` makes the library's option from the colours; `clicked` gets what was clicked.
 */
export function chart(option, clicked = null, kind = "") {
  const node = element("div", { class: `chart ${kind}`.trim(), role: "img" });
  let drawn = null;
  const draw = () => {
    drawn?.dispose();
    drawn = globalThis.echarts.init(node, null, { renderer: "canvas" });
    drawn.setOption({ animation: false, ...option(colours()) });
    if (clicked) drawn.on("click", clicked);
    node.drawn = drawn;
  };
  const resized = new ResizeObserver(() => drawn?.resize());
  node.addEventListener("shown", () => {
    draw();
    resized.observe(node);
    dark.addEventListener("change", draw);
  });
  node.addEventListener("gone", () => {
    resized.disconnect();
    dark.removeEventListener("change", draw);
    drawn?.dispose();
  });
  return node;
}

/** A box beside the pointer; `content` gives elements for what the library hands over. */
export function tooltip(ink, trigger, content) {
  return {
    trigger,
    confine: true,
    backgroundColor: ink.raised,
    borderColor: ink.line,
    textStyle: { color: ink.ink },
    formatter: (found) => element("div", { class: "tip" }, ...content(found)),
  };
}

/** Looks of an axis. */
export function axis(ink, more) {
  return {
    nameTextStyle: { color: ink.faint },
    axisLabel: { color: ink.faint, hideOverlap: true, lineHeight: 14, ...more.axisLabel },
    axisLine: { lineStyle: { color: ink.line } },
    splitLine: { lineStyle: { color: ink.line, opacity: 0.5 } },
    ...Object.fromEntries(Object.entries(more).filter(([name]) => name !== "axisLabel")),
  };
}
