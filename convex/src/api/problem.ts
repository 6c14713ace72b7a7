import type { Problem } from "./types.js";

const PASSING = new Set([408, 425, 429, 500, 502, 503, 504]);

/** What the API answered instead of what was asked for, or that it did not answer at all. */
export class ApiProblem extends Error {
  override readonly name = "ApiProblem";

  constructor(
    /** HTTP's; 0 where no answer came. */
    readonly status: number,
    /** For programs, as `job_unknown`; `unreachable` where no answer came. */
    readonly code: string,
    /** For people; holds no secret and no inner address. */
    readonly detail: string,
    /** How long the API asks to be left alone. */
    readonly retryAfterSeconds?: number,
    /** Whether the API itself says so; otherwise something before it does, or nobody answered. */
    readonly isOwn = false,
  ) {
    super(`${code}: ${detail}`);
  }

  /** Whether the same request, sent again later, may succeed. */
  get isPassing(): boolean {
    return this.status === 0 || PASSING.has(this.status);
  }

  /** The problem in an answer that is no success. */
  static async of(response: Response): Promise<ApiProblem> {
    const after = Number(response.headers.get("retry-after") ?? NaN);
    const said = problemIn(await response.text());
    return new ApiProblem(
      response.status,
      said.code ?? `http_${response.status}`,
      said.detail ?? `The video API answers ${response.status}.`,
      Number.isFinite(after) ? after : undefined,
      said.code !== undefined,
    );
  }

  /** The problem that there was no answer. */
  static unreachable(cause: unknown): ApiProblem {
    const slow = cause instanceof Error && cause.name === "TimeoutError";
    const detail = slow ? "The video API did not answer in time." : "The video API is not reachable.";
    return new ApiProblem(0, "unreachable", detail);
  }
}

/** A proxy may answer with a page, or with JSON of its own kind. */
function problemIn(text: string): Partial<Pick<Problem, "code" | "detail">> {
  try {
    const { code, detail } = Object(JSON.parse(text)) as Record<string, unknown>;
    return {
      code: typeof code === "string" ? code : undefined,
      detail: typeof detail === "string" ? detail : undefined,
    };
  } catch {
    return {};
  }
}
