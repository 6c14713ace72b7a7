/** The work on a job: a chain of steps, each of which asks the API once, until the job has ended. */
import { type Infer, v } from "convex/values";
import { internal } from "./_generated/api.js";
import type { Doc } from "./_generated/dataModel.js";
import { internalAction, internalMutation, internalQuery } from "./_generated/server.js";
import { ApiProblem } from "../api/problem.js";
import { apply, applyEarly, fail } from "./apply.js";
import { ask } from "./ask.js";
import { CANCELLED, NOT_TAKEN, NOTHING_HEARD } from "./ends.js";
import { backOff, GIVE_UP, LOST, pollAfter, SAFETY, WATCHED } from "./pace.js";
import { plan } from "./plan.js";
import { vNews } from "./shapes.js";
import { isEnded } from "./states.js";

const vAnswer = v.union(
  v.object({ kind: v.literal("news"), news: vNews }),
  v.object({ kind: v.literal("refused"), code: v.string(), error: v.string() }),
  v.object({ kind: v.literal("later"), retryAfterSeconds: v.optional(v.number()) }),
);
type Answer = Infer<typeof vAnswer>;

/** The API's words for a job that it will never tell of again. */
const GONE = new Set(["job_unknown", "job_deleted"]);
/** HTTP's statuses of a retry that may be taken later. */
const MENDABLE = new Set([401, 403, 409]);

/** Has the API asked what is due, and plans the step that follows should the answer be lost. */
export const step = internalMutation({
  args: { jobId: v.id("jobs") },
  returns: v.null(),
  handler: async (ctx, { jobId }) => {
    const job = await ctx.db.get(jobId);
    if (!job) return null;
    await ctx.db.patch(jobId, { nextStep: undefined, attempts: job.attempts + 1 });
    if (isEnded(job.status)) return null;
    const now = Date.now();
    const isAsking = !job.externalId || job.toldRound < job.round;
    if (job.cancelRequested && !job.externalId && job.attempts === 0) {
      await fail(ctx, job, CANCELLED);
    } else if (isAsking && now - job.wishedAt > GIVE_UP) {
      await fail(ctx, job, NOT_TAKEN);
    } else if (now - job.newsAt > LOST) {
      await fail(ctx, job, NOTHING_HEARD);
    } else {
      await ctx.scheduler.runAfter(0, internal.work.talk, { jobId });
      await plan(ctx, jobId, SAFETY);
    }
    return null;
  },
});

/** Asks the API once: to take the order, to cancel, to retry, or how the job fares. */
export const talk = internalAction({
  args: { jobId: v.string() },
  returns: v.null(),
  handler: async (ctx, { jobId }): Promise<null> => {
    const job = await ctx.runQuery(internal.work.read, { jobId });
    if (!job) return null;
    const answer = await answerTo(job);
    await ctx.runMutation(internal.work.heard, { jobId: job._id, answer });
    return null;
  },
});

/** The whole row, for the action. */
export const read = internalQuery({
  args: { jobId: v.string() },
  handler: async (ctx, { jobId }) => {
    const id = ctx.db.normalizeId("jobs", jobId);
    return id && (await ctx.db.get(id));
  },
});

/** Stores what the API answered and plans the next step. */
export const heard = internalMutation({
  args: { jobId: v.id("jobs"), answer: vAnswer },
  returns: v.null(),
  handler: async (ctx, { jobId, answer }) => {
    const job = await ctx.db.get(jobId);
    if (!job) return null;
    if (answer.kind === "refused") {
      await fail(ctx, job, answer);
      return null;
    }
    if (answer.kind === "later") {
      if (!isEnded(job.status)) await plan(ctx, jobId, backOff(job.attempts, answer.retryAfterSeconds));
      return null;
    }
    const isTaken = job.externalId === undefined;
    await ctx.db.patch(jobId, { externalId: answer.news.externalId, attempts: 0 });
    await apply(ctx, job, answer.news);
    if (isTaken) await applyEarly(ctx, jobId, answer.news.externalId);
    const now = await ctx.db.get(jobId);
    if (!now || isEnded(now.status)) return null;
    const isWatched = Date.now() - (now.watchedAt ?? 0) < WATCHED;
    const wait = isTaken && now.cancelRequested ? 0 : pollAfter(now, isWatched);
    await plan(ctx, jobId, wait);
    return null;
  },
});

async function answerTo(job: Doc<"jobs">): Promise<Answer> {
  try {
    return { kind: "news", news: await ask(job) };
  } catch (error) {
    if (!(error instanceof ApiProblem)) throw error;
    return isFinal(error, job)
      ? { kind: "refused", code: error.code, error: error.detail }
      : { kind: "later", retryAfterSeconds: error.retryAfterSeconds };
  }
}

/** Whether what the API says against it ends the job; what a proxy says never does. */
function isFinal(problem: ApiProblem, job: Doc<"jobs">): boolean {
  if (problem.isPassing || !problem.isOwn) return false;
  if (!job.externalId || GONE.has(problem.code)) return true;
  // A key that is wrong now, or a round that still runs, loses no job that the API has.
  const isRetry = job.toldRound < job.round;
  return isRetry && !MENDABLE.has(problem.status);
}
