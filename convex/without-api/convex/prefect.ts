/** Two routes of Prefect's own API, version 3. */

export interface Started {
  runId: string;
  /** Whether this call made the run; otherwise an earlier one with the same key did. */
  isNew: boolean;
}

/** Prefect's no. `isPassing`: the same call may succeed later. */
export class PrefectProblem extends Error {
  override readonly name = "PrefectProblem";

  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }

  get isPassing(): boolean {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/**
 * Starts a run of the flow `generate-video`; once, however often it is called with the same key.
 *
 * `deployment` is one of `stillreel deploy`, as `preview-local`. Throws PrefectProblem.
 */
export async function startRun(
  deployment: string,
  parameters: Record<string, unknown>,
  idempotencyKey: string,
): Promise<Started> {
  const found = await call("GET", `/deployments/name/generate-video/${encodeURIComponent(deployment)}`);
  if (found.status === 404) throw new PrefectProblem(404, `Prefect has no deployment ${deployment}.`);
  const { id } = (await expectOk(found)) as { id: string };
  const body = { parameters, idempotency_key: idempotencyKey };
  const made = await call("POST", `/deployments/${id}/create_flow_run`, body);
  // 201: made now. 200: the run that this key has made before. 409: the parameters do not fit.
  if (made.status === 409) throw new PrefectProblem(409, await detailOf(made));
  const run = (await expectOk(made)) as { id: string };
  return { runId: run.id, isNew: made.status === 201 };
}

async function call(method: string, path: string, body?: unknown): Promise<Response> {
  // PREFECT_API_AUTH_STRING is `user:password`, as everywhere in Prefect.
  const headers: Record<string, string> = { "Content-Type": "application/json" };
  const auth = process.env.PREFECT_API_AUTH_STRING;
  if (auth) headers.Authorization = `Basic ${btoa(auth)}`;
  try {
    return await fetch(`${process.env.PREFECT_API_URL?.replace(/\/$/, "")}${path}`, {
      method,
      headers,
      body: body ? JSON.stringify(body) : undefined,
      signal: AbortSignal.timeout(30_000),
    });
  } catch {
    throw new PrefectProblem(0, "Prefect is not reachable.");
  }
}

async function expectOk(response: Response): Promise<unknown> {
  if (response.ok) return await response.json();
  const isRefused = response.status === 401 || response.status === 403;
  const text = isRefused ? "Prefect does not take PREFECT_API_AUTH_STRING." : await detailOf(response);
  throw new PrefectProblem(response.status, text);
}

async function detailOf(response: Response): Promise<string> {
  const text = await response.text();
  try {
    const { detail } = JSON.parse(text) as { detail?: unknown };
    if (typeof detail === "string") return detail;
  } catch {
    // not JSON: a proxy's page
  }
  return `Prefect answers ${response.status}.`;
}
