import { authTables } from "@convex-dev/auth/server";
import { defineSchema, defineTable } from "convex/server";
import { v } from "convex/values";

export default defineSchema({
  ...authTables,

  videoJobs: defineTable({
    userId: v.id("users"),
    sourceImageId: v.id("_storage"),
    prompt: v.optional(v.string()),

    status: v.union(
      v.literal("uploading"),
      v.literal("queued"),
      v.literal("processing"),
      v.literal("completed"),
      v.literal("failed")
    ),
    externalJobId: v.optional(v.string()),

    outputVideoUrl: v.optional(v.string()),
    errorMessage: v.optional(v.string()),

    durationSeconds: v.optional(v.number()),
    createdAt: v.number(),
    completedAt: v.optional(v.number()),
  })
    .index("by_user", ["userId"])
    .index("by_status", ["status"])
    .index("by_external_job", ["externalJobId"]),
});
