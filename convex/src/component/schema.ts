import { defineSchema, defineTable } from "convex/server";
import { v } from "convex/values";
import { factFields, vNews, vOrder, vStatus } from "./shapes.js";

export default defineSchema({
  jobs: defineTable({
    ownerId: v.string(),
    order: vOrder,
    status: vStatus,
    round: v.number(),
    ...factFields,
    endedAt: v.optional(v.number()),
    cancelRequested: v.boolean(),

    externalId: v.optional(v.string()),
    /** The round that the API last told of; behind `round` while a retry is being asked for. */
    toldRound: v.number(),
    webhookUrl: v.optional(v.string()),
    /** Handle of the app's mutation that hears of the end. */
    onEnd: v.optional(v.string()),

    /** When the present wish (order, retry) was made, and how often the API was asked since. */
    wishedAt: v.number(),
    attempts: v.number(),
    /** Polls in a row that brought nothing new. */
    quiet: v.number(),
    newsAt: v.number(),
    watchedAt: v.optional(v.number()),
    nextStep: v.optional(v.id("_scheduled_functions")),
  })
    .index("by_owner", ["ownerId"])
    .index("by_external", ["externalId"])
    .index("by_end", ["endedAt"]),

  /** Webhooks that were taken, so that each has its effect once. */
  deliveries: defineTable({
    webhookId: v.string(),
    externalId: v.string(),
    /** Kept where it came before the API's answer to the order; applied when that comes. */
    early: v.optional(vNews),
  })
    .index("by_webhook", ["webhookId"])
    .index("by_external", ["externalId"]),
});
