/** What a job is in the database, and what an app is told about it. */
import { type Infer, v } from "convex/values";

export const vStatus = v.union(
  v.literal("submitting"),
  v.literal("queued"),
  v.literal("processing"),
  v.literal("completed"),
  v.literal("failed"),
  v.literal("cancelled"),
  v.literal("expired"),
);
/** `submitting`: the API has not taken the order yet. The others are the API's own words. */
export type Status = Infer<typeof vStatus>;

/** The order of one video: the API's fields in camel case; all optional but an image or a prompt. */
export const orderFields = {
  prompt: v.optional(v.string()),
  /** A public address of the image. */
  imageUrl: v.optional(v.string()),
  /** What an upload gave, instead of an address. */
  uploadId: v.optional(v.string()),
  negativePrompt: v.optional(v.string()),
  /** A look by its name, as `cinematic`. */
  style: v.optional(v.string()),
  /** How the camera moves, as `slow pan left and tilt up`. */
  camera: v.optional(v.string()),
  model: v.optional(v.string()),
  preset: v.optional(v.string()),
  /** Seconds. */
  duration: v.optional(v.number()),
  width: v.optional(v.number()),
  height: v.optional(v.number()),
  fps: v.optional(v.number()),
  seed: v.optional(v.number()),
  steps: v.optional(v.number()),
  audio: v.optional(v.boolean()),
  codec: v.optional(v.union(v.literal("h264"), v.literal("av1"))),
  quality: v.optional(v.union(v.literal("standard"), v.literal("high"))),
  reuse: v.optional(v.boolean()),
  embedPrompt: v.optional(v.boolean()),
  priority: v.optional(v.union(v.literal("high"), v.literal("default"), v.literal("backlog"))),
  /** ISO 8601 with a zone; a job that has not started by then expires. */
  deadline: v.optional(v.string()),
};
export const vOrder = v.object(orderFields);
export type VideoOrder = Infer<typeof vOrder>;

/** What is known about the present round of a job; absent: not known. */
export const factFields = {
  stage: v.optional(v.string()),
  phase: v.optional(v.string()),
  /** Percent; 100 only when completed. */
  progress: v.optional(v.number()),
  etaSeconds: v.optional(v.number()),
  /** Place in the line; 1 is next. */
  queuePosition: v.optional(v.number()),
  videoUrl: v.optional(v.string()),
  posterUrl: v.optional(v.string()),
  teaserUrl: v.optional(v.string()),
  /** Until when the URLs work at least, in milliseconds since 1970. */
  urlsExpireAt: v.optional(v.number()),
  seed: v.optional(v.number()),
  costUsd: v.optional(v.number()),
  gpuSeconds: v.optional(v.number()),
  error: v.optional(v.string()),
  errorCode: v.optional(v.string()),
};
export const vFacts = v.object(factFields);
export type Facts = Infer<typeof vFacts>;

/** What the API says about a job, in an answer or in a webhook. */
export const vNews = v.object({
  externalId: v.string(),
  /** Absent where the sender does not count rounds: the job's own. */
  round: v.optional(v.number()),
  status: vStatus,
  facts: vFacts,
});
export type News = Infer<typeof vNews>;

/** A job as apps and pages see it. */
export const vJob = v.object({
  jobId: v.string(),
  ownerId: v.string(),
  /** The job's id at the API, once it has taken the order. */
  externalId: v.optional(v.string()),
  order: vOrder,
  status: vStatus,
  /** 1, and one more with each retry. */
  round: v.number(),
  cancelRequested: v.boolean(),
  createdAt: v.number(),
  endedAt: v.optional(v.number()),
  ...factFields,
});
export type VideoJob = Infer<typeof vJob>;
