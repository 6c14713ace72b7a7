/** Ends of a job that are the component's own, not the API's. */

export const CANCELLED = {
  status: "cancelled",
  code: "cancelled",
  error: "The job was cancelled.",
} as const;

export const NOT_TAKEN = {
  code: "not_taken",
  error: "The video API did not take the order for a day; retry sends the same order again.",
} as const;

export const NOTHING_HEARD = {
  code: "nothing_heard",
  error: "Nothing was heard of this job for 30 days; retry asks for it again.",
} as const;
