import { useMutation, useQuery } from "convex/react";
import { ConvexError } from "convex/values";
import { useState, type FormEvent } from "react";
import { useVideoJob, useVideoUpload } from "stillreel-convex/react";
import { api } from "../convex/_generated/api.js";

export function App() {
  const [jobId, setJobId] = useState<string | null>(null);
  return (
    <>
      <h1>A still becomes a video</h1>
      <OrderForm onOrdered={setJobId} />
      {jobId && <Video key={jobId} jobId={jobId} />}
      <Videos shown={jobId} onChosen={setJobId} />
    </>
  );
}

function OrderForm({ onOrdered }: { onOrdered: (jobId: string) => void }) {
  const create = useMutation(api.videos.create);
  const { upload, isUploading, progress, error } = useVideoUpload(api.videos);
  const [refusal, setRefusal] = useState("");

  const order = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    setRefusal("");
    const form = new FormData(event.currentTarget);
    const image = form.get("image") as File;
    try {
      const uploadId = image.size ? await upload(image) : undefined;
      const seconds = Number(form.get("duration"));
      onOrdered(await create({ uploadId, prompt: String(form.get("prompt")), duration: seconds }));
    } catch (cause) {
      setRefusal(cause instanceof ConvexError ? String(cause.data) : "That did not work; try again.");
    }
  };

  return (
    <form onSubmit={(event) => void order(event)}>
      <label>
        Picture <input name="image" type="file" accept="image/*" />
      </label>
      <label>
        What should happen <input name="prompt" defaultValue="slow zoom in" required />
      </label>
      <label>
        Seconds <input name="duration" type="number" min="1" max="10" defaultValue="5" />
      </label>
      <button disabled={isUploading}>{isUploading ? `Uploading ${Math.round(progress)} %` : "Make the video"}</button>
      {(error ?? refusal) && <p role="alert">{error ?? refusal}</p>}
    </form>
  );
}

function Video({ jobId }: { jobId: string }) {
  const { status, stage, progress, etaSeconds, queuePosition, ...job } = useVideoJob(api.videos, jobId);
  return (
    <section aria-label="Video" data-status={status}>
      <p>
        <strong>{status}</strong>
        {stage && <span> · {stage}</span>}
        {queuePosition !== undefined && <span> · place {queuePosition} in the line</span>}
        {etaSeconds !== undefined && <span> · about {etaSeconds} s left</span>}
        {job.costUsd !== undefined && <span> · {job.costUsd.toFixed(4)} US$</span>}
      </p>
      <progress value={progress} max={100} aria-label="Progress" />
      {job.error && <p role="alert">{job.error}</p>}
      {job.videoUrl && <video src={job.videoUrl} poster={job.posterUrl} controls muted playsInline />}
      {!job.isEnded && <button onClick={() => void job.cancel()}>Cancel</button>}
      {job.isEnded && status !== "completed" && <button onClick={() => void job.retry()}>Try again</button>}
    </section>
  );
}

function Videos({ shown, onChosen }: { shown: string | null; onChosen: (jobId: string) => void }) {
  const jobs = useQuery(api.videos.list, { limit: 10 })?.jobs ?? [];
  return (
    <ul aria-label="Videos">
      {jobs.map(({ jobId, order, status }) => (
        <li key={jobId}>
          <button disabled={jobId === shown} onClick={() => onChosen(jobId)}>
            {order.prompt ?? "no words"}
          </button>{" "}
          {status}
        </li>
      ))}
    </ul>
  );
}
