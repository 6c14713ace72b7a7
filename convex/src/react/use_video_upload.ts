import { useAction } from "convex/react";
import { ConvexError } from "convex/values";
import { useCallback, useState } from "react";
import type { VideosApi } from "./videos_api.js";

export interface VideoUpload {
  /** Stores the image and gives its `uploadId` for an order. Throws where it cannot. */
  upload: (file: File) => Promise<string>;
  isUploading: boolean;
  /** Percent of the bytes that were sent. */
  progress: number;
  error?: string;
}

/** Uploads an image from the page straight to storage, past Convex; one at a time. */
export function useVideoUpload(api: Pick<VideosApi, "presignUpload">): VideoUpload {
  const presign = useAction(api.presignUpload);
  const [state, setState] = useState<Omit<VideoUpload, "upload">>({ isUploading: false, progress: 0 });
  const upload = useCallback(
    async (file: File) => {
      setState({ isUploading: true, progress: 0 });
      try {
        const target = await presign({ contentType: file.type, contentLength: file.size });
        await put(target.uploadUrl, file, (progress) => setState({ isUploading: true, progress }));
        setState({ isUploading: false, progress: 100 });
        return target.uploadId;
      } catch (error) {
        setState({ isUploading: false, progress: 0, error: textOf(error) });
        throw error;
      }
    },
    [presign],
  );
  return { ...state, upload };
}

/** `fetch` cannot tell how much of a body was sent. */
function put(url: string, file: File, onProgress: (percent: number) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", url);
    request.setRequestHeader("Content-Type", file.type);
    request.upload.onprogress = ({ loaded, total }) => onProgress(total ? (100 * loaded) / total : 0);
    request.onerror = () =>
      reject(new Error("The image could not be uploaded; the storage may not allow this page (CORS)."));
    request.onload = () => {
      const isTaken = request.status >= 200 && request.status < 300;
      if (isTaken) resolve();
      else reject(new Error(`The storage answers ${request.status} to the image.`));
    };
    request.send(file);
  });
}

function textOf(error: unknown): string {
  if (error instanceof ConvexError) return String(error.data);
  return error instanceof Error ? error.message : String(error);
}
