// What was made and what it took, by day.

import { call, patiently, Problem } from "./api.js";
import { bars, TIMES } from "./charts.js";
import { fill, h, icon } from "./dom.js";
import { count, day, seconds, usd } from "./format.js";

const PERIODS = [7, 30, 90];
const DEFAULT_DAYS = 30;
/** Jobs whose waiting is looked at, the newest first; usage itself has sums of work alone. */
const LOOKED_AT = 500;
const PAGE = 100;

const dollars = (value) => usd(value).replace("US$", "");

/** The page of the usage as an element. */
export function usagePage({ session }) {
  let period = DEFAULT_DAYS;
  let asked = 0;
  const body = h("div", {});
  const chips = PERIODS.map((days) => h("button", { type: "button", class: "chip", "aria-pressed": String(days === period), on: { click: () => choose(days) } }, `${days} days`));
  const element = h("article", { class: "usage" }, h("div", { class: "job-head" }, h("h1", { tabindex: "-1" }, "Usage"), h("div", { class: "chips", role: "group", "aria-label": "Period" }, chips)), body);

  function choose(days) {
    period = days;
    chips.forEach((chip, n) => chip.setAttribute("aria-pressed", String(PERIODS[n] === days)));
    load();
  }

  async function load() {
    const mine = ++asked;
    const days = lastDays(period);
    body.setAttribute("aria-busy", "true");
    try {
      const [usage, waits] = await patiently(() => Promise.all([call("GET", `api/v1/usage?group_by=day&from=${days[0]}&to=${days.at(-1)}`), readWaits(session.owner, days[0])]));
      if (mine === asked) fill(body, ...drawn(days, usage, waits));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      fill(body, h("div", { class: "message" }, icon("warn"), h("h2", {}, "The usage cannot be read now"), h("p", {}, error.message), h("button", { type: "button", class: "button", on: { click: load } }, "Try again")));
    }
    body.removeAttribute("aria-busy");
  }

  load();
  return { element, stop: () => {} };
}

function drawn(days, usage, waits) {
  const { total } = usage;
  const rows = days.map((name) => sum(usage.rows.filter((row) => row.day === name)));
  const column = (name) => rows.map((row) => row[name]);
  const labels = days.map(day);
  const each = total.videos ? total.usd / total.videos : null;
  const waitOf = days.map((name) => median(waits.jobs.filter((job) => job.day === name).map((job) => job.wait)));
  const priced = total.usd > 0;
  return [
    h(
      "dl",
      { class: "tiles" },
      tile("Videos", total.videos.toLocaleString("en"), `${count(total.failed, "failure")}, ${total.cancelled} cancelled`),
      tile("Spent", priced ? usd(total.usd) : "–", priced ? "" : "no price of a host is set"),
      tile("US$ per video", priced && each !== null ? usd(each) : "–", ""),
      tile("GPU time", seconds(total.gpu_seconds), total.videos ? `${seconds(total.gpu_seconds / total.videos)} per video` : ""),
      tile("Waiting", waits.jobs.length ? seconds(median(waits.jobs.map((job) => job.wait))) : "–", `median${waits.isPart ? ` of the newest ${waits.jobs.length}` : ""}, before the start`),
    ),
    h(
      "div",
      { class: "charts" },
      bars({ title: "Videos a day", wide: true, days: labels, say: (n) => n.toLocaleString("en"), series: [{ name: "completed", look: "good", values: column("videos") }, { name: "failed", look: "bad", values: column("failed") }, { name: "cancelled", look: "dim", values: column("cancelled") }] }),
      bars({ title: "US$ a day", days: labels, say: dollars, series: [{ name: "US$", look: "accent", values: column("usd") }] }),
      bars({ title: "US$ per video", days: labels, say: dollars, series: [{ name: "US$ per video", look: "accent", values: rows.map((row) => (row.videos ? row.usd / row.videos : 0)) }] }),
      bars({ title: "GPU time a day", days: labels, say: seconds, steps: TIMES, series: [{ name: "of the GPU", look: "cool", values: column("gpu_seconds") }] }),
      bars({ title: "Waiting before the start, median of the day", days: labels, say: seconds, steps: TIMES, series: [{ name: "waiting", look: "cool", values: waitOf.map((value) => value ?? 0) }] }),
    ),
    h("details", { class: "panel" }, h("summary", {}, "The numbers"), table(days, rows, waitOf)),
    h("p", { class: "hint" }, `Of ${usage.owner}. Days are in UTC; a job counts on the day of its end, deleted ones included.`),
  ];
}

function tile(name, value, more) {
  return h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, value, more && h("small", {}, more)));
}

function table(days, rows, waits) {
  const heads = ["Day", "Videos", "Failed", "Cancelled", "GPU time", "US$", "Waiting"];
  const lines = days.map((name, n) => [day(name), rows[n].videos, rows[n].failed, rows[n].cancelled, seconds(rows[n].gpu_seconds), usd(rows[n].usd), seconds(waits[n])]);
  const told = lines.filter((_, n) => rows[n].videos || rows[n].failed || rows[n].cancelled).reverse();
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "The numbers by day" }, h("table", {}, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, told.map(([head, ...cells]) => h("tr", {}, h("th", { scope: "row" }, head), cells.map((cell) => h("td", {}, String(cell))))))));
}

/** How long the newest jobs waited that have started. */
async function readWaits(owner, from) {
  const jobs = [];
  let cursor = "";
  do {
    const query = new URLSearchParams({ owner, created_after: `${from}T00:00:00Z`, limit: PAGE, ...(cursor && { cursor }) });
    const page = await call("GET", `api/v1/jobs?${query}`);
    jobs.push(...page.jobs);
    cursor = page.next_cursor;
  } while (cursor && jobs.length < LOOKED_AT);
  const started = jobs.filter((job) => job.started_at);
  return {
    isPart: Boolean(cursor),
    jobs: started.map((job) => ({ day: job.created_at.slice(0, 10), wait: (Date.parse(job.started_at) - Date.parse(job.created_at)) / 1000 })),
  };
}

function sum(rows) {
  const found = { videos: 0, failed: 0, cancelled: 0, gpu_seconds: 0, usd: 0 };
  for (const row of rows) for (const name of Object.keys(found)) found[name] += row[name];
  return found;
}

function median(values) {
  if (!values.length) return null;
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function lastDays(number) {
  const today = Date.now();
  return Array.from({ length: number }, (_, n) => new Date(today - (number - 1 - n) * 86_400_000).toISOString().slice(0, 10));
}
