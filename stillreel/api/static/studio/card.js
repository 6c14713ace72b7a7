// One job on the wall.

import { actionsOf } from "./actions.js";
import { call, patiently } from "./api.js";
import { fill, h, icon, say } from "./dom.js";
import { ago, moment } from "./format.js";
import { hasEnded, working } from "./links.js";
import { isActive } from "./live.js";
import { factsOf, SHARES, STAGES, STATUS, stageText, timeText, titleOf } from "./words.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");
/** The images of jobs without posters by job id, null where a job has none: cards are made anew, these are kept. */
const stills = new Map();
const onSight = new WeakMap();
const sight = new IntersectionObserver((entries) => {
  for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
    sight.unobserve(target);
    onSight.get(target)();
  }
});

/** A card; `update(job)` changes what has changed, and keeps the focus. */
export class Card {
  #context;
  #shown = "";
  #meter = null;
  #teaser = null;
  #when = null;

  constructor(job, context, picture = null) {
    this.#context = context;
    if (picture) stills.set(job.job_id, picture);
    const [play, rest] = [() => this.#play(), () => this.#rest()];
    this.element = h("li", { class: "card", "data-job": job.job_id, on: { mouseenter: play, focusin: play, mouseleave: rest, focusout: rest } });
    this.update(job);
  }

  update(job) {
    this.job = job;
    const delivery = job.delivery?.status ?? "";
    const shown = [job.status, job.round, delivery, Boolean(job.result_url), stills.get(job.job_id)].join();
    if (shown !== this.#shown) this.#rebuild(job);
    this.#shown = shown;
    this.#meter?.(job);
    say(this.#when, ago(job.ended_at ?? job.created_at));
  }

  #rebuild(job) {
    const action = this.element.contains(document.activeElement) && (document.activeElement.dataset.action ?? "link");
    this.#meter = this.#teaser = null;
    const title = titleOf(job);
    const link = h("a", { href: `#/jobs/${job.job_id}`, class: "card-link", "data-action": "link" }, title);
    const facts = factsOf(job).map((fact) => h("span", {}, fact));
    this.#when = h("time", { datetime: job.created_at, title: moment(job.created_at) });
    this.element.dataset.status = job.status;
    fill(
      this.element,
      h("div", { class: "media" }, this.#picture(job), this.#chip(job), job.status === "completed" ? null : this.#state(job)),
      h("div", { class: "card-text" }, h("h3", {}, link), h("p", { class: "facts" }, facts)),
      h("div", { class: "card-end" }, h("div", { class: "actions", role: "group", "aria-label": `Actions for ${title}` }, actionsOf(() => this.job, this.#context)), this.#when),
    );
    if (action) (this.element.querySelector(`[data-action="${action}"]`) ?? link).focus();
  }

  #chip(job) {
    if (job.status === "completed") return null;
    return h("span", { class: `chip-status ${job.status}` }, job.status === "processing" && h("i", { class: "pulse" }), STATUS[job.status]);
  }

  #picture(job) {
    if (job.poster_url) return this.#poster(job);
    const found = stills.get(job.job_id);
    if (found) return h("img", { class: "still", src: found, alt: "", on: { error: (event) => (stills.set(job.job_id, null), event.target.remove()) } });
    if (found === undefined) {
      onSight.set(this.element, () => this.#findStill(job.job_id));
      sight.observe(this.element);
    }
    return h("div", { class: "blank" }, icon("film"));
  }

  /** Ask for the image of a job without a poster. */
  async #findStill(id) {
    if (stills.has(id) || this.job.poster_url) return;
    const details = await patiently(() => call("GET", `studio/jobs/${id}`)).catch(() => null);
    if (details?.input_url) stills.set(id, details.input_url);
    else if (details && !isActive(this.job)) stills.set(id, null); // an image by address may still be copied
    if (!this.job.poster_url) this.update(this.job);
  }

  #poster(job) {
    const image = h("img", { class: "poster", src: job.poster_url, alt: "", loading: "lazy", decoding: "async", on: { error: () => image.replaceWith(h("div", { class: "blank" }, icon("film"))) } });
    const video = h("video", { class: "teaser", muted: true, loop: true, playsinline: true, preload: "none", tabindex: "-1", "aria-hidden": "true" });
    video.muted = true;
    this.#teaser = { video, job: null };
    return [image, video];
  }

  async #play() {
    const teaser = this.#teaser;
    if (!teaser || still.matches) return;
    const { video } = teaser;
    if (!teaser.job || hasEnded(teaser.job)) {
      teaser.job = await working(this.job, this.#context.tell).catch(() => this.job);
      video.src = teaser.job.teaser_url;
      if (!this.element.matches(":hover, :focus-within")) return;
    }
    video.play().then(() => video.classList.add("on"), () => {});
  }

  #rest() {
    this.#teaser?.video.pause();
    this.#teaser?.video.classList.remove("on");
  }

  #state(job) {
    if (!isActive(job)) return h("div", { class: "state" }, h("p", {}, job.error ?? ""));
    const doing = h("p", { class: "doing" });
    const left = h("p", { class: "left" });
    const bar = stageBar();
    this.#meter = (now) => {
      say(doing, stageText(now));
      say(left, timeText(now));
      bar.update(now);
    };
    return h("div", { class: "state" }, doing, left, bar.element);
  }
}

/** The five stages as parts of one bar; each as wide as its share of the way. */
export function stageBar() {
  const parts = STAGES.map((stage) => h("i", { class: `share-${stage}` }, h("b", {})));
  const element = h("div", { class: "bar", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 }, parts);
  return {
    element,
    update(job) {
      let before = 0;
      STAGES.forEach((stage, n) => {
        const part = Math.min(1, Math.max(0, (job.progress - before) / SHARES[stage]));
        parts[n].firstChild.style.width = `${part * 100}%`;
        before += SHARES[stage];
      });
      element.setAttribute("aria-valuenow", job.progress);
      element.setAttribute("aria-valuetext", `${job.progress} percent, ${stageText(job)}`);
    },
  };
}
