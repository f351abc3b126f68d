// Size against divergence, from positions that the gateway computed.

import { el, svg } from "./dom.js";

/** Make a figure of one base's variants. */
export function plotFigure(plot) {
  return el("figure", { class: "plot card" },
    el("figcaption", {}, el("h3", {}, `Variants of ${plot.base}`),
      el("p", { class: "note" }, `File size against ${plot.loss} from the original, measured on ${plot.text || "one text"}. Lower and further left is better; the line joins variants that no other beats.`)),
    draw(plot, "wide"), draw(plot, "narrow"));
}

function draw({ loss, axis, ...plots }, kind) {
  const plot = plots[kind];
  const { frame } = plot;
  const bottom = frame.height - frame.bottom;
  const right = frame.width - frame.right;
  return svg("svg", { class: kind, viewBox: `0 0 ${frame.width} ${frame.height}`, role: "group", "aria-label": `File size against ${loss}; the cards below have the same figures` },
    plot.loss_ticks.flatMap(({ at, text }) => [
      svg("line", { class: "grid", x1: frame.left, x2: right, y1: at, y2: at }),
      svg("text", { class: "axis", x: frame.left - 8, y: at + 4, "text-anchor": "end" }, text),
    ]),
    plot.size_ticks.flatMap(({ at, text }) => [
      svg("line", { class: "grid", x1: at, x2: at, y1: frame.top, y2: bottom }),
      svg("text", { class: "axis", x: at, y: bottom + 18, "text-anchor": "middle" }, text),
    ]),
    svg("text", { class: "axis", x: right, y: frame.height - 8, "text-anchor": "end" }, "file size →"),
    svg("text", { class: "axis", x: 11, y: frame.top + 4, "text-anchor": "end", transform: `rotate(-90 11 ${frame.top})` }, `${axis} (log), lower is better`),
    svg("path", { class: "front", d: plot.front_path }),
    plot.points.map((p) => svg("text", { class: "name", x: p.label_x, y: p.label_y, "text-anchor": p.anchor, "aria-hidden": "true" }, p.point.name)),
    plot.points.map((p) => svg("g", { class: "point", tabindex: "0", role: "img", "aria-label": `${p.point.name}: ${p.point.notes.join(", ")}` },
      svg("circle", { cx: p.x, cy: p.y, r: 16, fill: "transparent" }),
      svg("circle", { class: p.point.on_front ? "dot best" : "dot", cx: p.x, cy: p.y, r: p.point.on_front ? 7 : 5.5 }),
      tip(p))));
}

function tip(p) {
  return svg("g", { class: "tip", "aria-hidden": "true" },
    svg("rect", { x: p.tip_x, y: p.tip_y, width: p.tip_width, height: p.tip_height, rx: 6 }),
    svg("text", { class: "strong", x: p.tip_x + 10, y: p.tip_y + 18 }, p.point.name),
    p.point.notes.map((note, i) => svg("text", { x: p.tip_x + 10, y: p.tip_y + 33 + 15 * i }, note)));
}
