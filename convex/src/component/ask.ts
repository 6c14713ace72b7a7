/** One conversation with the API about one job, in the API's words. */
import { StillreelApi } from "../api/client.js";
import { ApiProblem } from "../api/problem.js";
import type { Job, Order } from "../api/types.js";
import type { Doc } from "./_generated/dataModel.js";
import { env } from "./_generated/server.js";
import type { Facts, News, VideoOrder } from "./shapes.js";
import { isEnded } from "./states.js";

/** The client of this component, from its environment. */
export function openApi(): StillreelApi {
  return new StillreelApi({ url: env.VIDEO_API_URL, key: env.VIDEO_API_KEY });
}

/** What the API says after it was asked what is due. Throws ApiProblem. */
export async function ask(job: Doc<"jobs">): Promise<News> {
  const api = openApi();
  if (!job.externalId) {
    // The row's id as key: whatever happens to the answer, a second request makes no second video.
    const queued = await api.order(orderOf(job), { idempotencyKey: job._id });
    // Only taken: where the order was sent before, the job may be further, and a poll tells how far.
    return { externalId: queued.job_id, status: "queued", facts: positionOf(queued.position) };
  }
  if (isEnded(job.status)) return newsOf(await api.job(job.externalId));
  if (job.toldRound < job.round) return newsOf(await retried(api, job.externalId, job.round));
  if (job.cancelRequested) return newsOf(await cancelled(api, job.externalId));
  return newsOf(await api.job(job.externalId));
}

/** The order in the API's words. */
export function orderOf(job: { order: VideoOrder; webhookUrl?: string }): Order {
  const { uploadId, ...order } = job.order;
  const named = Object.entries(order).map(([name, value]) => [snake(name), value]);
  return { ...Object.fromEntries(named), job_id: uploadId, webhook_url: job.webhookUrl };
}

/** A job of the API as news. */
export function newsOf(job: Job): News {
  const facts: Facts = {
    stage: job.stage ?? undefined,
    phase: job.phase ?? undefined,
    progress: job.progress,
    etaSeconds: job.eta_seconds ?? undefined,
    ...positionOf(job.position),
    videoUrl: job.result_url ?? undefined,
    posterUrl: job.poster_url ?? undefined,
    teaserUrl: job.teaser_url ?? undefined,
    urlsExpireAt: job.url_expires_at ? Date.parse(job.url_expires_at) : undefined,
    seed: job.seed ?? undefined,
    costUsd: job.cost?.usd,
    gpuSeconds: job.cost?.gpu_seconds,
    error: job.error ?? undefined,
    errorCode: job.error_code ?? undefined,
  };
  return { externalId: job.job_id, round: job.round ?? 1, status: job.status, facts };
}

/** A retry whose answer was lost is not asked for again: that could open one round too many. */
async function retried(api: StillreelApi, id: string, round: number): Promise<Job> {
  const job = await api.job(id);
  const isDone = (found: Job) => (found.round ?? 1) >= round || found.status === "completed";
  return isDone(job) ? job : await orAsItIs(api, id, () => api.retry(id), isDone);
}

/** Where the job cannot be cancelled just now, it is news as it is; the next step asks again. */
async function cancelled(api: StillreelApi, id: string): Promise<Job> {
  return await orAsItIs(api, id, () => api.cancel(id));
}

/** What was asked for; where the job is in no state for it, the job as it is, if that will do. */
async function orAsItIs(
  api: StillreelApi,
  id: string,
  asked: () => Promise<Job>,
  isRight: (job: Job) => boolean = () => true,
): Promise<Job> {
  try {
    return await asked();
  } catch (error) {
    if (!(error instanceof ApiProblem && error.status === 409)) throw error;
    const job = await api.job(id);
    if (isRight(job)) return job;
    throw error;
  }
}

function positionOf(position: number | null | undefined): Pick<Facts, "queuePosition"> {
  return { queuePosition: position ?? undefined };
}

function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
