"""The first design document's own Convex code against the real API: order, webhook, row."""

from __future__ import annotations

from tests.api.control import Control
from tests.convex.conftest import KEY, Deploy, relayed

WEBHOOK = "api/webhooks/video-complete"


def test_its_http_action_unchanged_takes_our_webhook(control: Control, deploy: Deploy) -> None:
    secret = control.rotate()[0]
    with relayed(control, WEBHOOK, plain=True) as relay:  # `stillreel owners webhook ... --plain`
        app = deploy(
            "without_component",
            VIDEO_API_URL=control.api.url,
            VIDEO_API_KEY=KEY,
            WEBHOOK_SECRET=secret,
            CONVEX_SITE_URL=relay.receiver.url.rstrip("/"),
        )
        relay.to = app.url
        picture = app.mutation("testing:arrive")["sourceImageId"]
        job_id = app.mutation("videoJobs:create", sourceImageId=picture, prompt="slow zoom in")
        external = app.wait(job_id, "queued", "videoJobs")["externalJobId"]
        assert control.api.job(external)["prompt"] == "slow zoom in"

        assert control.api.client.post(f"/api/v1/jobs/{external}/cancel").is_success
        control.wait(external, "delivered")
        assert relay.outcomes == [(200, "OK")]
        assert relay.last.headers["x-webhook-secret"] == secret
        job = app.job(job_id, "videoJobs")
        assert (job["status"], job["errorMessage"]) == ("failed", "The job was cancelled.")

        without = {"x_webhook_secret": "another"}
        assert relay.send(relay.last, **without) == (401, "Unauthorized")
