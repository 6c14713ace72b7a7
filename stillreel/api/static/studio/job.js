// One job's page: its video, what it was made from, what it took, and what became of its news.

import { actionsOf } from "./actions.js";
import { call, patiently, Problem } from "./api.js";
import { stageBar } from "./card.js";
import { timeline } from "./charts.js";
import { fill, h, icon, say } from "./dom.js";
import { bytes, capital, count, moment, seconds, usd } from "./format.js";
import { renew } from "./links.js";
import { isActive, Live } from "./live.js";
import { STATUS, stageText, timeText, titleOf } from "./words.js";

const AGAIN_MILLISECONDS = 3000;

/** The page of a job as `{element, stop}`; `use(job, parameters)` takes its settings to the form. */
export function jobPage(jobId, { session, toast, announce, use, changed, gone }) {
  let job = null;
  let details = null;
  let shown = "";
  let timer = 0;
  let stopped = false;
  let meter = null;
  const live = new Live(update);
  const title = h("h1", { tabindex: "-1" }, "Video");
  const stage = h("div", { class: "stage" });
  const actions = h("div", { class: "actions" });
  const stages = h("div", {});
  const facts = h("div", { class: "panels" });
  const element = h(
    "article",
    { class: "job" },
    h("a", { href: "#/", class: "back" }, icon("back"), "All videos"),
    h("div", { class: "job-head" }, title, actions),
    h("div", { class: "job-body" }, h("div", {}, stage, stages), facts),
  );

  async function load() {
    try {
      job = await patiently(() => call("GET", `api/v1/jobs/${jobId}`));
      await patiently(readDetails);
      update(job);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      fill(element, h("a", { href: "#/", class: "back" }, icon("back"), "All videos"), h("div", { class: "message" }, icon("warn"), h("h1", { tabindex: "-1" }, error.status === 410 ? "This video was deleted" : "This video cannot be shown"), h("p", {}, error.message)));
    }
  }

  async function readDetails() {
    details = await call("GET", `studio/jobs/${jobId}`);
  }

  /** Read the job too: its stream may not come through. */
  async function refresh() {
    const before = job;
    try {
      if (document.hidden) return;
      const read = await call("GET", `api/v1/jobs/${jobId}`);
      await readDetails();
      await update(job === before ? read : job); // what the stream told meanwhile is newer
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
    } finally {
      timer = 0;
      refreshLater();
    }
  }

  function refreshLater() {
    if (!stopped && isActive(job)) timer ||= setTimeout(refresh, AGAIN_MILLISECONDS);
  }

  async function update(found) {
    const was = job;
    job = found;
    if (was !== found) changed(found);
    if (was.status !== found.status || was.round !== found.round) {
      announce(`${titleOf(job)}: ${STATUS[job.status]}`);
      await patiently(readDetails).catch(() => {});
    }
    if (stopped) return;
    render();
    live.watch([job]);
    refreshLater();
  }

  function render() {
    say(title, titleOf(job));
    document.title = `${titleOf(job).slice(0, 50)} · stillreel`;
    const now = [job.status, job.round, job.delivery?.status, Boolean(job.result_url), details.input_url?.split("?")[0]].join();
    if (now !== shown) {
      const focused = actions.contains(document.activeElement) && document.activeElement.dataset.action;
      fill(actions, actionsOf(() => job, { session, tell: update, gone: left, toast, text: true }), again(), run());
      if (focused) (actions.querySelector(`[data-action="${focused}"]`) ?? title).focus();
      meter = null;
      fill(stage, screen());
    }
    shown = now;
    meter?.(job);
    fill(stages, details.timeline.length ? panel("Stages", timeline(details.timeline), waited()) : null);
    fill(facts, outcome(), parameters(), costs(), delivery(), receipt(), files());
  }

  function left(deleted) {
    gone(deleted);
    location.hash = "#/";
  }

  function again() {
    return session.scopes.includes("generate") && h("button", { type: "button", class: "button", on: { click: () => use(job, details.parameters) } }, icon("copy"), "Use these settings");
  }

  function run() {
    return session.prefect_ui_url && h("a", { class: "button", href: `${session.prefect_ui_url}/v2/runs/flow-run/${job.run_id}`, target: "_blank", rel: "noopener" }, icon("open"), "Prefect run");
  }

  function screen() {
    if (job.result_url) {
      let played = job;
      const player = h("video", { class: "player", src: job.result_url, poster: job.poster_url, controls: true, loop: true, playsinline: true, preload: "metadata", "aria-label": titleOf(job) });
      player.addEventListener("error", async () => {
        played = await renew(player, played, () => job, update).catch(() => played);
      });
      return player;
    }
    const still = details.input_url && h("img", { class: "still", src: details.input_url, alt: "The image that the video starts from", on: { error: (event) => event.target.remove() } });
    const chip = h("span", { class: `chip-status ${job.status}` }, job.status === "processing" && h("i", { class: "pulse" }), STATUS[job.status]);
    if (!isActive(job)) return [still ?? h("div", { class: "blank" }, icon("film")), chip, h("div", { class: "state" }, h("p", {}, job.status === "completed" ? "The video has expired." : job.error))];
    const bar = stageBar();
    const doing = h("p", { class: "doing" });
    const rest = h("p", { class: "left" });
    meter = (one) => {
      say(doing, stageText(one));
      say(rest, timeText(one));
      bar.update(one);
    };
    return [still ?? h("div", { class: "blank" }, icon("film")), chip, h("div", { class: "state" }, doing, rest, bar.element)];
  }

  function waited() {
    const wait = job.started_at ? (Date.parse(job.started_at) - Date.parse(job.created_at)) / 1000 : 0;
    const parts = [wait >= 0.05 && `waited ${seconds(wait)} before`, job.attempt > 1 && `attempt ${job.attempt} of 3`, job.round > 1 && `round ${job.round}`];
    return capital(parts.filter(Boolean).join(" · "));
  }

  function outcome() {
    if (!["failed", "cancelled", "expired"].includes(job.status)) return null;
    return panel(STATUS[job.status], rows([["What happened", job.error], ["Code", job.error_code], ["When", moment(job.ended_at)]]));
  }

  function parameters() {
    const given = details.parameters;
    const made = details.receipt?.model ?? {};
    const size = job.video ? `${job.video.width} × ${job.video.height}` : given.width ? `${given.width} × ${given.height}` : null;
    return panel(
      "Parameters",
      rows([
        ["Model", job.model],
        ["Preset", job.preset && `${job.preset}${made.steps ? `, ${count(made.steps, "step")}` : ""}`],
        ["Size", size],
        ["Duration", job.video ? `${seconds(job.video.seconds)}, ${job.video.frames} frames at ${job.video.fps} per second` : seconds(job.duration)],
        ["Image", given.image_url],
        ["Style", job.style],
        ["Camera", details.receipt?.input?.camera ?? job.camera],
        ["Seed", job.seed],
        ["Not to be seen", given.negative_prompt],
        ["Priority", job.priority],
        ["Deadline", job.deadline && moment(job.deadline)],
      ]),
      ...job.warnings.map((text) => h("p", { class: "note" }, icon("warn"), text)),
    );
  }

  function costs() {
    if (!job.cost) return null;
    const took = details.receipt?.took;
    return panel(
      "Cost",
      rows([
        ["This video", job.cost.usd ? usd(job.cost.usd) : "no price of the host is set"],
        ["GPU time", seconds(job.cost.gpu_seconds)],
        ["Price", job.cost.usd_per_hour ? `${usd(job.cost.usd_per_hour)} per hour` : null],
        ["Host", job.cost.host],
        ["Reused from", details.receipt?.cost?.reused_from],
        ["Encoding", took && seconds(took.encode_seconds)],
      ]),
    );
  }

  function delivery() {
    const found = job.delivery;
    if (!found) return null;
    const words = { none: "Nobody is told: the order named no address", waiting: "Waits to be delivered", delivered: "Delivered", failing: "Not delivered" };
    return panel(
      "Notification",
      rows([
        ["State", words[found.status]],
        ["To", details.parameters.webhook_url],
        ["Attempts", found.attempts || null],
        ["Next attempt", found.next_attempt_at && moment(found.next_attempt_at)],
        ["Last error", found.error],
      ]),
    );
  }

  function receipt() {
    if (!details.receipt) return null;
    const text = JSON.stringify(details.receipt, null, 2);
    return h("details", { class: "panel" }, h("summary", {}, "Receipt"), h("pre", { tabindex: "0", "aria-label": "Receipt as JSON" }, text));
  }

  function files() {
    return panel(
      "Job",
      rows([
        ["Id", h("code", {}, job.job_id)],
        ["Ordered", moment(job.created_at)],
        ["Started", job.started_at && moment(job.started_at)],
        ["Completed", job.completed_at && moment(job.completed_at)],
        ["File", job.video && `${bytes(job.video.size)}, ${job.video.codec === "h264" ? "H.264" : job.video.codec.toUpperCase()}${job.video.audio ? ", with sound" : ""}`],
        ["SHA-256", job.video && h("code", {}, job.video.sha256)],
        ["Kept until", job.completed_at && (job.expires_at ? moment(job.expires_at) : "for ever")],
        ["Batch", job.batch_id],
        ["Owner", session.scopes.includes("admin") ? job.owner ?? "nobody" : null],
      ]),
    );
  }

  const ready = load();
  return {
    element,
    ready,
    stop() {
      stopped = true;
      clearTimeout(timer);
      live.stop();
    },
  };
}

function panel(title, ...children) {
  return h("section", { class: "panel" }, h("h2", {}, title), children);
}

function rows(entries) {
  return h("dl", {}, entries.filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}
