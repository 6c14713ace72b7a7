// The wall of jobs: newest first, live, filtered, page by page.

import { call, Problem } from "./api.js";
import { Card } from "./card.js";
import { fill, h, icon } from "./dom.js";
import { isActive, Live } from "./live.js";
import { titleOf } from "./words.js";

const PAGE = 24;
const REFRESH_MILLISECONDS = 5000;
const FILTERS = {
  All: [],
  Active: ["queued", "processing"],
  Done: ["completed"],
  Ended: ["failed", "cancelled", "expired"],
};

/** The wall as an element; `add(job, picture)` shows a new one at once. */
export function wall({ session, toast, announce }) {
  const cards = new Map();
  let filter = "All";
  let cursor = null;
  let text = "";
  let asked = 0;
  let timer = 0;
  const context = { session, toast, tell, gone };
  const live = new Live(tell, () => element.isConnected);

  const list = h("ul", { class: "cards", "aria-label": "Videos" });
  const message = h("div", { class: "message" });
  const more = h("button", { type: "button", class: "button", hidden: true, on: { click: () => load({ next: true }) } }, "Show more");
  const search = h("input", { type: "search", placeholder: "Search prompts", "aria-label": "Search prompts", on: { input: debounced(() => { text = search.value.trim(); load({}); }) } });
  const filters = Object.keys(FILTERS).map((name) =>
    h("button", { type: "button", class: "chip", "aria-pressed": String(name === filter), on: { click: () => choose(name) } }, name),
  );
  const element = h(
    "section",
    { class: "wall", "aria-labelledby": "wall-title" },
    h("div", { class: "wall-head" }, h("h2", { id: "wall-title" }, "Videos"), h("div", { class: "chips", role: "group", "aria-label": "Show" }, filters), h("div", { class: "search" }, icon("search"), search)),
    list,
    message,
    h("div", { class: "center" }, more),
  );

  function choose(name) {
    filter = name;
    filters.forEach((one) => one.setAttribute("aria-pressed", String(one.textContent === name)));
    load({});
  }

  /** Read the first page, or the next one, or the first one again below what is shown. */
  async function load({ next = false, again = false }) {
    const mine = again ? asked : ++asked;
    if (!next && !again) {
      cards.clear();
      fill(message);
      fill(list, Array.from({ length: 6 }, () => h("li", { class: "card skeleton", "aria-hidden": "true" }, h("div", { class: "media" }), h("div", { class: "card-text" }))));
      list.setAttribute("aria-busy", "true");
    }
    const query = new URLSearchParams({ limit: PAGE });
    for (const status of FILTERS[filter]) query.append("status", status);
    if (text) query.set("q", text);
    if (next) query.set("cursor", cursor);
    try {
      const page = await call("GET", `api/v1/jobs?${query}`);
      if (mine !== asked) return;
      list.removeAttribute("aria-busy");
      if (!next && !again) fill(list);
      take(page.jobs, { atTop: !next });
      if (!again || cards.size <= PAGE) cursor = page.next_cursor;
      more.hidden = !cursor;
      fill(message, cards.size ? null : empty());
      message.classList.remove("small");
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (mine !== asked) return;
      list.removeAttribute("aria-busy");
      if (!cards.size) fill(list);
      fill(message, failed(error));
      message.classList.toggle("small", cards.size > 0);
    }
    clearTimeout(timer);
    timer = setTimeout(refresh, REFRESH_MILLISECONDS);
  }

  function refresh() {
    clearTimeout(timer);
    if (document.hidden || !element.isConnected) timer = setTimeout(refresh, REFRESH_MILLISECONDS);
    else load({ again: true });
  }

  /** Go on, or rest while another page is shown. */
  function wake() {
    watch();
    if (timer) refresh();
  }

  function take(jobs, { atTop }) {
    const known = (job) => cards.has(job.job_id);
    for (const job of jobs.filter(known)) show(job);
    const made = jobs.filter((job) => !known(job)).map((job) => {
      const card = new Card(job, context);
      cards.set(job.job_id, card);
      return card.element;
    });
    if (atTop) list.prepend(...made);
    else list.append(...made);
    watch();
  }

  function show(job) {
    const card = cards.get(job.job_id);
    const was = card.job.status;
    card.update(job);
    if (was !== job.status && !isActive(job)) announce(`${titleOf(job)}: ${job.status}`);
  }

  function tell(job) {
    if (cards.has(job.job_id)) show(job);
    watch();
  }

  function gone(job) {
    cards.get(job.job_id)?.element.remove();
    cards.delete(job.job_id);
    if (!cards.size) load({});
  }

  function watch() {
    live.watch([...cards.values()].map((card) => card.job));
  }

  async function add(queued, picture) {
    const job = await call("GET", `api/v1/jobs/${queued.job_id}`);
    if (cards.has(job.job_id)) return tell(job);
    if (filter === "Done" || filter === "Ended" || text) {
      text = search.value = "";
      return choose("All");
    }
    const card = new Card(job, context, picture);
    cards.set(job.job_id, card);
    fill(message);
    list.prepend(card.element);
    watch();
  }

  function empty() {
    if (text || filter !== "All") return [h("h3", {}, "Nothing here"), h("p", {}, text ? `No prompt has “${text}” in it.` : "No video is in this state now.")];
    return [icon("film"), h("h3", {}, "Your videos appear here"), h("p", {}, "Drop an image, say what should happen, and press Make video. It can be followed here stage by stage.")];
  }

  function failed(error) {
    return [icon("warn"), h("h3", {}, "The videos cannot be read now"), h("p", {}, error.message), h("button", { type: "button", class: "button", on: { click: () => load({}) } }, "Try again")];
  }

  load({});
  return { element, add, tell, gone, wake };
}

function debounced(run) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(run, 300);
  };
}
