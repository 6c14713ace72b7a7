/** The component's public functions about jobs; all of them take and give plain strings as ids. */
import { ConvexError, v } from "convex/values";
import { api, internal } from "./_generated/api.js";
import type { Doc } from "./_generated/dataModel.js";
import { action, mutation, query, type MutationCtx, type QueryCtx } from "./_generated/server.js";
import { NOTHING_HEARD } from "./ends.js";
import { plan } from "./plan.js";
import { vJob, vOrder, type VideoJob } from "./shapes.js";
import { isEnded } from "./states.js";

const BATCH = 100;
/** Repeats of a webhook come within three days, or when somebody asks for them. */
const DELIVERIES_KEPT = 14 * 24 * 60 * 60 * 1000;

/** The new job's id. Its row and the work on it are stored together, or neither is. */
export const submit = mutation({
  args: {
    ownerId: v.string(),
    order: vOrder,
    webhookUrl: v.optional(v.string()),
    onEnd: v.optional(v.string()),
  },
  returns: v.string(),
  handler: async (ctx, args) => {
    const now = Date.now();
    const jobId = await ctx.db.insert("jobs", {
      ...args,
      ...{ status: "submitting", round: 1, toldRound: 1, cancelRequested: false },
      ...{ wishedAt: now, newsAt: now, attempts: 0, quiet: 0, progress: 0 },
    });
    await plan(ctx, jobId, 0);
    return jobId;
  },
});

/** The job, or null where there is none. */
export const get = query({
  args: { jobId: v.string() },
  returns: v.union(vJob, v.null()),
  handler: async (ctx, { jobId }) => {
    const job = await find(ctx, jobId);
    return job && asVideoJob(job);
  },
});

/** An owner's jobs, newest first, and where the next page begins. */
export const list = query({
  args: { ownerId: v.string(), limit: v.optional(v.number()), before: v.optional(v.number()) },
  returns: v.object({ jobs: v.array(vJob), next: v.union(v.number(), v.null()) }),
  handler: async (ctx, { ownerId, limit = 20, before }) => {
    const size = Math.min(Math.max(1, Math.floor(limit)), BATCH);
    const found = await ctx.db
      .query("jobs")
      .withIndex("by_owner", (index) => {
        const own = index.eq("ownerId", ownerId);
        return before === undefined ? own : own.lt("_creationTime", before);
      })
      .order("desc")
      .take(size + 1);
    const jobs = found.slice(0, size).map(asVideoJob);
    return { jobs, next: found.length > size ? (jobs.at(-1)?.createdAt ?? null) : null };
  },
});

/** Ends the job as soon as the API can; one that has ended stays as it is. */
export const cancel = mutation({
  args: { jobId: v.string() },
  returns: v.null(),
  handler: async (ctx, { jobId }) => {
    const job = await demand(ctx, jobId);
    if (isEnded(job.status)) return null;
    await ctx.db.patch(job._id, { cancelRequested: true, quiet: 0 });
    await plan(ctx, job._id, 0);
    return null;
  },
});

/** Opens the next round of a job that ended without a video. */
export const retry = mutation({
  args: { jobId: v.string() },
  returns: v.null(),
  handler: async (ctx, { jobId }) => {
    const job = await demand(ctx, jobId);
    if (!isEnded(job.status)) return null;
    if (job.status === "completed") throw new ConvexError("This job has its video; order another one.");
    const now = Date.now();
    await ctx.db.patch(job._id, {
      ...nextRound(job),
      ...{ error: undefined, errorCode: undefined, endedAt: undefined, progress: 0 },
      ...{ wishedAt: now, newsAt: now, attempts: 0, quiet: 0, cancelRequested: false },
    });
    await plan(ctx, job._id, 0);
    return null;
  },
});

/** Says that somebody looks at the job now, so that it is polled every few seconds for a minute. */
export const watch = mutation({
  args: { jobId: v.string() },
  returns: v.null(),
  handler: async (ctx, { jobId }) => {
    const job = await demand(ctx, jobId);
    if (isEnded(job.status)) return null;
    const isNew = (job.watchedAt ?? 0) + 60_000 < Date.now();
    await ctx.db.patch(job._id, { watchedAt: Date.now() });
    if (isNew && job.externalId) await plan(ctx, job._id, 0);
    return null;
  },
});

/** Asks the API now, for URLs that have expired say; the job's row has what it answered. */
export const refresh = action({
  args: { jobId: v.string() },
  returns: v.null(),
  handler: async (ctx, { jobId }): Promise<null> => {
    await ctx.runAction(internal.work.talk, { jobId });
    return null;
  },
});

/** Forgets jobs that ended so long ago, a hundred at a time until there are none; not their videos. */
export const cleanup = mutation({
  args: { endedBefore: v.number() },
  returns: v.null(),
  handler: async (ctx, { endedBefore }): Promise<null> => {
    const jobs = await ctx.db
      .query("jobs")
      .withIndex("by_end", (index) => index.gt("endedAt", 0).lt("endedAt", endedBefore))
      .take(BATCH);
    const deliveries = await ctx.db
      .query("deliveries")
      .withIndex("by_creation_time", (index) =>
        index.lt("_creationTime", Date.now() - DELIVERIES_KEPT),
      )
      .take(BATCH);
    for (const row of [...jobs, ...deliveries]) await ctx.db.delete(row._id);
    if (jobs.length === BATCH || deliveries.length === BATCH) {
      await ctx.scheduler.runAfter(0, api.jobs.cleanup, { endedBefore });
    }
    return null;
  },
});

/** Where a job goes on: with the order, with the round that nothing was heard of, or the next one. */
function nextRound(job: Doc<"jobs">): { status: "submitting" | "queued"; round: number } {
  if (!job.externalId) return { status: "submitting", round: job.round };
  const isOpen = job.errorCode === NOTHING_HEARD.code;
  return { status: "queued", round: isOpen ? job.round : job.toldRound + 1 };
}

/** The job without what is only the component's. */
export function asVideoJob(job: Doc<"jobs">): VideoJob {
  const { _id, _creationTime, toldRound, webhookUrl, onEnd, wishedAt, attempts, ...rest } = job;
  const { quiet, newsAt, watchedAt, nextStep, ...seen } = rest;
  return { jobId: _id, createdAt: _creationTime, ...seen };
}

async function find(ctx: QueryCtx, jobId: string): Promise<Doc<"jobs"> | null> {
  const id = ctx.db.normalizeId("jobs", jobId);
  return id && (await ctx.db.get(id));
}

async function demand(ctx: MutationCtx, jobId: string): Promise<Doc<"jobs">> {
  const job = await find(ctx, jobId);
  if (!job) throw new ConvexError("There is no such video job.");
  return job;
}
