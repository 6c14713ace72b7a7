/** The HTTP API from TypeScript: a small client, its types checked against the API's OpenAPI. */
export { ApiProblem } from "./problem.js";
export { StillreelApi, type ApiOptions } from "./client.js";
export type { components, paths } from "./openapi.js";
export type { Estimate, Job, JobPage, JobStatus, Models, Order, Queued, UploadTarget } from "./types.js";
