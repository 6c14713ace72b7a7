import { getAuthUserId } from "@convex-dev/auth/server";
import { v } from "convex/values";
import { internal } from "./_generated/api";
import type { Doc } from "./_generated/dataModel";
import {
  internalAction,
  internalMutation,
  internalQuery,
  mutation,
  query,
  type MutationCtx,
} from "./_generated/server";

export const create = mutation({
  args: {
    sourceImageId: v.id("_storage"),
    prompt: v.optional(v.string()),
  },
  returns: v.id("videoJobs"),
  handler: async (ctx, args) => {
    const userId = await getAuthUserId(ctx);
    if (!userId) throw new Error("Not authenticated");

    const jobId = await ctx.db.insert("videoJobs", {
      userId,
      sourceImageId: args.sourceImageId,
      prompt: args.prompt,
      status: "uploading",
      createdAt: Date.now(),
    });

    await ctx.scheduler.runAfter(0, internal.videoJobs.submitToApi, {
      jobId,
    });

    return jobId;
  },
});

export const submitToApi = internalAction({
  args: { jobId: v.id("videoJobs") },
  returns: v.null(),
  handler: async (ctx, args): Promise<null> => {
    const job = await ctx.runQuery(internal.videoJobs.getJob, {
      jobId: args.jobId
    });
    if (!job) throw new Error("Job not found");

    const imageUrl = await ctx.storage.getUrl(job.sourceImageId);
    if (!imageUrl) throw new Error("Image not found");

    const response = await fetch(
      `${process.env.VIDEO_API_URL}/api/v1/generate`,
      {
        method: "POST",
        headers: {
          "Content-Type": "application/json",
          "Authorization": `Bearer ${process.env.VIDEO_API_KEY}`,
          "Idempotency-Key": args.jobId,
        },
        body: JSON.stringify({
          image_url: imageUrl,
          prompt: job.prompt || "Generate a smooth video",
          duration: 5,
          webhook_url: `${process.env.CONVEX_SITE_URL}/api/webhooks/video-complete`,
        }),
      }
    );

    if (!response.ok) {
      await ctx.runMutation(internal.videoJobs.updateStatus, {
        jobId: args.jobId,
        status: "failed",
        errorMessage: await response.text(),
      });
      return null;
    }

    const result = await response.json();

    await ctx.runMutation(internal.videoJobs.updateStatus, {
      jobId: args.jobId,
      status: "queued",
      externalJobId: result.job_id,
    });

    return null;
  },
});

// --- what the document calls and does not show -------------------------------------------------

/** For the page; only the owner's own. */
export const get = query({
  args: { jobId: v.id("videoJobs") },
  handler: async (ctx, { jobId }): Promise<Doc<"videoJobs"> | null> => {
    const job = await ctx.db.get(jobId);
    return job && job.userId === (await getAuthUserId(ctx)) ? job : null;
  },
});

export const getJob = internalQuery({
  args: { jobId: v.id("videoJobs") },
  handler: async (ctx, { jobId }): Promise<Doc<"videoJobs"> | null> => await ctx.db.get(jobId),
});

export const updateStatus = internalMutation({
  args: {
    jobId: v.id("videoJobs"),
    status: v.union(v.literal("queued"), v.literal("processing"), v.literal("failed")),
    externalJobId: v.optional(v.string()),
    errorMessage: v.optional(v.string()),
  },
  returns: v.null(),
  handler: async (ctx, { jobId, ...change }) => {
    const job = await ctx.db.get(jobId);
    if (job && !hasEnded(job)) await ctx.db.patch(jobId, change);
    return null;
  },
});

export const completeJob = internalMutation({
  args: { externalJobId: v.string(), videoUrl: v.string() },
  returns: v.null(),
  handler: async (ctx, { externalJobId, videoUrl }) => {
    const job = await byExternalJob(ctx, externalJobId);
    const completedAt = Date.now();
    if (job.status !== "completed") {
      await ctx.db.patch(job._id, { status: "completed", outputVideoUrl: videoUrl, completedAt });
    }
    return null;
  },
});

export const failJob = internalMutation({
  args: { externalJobId: v.string(), errorMessage: v.union(v.string(), v.null()) },
  returns: v.null(),
  handler: async (ctx, { externalJobId, errorMessage }) => {
    const job = await byExternalJob(ctx, externalJobId);
    if (!hasEnded(job)) {
      const why = errorMessage ?? "The video could not be made.";
      await ctx.db.patch(job._id, { status: "failed", errorMessage: why, completedAt: Date.now() });
    }
    return null;
  },
});

function hasEnded(job: Doc<"videoJobs">): boolean {
  return job.status === "completed" || job.status === "failed";
}

/** Throws where the API was quicker than `submitToApi`: the webhook gets 500, and comes again. */
async function byExternalJob(ctx: MutationCtx, externalJobId: string): Promise<Doc<"videoJobs">> {
  const job = await ctx.db
    .query("videoJobs")
    .withIndex("by_external_job", (index) => index.eq("externalJobId", externalJobId))
    .unique();
  if (!job) throw new Error("No job has this id yet.");
  return job;
}
