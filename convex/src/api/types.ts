import type { components } from "./openapi.js";

type Schemas = components["schemas"];

/** The order of one video, as `POST /api/v1/generate` takes it. */
export type Order = Schemas["GenerateRequest"];
/** The answer to an order. */
export type Queued = Schemas["Queued"];
/** A job as the API tells it. */
export type Job = Schemas["JobView"];
export type JobStatus = Schemas["JobStatus"];
export type JobPage = Schemas["JobPage"];
export type UploadTarget = Schemas["UploadTarget"];
export type Models = Schemas["Models"];
export type Estimate = Schemas["Estimate"];
export type Problem = Schemas["Problem"];
