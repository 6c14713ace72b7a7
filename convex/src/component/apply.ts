/** The one place where what the API says changes a job. */
import type { FunctionHandle } from "convex/server";
import type { Doc, Id } from "./_generated/dataModel.js";
import type { MutationCtx } from "./_generated/server.js";
import { asVideoJob } from "./jobs.js";
import type { Facts, News } from "./shapes.js";
import { counts, ends, isEnded, mergeFacts, standingOf } from "./states.js";

const NO_FACTS: { [Name in keyof Required<Facts>]: undefined } = {
  ...{ stage: undefined, phase: undefined, progress: undefined, etaSeconds: undefined },
  ...{ queuePosition: undefined, videoUrl: undefined, posterUrl: undefined, teaserUrl: undefined },
  ...{ urlsExpireAt: undefined, seed: undefined, costUsd: undefined, gpuSeconds: undefined },
  ...{ error: undefined, errorCode: undefined },
};

/** Whether the news counted. At an end the app's mutation is scheduled in the same transaction. */
export async function apply(ctx: MutationCtx, job: Doc<"jobs">, news: News): Promise<boolean> {
  const now = Date.now();
  const told = standingOf(news, job);
  const toldRound = Math.max(job.toldRound, told.round);
  if (!counts(job, told)) {
    await ctx.db.patch(job._id, { newsAt: now, toldRound });
    return false;
  }
  const isNew = told.status !== job.status || told.round !== job.round;
  const isEnd = ends(job, told);
  await ctx.db.patch(job._id, {
    ...(isEnded(told.status) && !isNew ? {} : NO_FACTS), // a shorter message takes nothing away
    ...mergeFacts(job, told, news.facts),
    ...{ status: told.status, round: told.round, toldRound, newsAt: now },
    quiet: isNew ? 0 : job.quiet + 1,
    // A cancel is of the round that it ended, not of one that somebody opens later.
    cancelRequested: job.cancelRequested && !(isEnded(job.status) && !isEnded(told.status)),
    endedAt: isEnded(told.status) ? (isEnd ? now : job.endedAt) : undefined,
  });
  if (isEnd) await tell(ctx, job);
  return true;
}

/** What a webhook said before the API's answer to the order was stored. */
export async function applyEarly(ctx: MutationCtx, jobId: Id<"jobs">, externalId: string): Promise<void> {
  const deliveries = await ctx.db
    .query("deliveries")
    .withIndex("by_external", (index) => index.eq("externalId", externalId))
    .collect();
  for (const { _id, early } of deliveries) {
    const job = await ctx.db.get(jobId);
    if (job && early) await apply(ctx, job, early);
    await ctx.db.patch(_id, { early: undefined });
  }
}

/** Ends a job that the API will not tell the end of. */
export async function fail(
  ctx: MutationCtx,
  job: Doc<"jobs">,
  problem: { status?: "failed" | "cancelled"; code: string; error: string },
): Promise<void> {
  if (isEnded(job.status)) return;
  const { status = "failed", code: errorCode, error } = problem;
  await ctx.db.patch(job._id, {
    ...NO_FACTS,
    ...{ status, errorCode, error, progress: job.progress, endedAt: Date.now() },
  });
  await tell(ctx, job);
}

async function tell(ctx: MutationCtx, { _id, onEnd }: Doc<"jobs">): Promise<void> {
  const job = await ctx.db.get(_id);
  if (job && onEnd) {
    const handle = onEnd as FunctionHandle<"mutation">;
    await ctx.scheduler.runAfter(0, handle, { job: asVideoJob(job) });
  }
}
