/** The HTTP side of webhooks, for the component's own route and for one of the app's. */
import type { Outcome } from "./webhook.js";
import type { Signed } from "./verify.js";

/** Characters; messages have less than 20,000. */
const BODY_LIMIT = 100_000;

const STATUS: Record<Outcome, number> = {
  applied: 200,
  late: 200,
  duplicate: 200,
  early: 202,
  unauthorized: 401,
  stale: 400,
  unreadable: 400,
};

/** The answer to a webhook whose raw body and headers `take` has looked at. */
export async function answerWebhook(
  request: Request,
  take: (signed: Signed) => Promise<Outcome>,
): Promise<Response> {
  const body = await request.text();
  if (body.length > BODY_LIMIT) return answer(413, "too_long");
  const header = (name: string) => request.headers.get(name) ?? undefined;
  const outcome = await take({
    body,
    id: header("webhook-id"),
    timestamp: header("webhook-timestamp"),
    signature: header("webhook-signature"),
    plain: header("x-webhook-secret"),
  });
  return answer(STATUS[outcome], outcome);
}

function answer(status: number, outcome: string): Response {
  const headers = { "Content-Type": "application/json" };
  return new Response(JSON.stringify({ outcome }), { status, headers });
}
