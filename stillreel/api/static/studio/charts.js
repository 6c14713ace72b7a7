// Small drawings of numbers: the stages of a job, and bars by day.

import { h, svg } from "./dom.js";
import { capital, seconds } from "./format.js";
import { STAGES } from "./words.js";

const narrow = matchMedia("(width < 560px)");
const ENDS = { done: "", found: "found from before", running: "runs", failed: "broke off", cancelled: "cancelled" };

/** When each stage of a job ran; `spans` are those of its details. */
export function timeline(spans, now = Date.now()) {
  const runs = spans.map((span) => ({ ...span, from: Date.parse(span.started_at), to: span.ended_at ? Date.parse(span.ended_at) : now }));
  const rows = STAGES.filter((stage) => runs.some((run) => run.stage === stage));
  const start = Math.min(...runs.map((run) => run.from));
  const whole = Math.max(1000, ...runs.map((run) => run.to - start));
  const [left, right, row, foot, width] = [64, 14, 30, 24, narrow.matches ? 360 : 640];
  const room = width - left - right;
  const x = (at) => left + ((at - start) / whole) * room;
  const height = rows.length * row + foot;
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart timeline", role: "img", "aria-label": `Stages: ${runs.map(toldOf).join("; ")}` });
  for (const tick of ticks(whole / 1000, narrow.matches ? 3 : 5, TIMES).filter((one) => one * 1000 <= whole)) {
    const at = x(start + tick * 1000);
    drawn.append(
      svg("line", { x1: at, x2: at, y1: 0, y2: height - foot, class: "grid" }),
      svg("text", { x: at, y: height - 6, class: "tick", "text-anchor": tick === 0 ? "start" : "middle" }, seconds(tick)),
    );
  }
  rows.forEach((stage, n) => {
    const y = n * row + 6;
    drawn.append(svg("text", { x: 0, y: y + 13, class: "row" }, capital(stage)));
    const own = runs.filter((run) => run.stage === stage);
    for (const run of own) {
      const wide = Math.max(3, x(run.to) - x(run.from));
      drawn.append(svg("rect", { x: x(run.from), y, width: wide, height: 18, rx: 3, class: `span ${run.state} ${stage}` }, svg("title", {}, toldOf(run))));
    }
    const last = own.at(-1);
    const spent = seconds((last.to - last.from) / 1000) + (ENDS[last.state] ? `, ${ENDS[last.state]}` : "");
    const end = x(last.to) + 6;
    const fits = end + spent.length * 6.6 < width;
    drawn.append(svg("text", { x: fits ? end : x(last.from) - 6, y: y + 13, class: "tick", "text-anchor": fits ? "start" : "end" }, spent));
  });
  return drawn;
}

function toldOf(run) {
  return [capital(run.stage), seconds((run.to - run.from) / 1000), ENDS[run.state]].filter(Boolean).join(", ");
}

/** Bars by day, each of parts that stand on each other: `series` is `[{name, look, values}]`. */
export function bars({ title, days, series, say, steps = ROUND, wide = false }) {
  const [width, height, foot, top, right] = [wide && !narrow.matches ? 1060 : 520, 190, 22, 10, 6];
  const sums = days.map((_, n) => series.reduce((sum, { values }) => sum + (values[n] ?? 0), 0));
  const scale = ticks(Math.max(...sums) || 1, 3, steps);
  const left = 14 + 6.3 * Math.max(...scale.map((tick) => say(tick).length));
  const room = { x: width - left - right, y: height - foot - top };
  const step = room.x / days.length;
  const thick = Math.max(2, Math.min(28, step * 0.72));
  const y = (value) => top + room.y - (value / scale.at(-1)) * room.y;
  const peak = sums.indexOf(Math.max(...sums));
  const told = `${title}: ${sums[peak] ? `most on ${days[peak]}, ${say(sums[peak])}` : "nothing yet"}`;
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart bars", role: "img", "aria-label": told });
  for (const tick of scale) {
    drawn.append(
      svg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "grid" }),
      svg("text", { x: left - 8, y: y(tick) + 4, class: "tick", "text-anchor": "end" }, say(tick)),
    );
  }
  const every = Math.ceil(days.length / (width > 600 ? 12 : 6));
  days.forEach((day, n) => {
    let at = 0;
    const middle = left + step * (n + 0.5);
    for (const { name, look, values } of series) {
      const value = values[n] ?? 0;
      if (!value) continue;
      const tall = Math.max(1.5, y(at) - y(at + value));
      drawn.append(svg("rect", { x: middle - thick / 2, y: y(at) - tall, width: thick, height: tall, rx: Math.min(2, thick / 3), class: `bar-part ${look}` }, svg("title", {}, `${day}: ${say(value)} ${name}`)));
      at += value;
    }
    const isLast = n === days.length - 1;
    if ((days.length - 1 - n) % every === 0) drawn.append(svg("text", { x: isLast ? width - right : middle, y: height - 5, class: "tick", "text-anchor": isLast ? "end" : "middle" }, day));
  });
  const legend = series.length > 1 && h("span", { class: "legend" }, series.map(({ name, look }) => h("span", {}, h("i", { class: look }), name)));
  return h("figure", { class: wide ? "wide-chart" : null }, h("figcaption", {}, title, legend), drawn);
}

const ROUND = [1, 2, 5, 10];
/** Seconds that a clock would choose. */
export const TIMES = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

/** From 0 in even steps until `most` is reached; small steps grow by tens where none fits. */
function ticks(most, wanted, steps) {
  const rough = most / wanted;
  const power = steps === ROUND ? 10 ** Math.floor(Math.log10(rough)) : 1;
  const step = (steps.find((one) => one * power >= rough * 0.999) ?? Math.ceil(rough / 86400) * 86400) * power;
  return Array.from({ length: Math.ceil((most / step) * 0.999) + 1 }, (_, n) => Number((n * step).toPrecision(6)));
}
