/** Webhooks: verified, stored and applied in one mutation, so each has its effect exactly once. */
import { type Infer, v } from "convex/values";
import type { Id } from "./_generated/dataModel.js";
import { env, mutation, type MutationCtx } from "./_generated/server.js";
import { apply } from "./apply.js";
import { readMessage } from "./message.js";
import { pollAfter } from "./pace.js";
import { plan } from "./plan.js";
import { isEnded, lastingUrls } from "./states.js";
import { verify, vSigned } from "./verify.js";

export const vOutcome = v.union(
  v.literal("applied"),
  /** It is good, and changes nothing: the job is further. */
  v.literal("late"),
  v.literal("duplicate"),
  /** No job of this app has that id yet; kept until one has. */
  v.literal("early"),
  v.literal("unauthorized"),
  v.literal("stale"),
  v.literal("unreadable"),
);
export type Outcome = Infer<typeof vOutcome>;

/** Takes one delivery: the raw body and the headers that vouch for it. */
export const receive = mutation({
  args: vSigned.fields,
  returns: vOutcome,
  handler: async (ctx, signed): Promise<Outcome> => {
    const secrets = [env.VIDEO_WEBHOOK_SECRET, env.VIDEO_WEBHOOK_SECRET_PREVIOUS ?? ""];
    const verdict = verify(signed, secrets.filter(Boolean), Date.now());
    if (verdict !== "good") return verdict;
    const message = readMessage(signed.body, signed.id);
    if (!message) return "unreadable";
    const { webhookId, news } = message;

    const seen = await ctx.db
      .query("deliveries")
      .withIndex("by_webhook", (index) => index.eq("webhookId", webhookId))
      .first();
    if (seen) return "duplicate";
    const job = await ctx.db
      .query("jobs")
      .withIndex("by_external", (index) => index.eq("externalId", news.externalId))
      .first();
    const early = job ? undefined : news;
    await ctx.db.insert("deliveries", { webhookId, externalId: news.externalId, early });
    if (!job) return "early";
    const facts = { ...news.facts, ...lastingUrls(job, news, Date.now()) };
    if (!(await apply(ctx, job, { ...news, facts }))) return "late";
    if (isEnded(job.status)) await goOn(ctx, job._id);
    return "applied";
  },
});

/** A job that had ended has no step planned; where somebody opened its next round, it needs one. */
async function goOn(ctx: MutationCtx, jobId: Id<"jobs">): Promise<void> {
  const job = await ctx.db.get(jobId);
  if (job && !isEnded(job.status)) await plan(ctx, jobId, pollAfter(job, false));
}
