// What a job is doing, in words and as parts of its way.

import { capital, seconds, usd } from "./format.js";

export const STAGES = ["fetch", "infer", "encode", "upload", "notify"];
/** Shares of the way in percent, as the API counts them. */
export const SHARES = { fetch: 3, infer: 77, encode: 15, upload: 4, notify: 1 };
/** Hosts give a sign each 30 s. */
const SLOW_SECONDS = 45;

export const STATUS = {
  queued: "Waiting",
  processing: "Working",
  completed: "Done",
  failed: "Failed",
  cancelled: "Cancelled",
  expired: "Expired",
};

const DOING = { fetch: "Fetching the image", infer: "Inference", encode: "Encoding", upload: "Uploading", notify: "Telling about it" };
const PHASES = { queued: "waits for the GPU", load: "loads the model", text: "reads the prompt", denoise: "denoising", decode: "decoding" };

/** e.g. Inference, denoising 3 of 8. */
export function stageText(job) {
  if (job.status === "queued") return job.position ? `Place ${job.position} in line` : "In line";
  if (!job.stage) return "Starting on a host";
  const phase = job.phase && job.stage === "infer" ? `, ${PHASES[job.phase] ?? job.phase}` : "";
  const step = job.steps ? ` ${job.step} of ${job.steps}` : "";
  return DOING[job.stage] + phase + step;
}

/** What is left, and whether the host is heard of. */
export function timeText(job) {
  const parts = [];
  if (job.eta_seconds !== null) parts.push(`about ${seconds(Math.max(1, job.eta_seconds))} left`);
  if (job.heartbeat_age_seconds > SLOW_SECONDS) parts.push(`host silent for ${seconds(job.heartbeat_age_seconds)}`);
  if (job.attempt > 1) parts.push(`attempt ${job.attempt} of 3`);
  return parts.join(" · ");
}

export function titleOf(job) {
  return job.prompt || (job.style ? `${capital(job.style)}, from an image` : "From an image");
}

/** The facts below a card: preview, 1280×720, 5 s · US$0.001. */
export function factsOf(job) {
  const size = job.video ? `${job.video.width}×${job.video.height}` : "";
  return [job.model, size, seconds(job.video?.seconds ?? job.duration), job.cost?.usd ? usd(job.cost.usd, 2) : ""].filter(Boolean);
}
