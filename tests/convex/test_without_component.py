"""The first design document's own Convex code against the real API: order, webhook, row."""

from __future__ import annotations

from tests.api.conftest import StartApi, control_of, png
from tests.api.outside import image_server
from tests.convex.conftest import KEY, Deploy, relayed

WEBHOOK = "api/webhooks/video-complete"


def test_its_http_action_unchanged_takes_our_webhook(start_api: StartApi, deploy: Deploy) -> None:
    with image_server(png()) as (picture, pair):
        control = control_of(
            start_api(STILLREEL_ALLOW_ADDRESSES=pair, STILLREEL_KEEPER_SECONDS="300")
        )
        secret = control.rotate()[0]
        # As `stillreel owners webhook default --url ... --plain` does.
        with relayed(control, WEBHOOK, plain=True) as relay:
            app = deploy(
                "without_component",
                VIDEO_API_URL=control.api.url,
                VIDEO_API_KEY=KEY,
                WEBHOOK_SECRET=secret,
                CONVEX_SITE_URL=relay.receiver.url.rstrip("/"),
                FILES_URL=picture,
            )
            relay.to = app.url
            stored = app.mutation("testing:arrive")["sourceImageId"]
            job_id = app.mutation("videoJobs:create", sourceImageId=stored, prompt="slow zoom in")
            external = app.wait(job_id, "queued", "videoJobs")["externalJobId"]
            assert control.api.job(external)["prompt"] == "slow zoom in"

            assert control.api.client.post(f"/api/v1/jobs/{external}/cancel").is_success
            control.wait(external, "delivered")
            assert relay.outcomes == [(200, "OK")]
            assert relay.last.headers["x-webhook-secret"] == secret
            job = app.job(job_id, "videoJobs")
            assert (job["status"], job["errorMessage"]) == ("failed", "The job was cancelled.")
            assert relay.send(relay.last, x_webhook_secret="another") == (401, "Unauthorized")
