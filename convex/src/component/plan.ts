import { internal } from "./_generated/api.js";
import type { Id } from "./_generated/dataModel.js";
import type { MutationCtx } from "./_generated/server.js";

/**
 * Has the job's next step run in so many milliseconds, instead of the one that was planned.
 *
 * Steps are mutations, which Convex runs exactly once; so the chain of a job's steps does not break
 * where an action, which may be lost, does.
 */
export async function plan(ctx: MutationCtx, jobId: Id<"jobs">, waitMs: number): Promise<void> {
  const job = await ctx.db.get(jobId);
  if (!job) return;
  if (job.nextStep) await ctx.scheduler.cancel(job.nextStep);
  const nextStep = await ctx.scheduler.runAfter(waitMs, internal.work.step, { jobId });
  await ctx.db.patch(jobId, { nextStep });
}
